"""DIDR on a text-to-image model in latent space, as functions of parameters; one task for every backbone.

    reference   the pipeline's network, frozen                                        x̂_ref
    TA          begins as the reference; all of it is trained, or adapters (LoRA)     x̂_ψ
    generator   one or a few evaluations from unit noise, with weights of its own     g_θ
    reward      weighted mix on the decoded image, in float32                         r

The reward that trains, whatever asks it, is that of images decoded in `network.reward_vae_dtype`, or by a tiny VAE,
`network.reward_vae`; the rewards that are logged and evaluated are those of the pipeline's VAE in `network.vae_dtype`.

Conditions are `{"text": embeddings, "tokens": what the rewards read}`: their tokens, or, where prompts are embedded beforehand,
the features of those that read a prompt by itself, whose text towers are then in no step.  Base, VAE and rewards travel
through the step as `frozen`: with adapters, TA and generator read their bases there too.  Where the generator begins with the base's own
weights there is one base for all three: the reference is the base with no adapter.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from didr_jax import lora
from didr_jax.diffusion import to_x0
from didr_jax.recipes.text_to_image.backbone import Backbone
from didr_jax.recipes.text_to_image.conditions import Conditions, PromptTable, as_stored, prompt_table, prompt_tokens
from didr_jax.recipes.text_to_image.rewards import open_mix
from didr_jax.rewards import RewardMix, finite_gradient, readings
from didr_jax.text.encoder import TextEncoder
from didr_jax.text.prompts import read_prompts
from didr_jax.training.parallel import held, made
from didr_jax.training.step import Networks
from didr_jax.types import Array, PyTree, Weights
from didr_jax.weights import lora_files


class Task:
    """The networks of a backbone at work; whatever is read is read when it is first needed.

    Args:
      config: of `configs/sdxl.py` or one like it.
      make_backbone: `config -> Backbone`.
      planning: nothing will be loaded; rewards whose files are not here are the published ones.
    """

    def __init__(self, config, make_backbone: Callable[..., Backbone], planning: bool = False):
        self.config, self.planning = config, planning
        self.backbone = make_backbone(config)

    @functools.cached_property
    def prompts(self) -> list[str]:
        """What is trained on."""
        data = self.config.data
        return read_prompts(data.prompts, data.column, data.limit)

    @functools.cached_property
    def mix(self) -> RewardMix | None:
        return open_mix(self.config.rewards, self.backbone.clip_tokenizer, published=self.planning)

    @functools.cached_property
    def judge(self) -> RewardMix | None:
        """The mix as it is asked by what has conditions."""
        return self.mix if self.mix is None or self.in_loop else self.mix.apart()

    @property
    def in_loop(self) -> bool:
        """Whether the step embeds its prompts itself."""
        return self.config.data.encode == "in_loop"

    @functools.cached_property
    def encoder(self) -> TextEncoder:
        """Of prompts; its weights are read where they are loaded."""
        return self.backbone.encoder()

    @functools.cached_property
    def conditions(self) -> Conditions:
        """Of the training prompts."""
        return prompt_tokens(self.prompts, self.encoder, self.mix) if self.in_loop else self.table(self.prompts)

    def table(self, prompts: list[str], with_tokens: bool = True) -> PromptTable:
        """Of any prompts, on disk; `with_tokens`: the rewards' too."""
        backbone, mix = self.backbone, self.mix if with_tokens else None
        digest, read = backbone.text_digest(), not self.in_loop
        return prompt_table(prompts, self.config.data, backbone.encoder, digest, mix, backbone.longest, read)

    # -------------------------------------------------------------------------------- functions

    def embed(self, frozen: PyTree, c: PyTree) -> PyTree:
        """Conditions whose prompts are tokens yet, as the cache would have them."""
        text = self.encoder.encode(frozen["text_encoder"], c["prompt"])
        return {"text": as_stored(text, self.config.data.dtype), "tokens": c["tokens"]}

    def predict(self, params: PyTree, adapter: PyTree | None, x_t: Array, t: Array, c: PyTree, dtype: Any = None) -> Array:
        """x̂0 of the network with the given parameters and adapter, computed in `network.dtype` or another one."""
        b, alpha = self.backbone, self.config.lora.alpha
        prediction = lora.applied(b.network, alpha)(params, adapter, x_t, t, c["text"], dtype)
        return to_x0(b.prediction, prediction, x_t, t, b.schedule)

    def base_of(self, who: str) -> str:
        """Which of the frozen networks the adapters of the generator or the TA sit on."""
        return who if who == "generator" and not self.backbone.shared else "base"

    def pair(self, who: str, frozen: PyTree, trained: PyTree) -> tuple[PyTree, PyTree | None]:
        """(parameters, adapter) of the generator or the TA."""
        return (trained, None) if self.config.network[who] == "full" else (frozen[self.base_of(who)], trained)

    def generate(self, params: PyTree, adapter: PyTree | None, z: Array, c: PyTree) -> Array:
        """Latents of all steps from unit noise z `[b, *noise_shape]`."""
        return self.backbone.few_step.sample(self._at(c), (params, adapter), z)

    def generate_to_train(self, params: PyTree, adapter: PyTree | None, z: Array, c: PyTree, i: Array) -> Array:
        """Latents of step i, differentiable through it alone."""
        return self.backbone.few_step.train(self._at(c), (params, adapter), z, i)

    def _at(self, c: PyTree):
        return lambda weights, x_t, t: self.predict(weights[0], weights[1], x_t, t, c)

    def decode(self, frozen: PyTree, x0: Array, to_train: bool = False) -> Array:
        """Images `[b, H, W, 3]` in [-1, 1].  A clipped pixel has no gradient; one at the bound has all of it.

        An infinite pixel is not clipped: the decoder overflowed, and the rewards shall drop the sample.

        Args:
          to_train: as the reward sees them that trains.
        """
        image = (self.backbone.reward_image if to_train else self.backbone.image).decode(frozen, x0)
        return jnp.where((jnp.abs(image) > 1) & jnp.isfinite(image), jnp.sign(image), image)

    def score(self, frozen: PyTree, x0: Array, c: PyTree, mix: RewardMix | None = None, to_train: bool = False):
        """`MixScore` of latents by the mix, or by a part of it.  A sample that is not finite anywhere gets no gradient."""
        image, mix = self.decode(frozen, finite_gradient(x0), to_train), mix or self.judge
        assert mix is not None, "nothing is scored without rewards"
        return mix.apply(frozen["rewards"], image, c["tokens"])

    def terms(self, frozen: PyTree, x0: Array, c: PyTree) -> dict[str, Array]:
        return readings(self.score(frozen, x0, c))

    def networks(self) -> Networks:
        def unconditional(frozen, c):
            def spread(empty, like):
                """A caption as wide as those beside it: what it loses are rows that do not count."""
                cut = empty[(slice(None), *(slice(n) for n in like.shape[1:]))]
                return jnp.broadcast_to(cut, like.shape).astype(like.dtype)

            return c | {"text": jax.tree.map(spread, frozen["no_text"], c["text"])}

        def reward(only=None):
            return lambda frozen, x0, c: self.score(frozen, x0, c, only, to_train=True).total

        mix, rewarded = self.judge, self.judge is not None
        parts = {} if mix is None or len(mix.weights) < 2 else {name: reward(mix.only(name)) for name in mix.weights}
        ta = lambda dtype: lambda p, frozen, x_t, t, c: self.predict(*self.pair("ta", frozen, p), x_t, t, c, dtype)
        return Networks(
            schedule=self.backbone.schedule,
            event_shape=self.backbone.event_shape,
            reference=lambda frozen, x_t, t, c: self.predict(frozen["base"], None, x_t, t, c),
            ta=ta(None),
            ta_in_loss=ta(jnp.float32) if self.config.align.ta_float32 else None,
            generator=lambda p, frozen, z, c, i: self.generate_to_train(*self.pair("generator", frozen, p), z, c, i),
            reward=reward() if rewarded else None,
            terms=self.terms if rewarded else None,
            unconditional=unconditional,
            few_step=self.backbone.few_step,
            parts=parts,
            prepare=self.embed if self.in_loop else None,
        )

    # ------------------------------------------------------------------------------- parameters

    def frozen(self) -> dict[str, Weights]:
        """What the step reads and never changes."""
        kind = self.config.network.frozen_dtype
        parts = {"base": self.backbone.base.cast(kind), "no_text": self.no_text()} | self.finishing()
        if (side := self.backbone.reward_image).name not in parts:
            parts[side.name] = side.weights
        encoder = {"text_encoder": self.encoder.weights} if self.in_loop else {}
        return parts | encoder | self.under_adapters()

    def finishing(self, with_rewards: bool = True) -> dict[str, Weights]:
        """What turns latents into images and scores."""
        rewards = {"rewards": self.judge.params} if with_rewards and self.judge is not None else {}
        return {"vae": self.backbone.image.weights} | rewards

    def under_adapters(self) -> dict[str, Weights]:
        """What the generator's adapters sit on, if it has any."""
        if self.config.network.generator != "lora":
            return {}
        name = self.base_of("generator")
        return {name: getattr(self.backbone, name).cast(self.config.network.frozen_dtype)}

    def no_text(self, table: PromptTable | None = None) -> Weights:
        """The text `[1, ...]` of guidance's unconditional branch; `table`: where it is found, if not among the training's."""

        def fill(shapes, places):
            zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes)
            return held(zeros if self.backbone.zero_text else (table.empty if table else self._empty())).load(places)

        return Weights(self.backbone.text_shapes, fill)

    @property
    def adapter(self) -> Weights:
        """What the generator begins with besides its weights."""
        path, backbone = self.config.weights.generator_adapter, self.backbone
        tables = backbone.table, backbone.single_table
        return lora_files.saved(
            path, backbone.shapes, self.config.lora.alpha, tables, prefix=backbone.part, seed=self.config.seed
        )

    @property
    def initial(self) -> Weights:
        """The initial generator, whole."""
        whole = self.backbone.generator
        return lora.merged(whole, self.adapter, self.config.lora.alpha) if self.config.weights.generator_adapter else whole

    def _empty(self) -> PyTree:
        table = self.conditions
        return (table if isinstance(table, PromptTable) else self.table([], with_tokens=False)).empty

    def start(self, who: str) -> Weights:
        """The parameters, or fresh adapters, that the generator or the TA begins with."""
        backbone, network, knobs = self.backbone, self.config.network, self.config.lora
        if network[who] == "full":
            return (self.initial if who == "generator" else backbone.base).cast(network.param_dtype)
        if who == "generator" and self.config.weights.generator_adapter:
            return self.adapter
        salt = {"generator": 0, "ta": 1}[who]
        key = jax.random.fold_in(jax.random.key(self.config.seed), salt)
        return made(lambda: lora.init(key, backbone.shapes, knobs.layers, knobs.rank))
