"""DIDR on a text-to-image model in latent space: one stage, `align`, for every backbone.

    reference   the pipeline's network, frozen                            x̂_ref
    TA          begins as the reference; all of it is trained, or adapters (LoRA)     x̂_ψ
    generator   one or a few evaluations from unit noise, with weights of its own      g_θ
    reward      weighted mix on the decoded image, in float32                          r

Conditions are `{"text": embeddings, "tokens": the rewards' tokens}`, rows of the table of all prompts
picked by (seed, step).  Base, VAE and rewards travel through the step as `frozen`: with adapters, TA and
generator read their bases there too.  Where the generator begins with the base's own weights there is one
base for all three roles: the reference is the base with no adapter.
"""

import dataclasses
import functools
import os
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from didr_jax import lora
from didr_jax.checks import require_choice
from didr_jax.diffusion import to_x0
from didr_jax.models.remat import REMAT
from didr_jax.recipes.text_to_image.backbone import Backbone, cast
from didr_jax.recipes.text_to_image.rewards import chosen, load_mix, load_rewards, require_reward, resolve_estimator
from didr_jax.rewards import finite_gradient, summarise
from didr_jax.rewards.custom import try_out
from didr_jax.rewards.scoring import score_folder
from didr_jax.text.cache import cached, digest_texts
from didr_jax.text.prompts import read_prompts
from didr_jax.training.parallel import shardings
from didr_jax.training.stages import game_stage
from didr_jax.training.startup import is_first_process
from didr_jax.training.step import Networks
from didr_jax.types import Array, InputError, PyTree

TRAIN = ("full", "lora")


class TextToImage:
    """The recipe of a backbone; everything that is read is read once, when it is first needed.

    Args:
      config: of `configs/sdxl.py` or one like it.
      make_backbone: `config -> Backbone`, raising InputError for what cannot be used.
    """

    def __init__(self, config, make_backbone):
        self.config = config
        self._make_backbone = make_backbone

    @functools.cached_property
    def backbone(self) -> Backbone:
        return self._make_backbone(self.config)

    @functools.cached_property
    def prompts(self) -> list[str]:
        data = self.config.data
        return read_prompts(data.prompts, data.column, data.limit)

    @functools.cached_property
    def mix(self):
        return load_mix(self.config.rewards, self.backbone.clip_tokenizer)

    def check(self, mode: str) -> None:
        """Raises InputError for anything that the mode would stumble over later."""
        config = self.config
        for part, knob in (("network", "remat"), ("network", "vae_remat"), ("rewards", "remat")):
            require_choice(f"{part}.{knob}", config[part][knob], REMAT)
        if mode == "score":
            if not chosen(config.rewards):
                raise InputError("--mode=score has no reward: set config.rewards.hps or another")
            _require_path("score.images", config.score.images)
            _require_path("score.prompts", config.score.prompts)
            return
        if mode != "compile":
            _require_path("weights.base", config.weights.base)
            _require_path("data.prompts", config.data.prompts)
        for who in ("generator", "ta"):
            if config.network[who] not in TRAIN:
                raise InputError(f"config.network.{who} = {config.network[who]!r}: choose full or lora")
        if config.weights.generator_adapter and config.network.generator != "lora":
            raise InputError("config.weights.generator_adapter is where adapters begin: set config.network.generator=lora")
        if mode == "compile":
            return
        require_reward(config.align.objective, config.rewards)
        self.backbone.check()
        for who in ("generator", "ta"):
            self.start_shapes(who)
        prompts = self.prompts
        if config.rewards.custom:
            size = config.image.height, config.image.width
            try_out(config.rewards.custom, config.rewards.custom_differentiable, size, [*prompts, ""][:2])
        resolve_estimator(config.align, self.mix)
        for line in self.backbone.warnings if is_first_process() else ():
            print(f"didr_jax: warning: {line}", file=sys.stderr, flush=True)

    # ------------------------------------------------------------------------------- conditions

    def embed(self, prompts: list[str]) -> PyTree:
        """Text embeddings `{name: [n, ...]}` of prompts, on disk."""
        data, backbone = self.config.data, self.backbone
        key = digest_texts([backbone.text_digest()], prompts)
        encode = lambda batch: self._encode(batch)  # the encoders are loaded only if they are needed
        say = functools.partial(print, flush=True) if is_first_process() else str
        return cached(data.cache, key, prompts, encode, dtype=data.dtype, batch_size=data.batch_size, say=say)

    @functools.cached_property
    def _encode(self):
        return self.backbone.load_encoder()

    def release_encoder(self) -> None:
        """Gives the memory of the text encoders back; they are loaded again if they are needed again."""
        self.__dict__.pop("_encode", None)

    def table(self, prompts: list[str]) -> PyTree:
        """Conditions `[n, ...]` of n prompts."""
        tokens = {} if self.mix is None else self.mix.tokenize(prompts)
        return {"text": self.embed(prompts), "tokens": tokens}

    def no_text(self) -> PyTree:
        """The text `[1, ...]` of guidance's unconditional branch."""
        text = jax.tree.map(np.array, self.embed([""]))
        return jax.tree.map(np.zeros_like, text) if self.backbone.zero_text else text

    # -------------------------------------------------------------------------------- functions

    def predict(self, params: PyTree, adapter: PyTree | None, x_t: Array, t: Array, c: PyTree) -> Array:
        """x̂0 of the network with the given parameters and adapter."""
        b, alpha = self.backbone, self.config.lora.alpha
        prediction = lora.applied(b.network, alpha)(params, adapter, x_t, t, c["text"])
        return to_x0(b.prediction, prediction, x_t, t, b.schedule)

    def base_of(self, who: str) -> str:
        """Which of the frozen networks the adapters of the generator or the TA sit on."""
        return who if who == "generator" and not self.backbone.shared else "base"

    def pair(self, who: str, frozen: PyTree, trained: PyTree) -> tuple[PyTree, PyTree | None]:
        """(parameters, adapter) of the generator or the TA."""
        return (trained, None) if self.config.network[who] == "full" else (frozen[self.base_of(who)], trained)

    def generate(self, params: PyTree, adapter: PyTree | None, z: Array, c: PyTree) -> Array:
        """Latents of all steps from unit noise z `[b, *few_step.noise_shape]`."""
        return self.backbone.few_step.sample(self._at(c), (params, adapter), z)

    def generate_to_train(self, params: PyTree, adapter: PyTree | None, z: Array, c: PyTree, i: Array) -> Array:
        """Latents of step i, differentiable through it alone."""
        return self.backbone.few_step.train(self._at(c), (params, adapter), z, i)

    def _at(self, c: PyTree):
        return lambda weights, x_t, t: self.predict(*weights, x_t, t, c)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return self.backbone.few_step.noise_shape(self.backbone.event_shape)

    def decode(self, frozen: PyTree, x0: Array) -> Array:
        """Images `[b, H, W, 3]` in [-1, 1].  A clipped pixel has no gradient; one at the bound has all of it.

        An infinite pixel is not clipped: the decoder overflowed, and the rewards shall drop the sample.
        """
        image = self.backbone.decode(frozen["vae"], x0)
        return jnp.where((jnp.abs(image) > 1) & jnp.isfinite(image), jnp.sign(image), image)

    def score(self, frozen: PyTree, x0: Array, c: PyTree):
        """`MixScore` of latents.  A sample that is not finite anywhere on the way gets no gradient."""
        image = self.decode(frozen, finite_gradient(x0))
        return self.mix.apply(frozen["rewards"], image, c["tokens"])

    def terms(self, frozen: PyTree, x0: Array, c: PyTree) -> dict[str, Array]:
        figures = summarise(self.score(frozen, x0, c))
        return {"reward": figures.pop("reward/total")} | figures

    def roles(self, frozen: PyTree) -> Networks:
        """The networks, with what TA and generator read of `frozen` bound."""

        def unconditional(c):
            spread = lambda empty, like: jnp.broadcast_to(empty, like.shape).astype(like.dtype)
            return c | {"text": jax.tree.map(spread, frozen["no_text"], c["text"])}

        return Networks(
            schedule=self.backbone.schedule,
            event_shape=self.backbone.event_shape,
            reference=lambda frozen, x_t, t, c: self.predict(frozen["base"], None, x_t, t, c),
            ta=lambda p, x_t, t, c: self.predict(*self.pair("ta", frozen, p), x_t, t, c),
            generator=lambda p, z, c, i: self.generate_to_train(*self.pair("generator", frozen, p), z, c, i),
            reward=None if self.mix is None else lambda frozen, x0, c: self.score(frozen, x0, c).total,
            terms=None if self.mix is None else self.terms,
            unconditional=unconditional,
            few_step=self.backbone.few_step,
        )

    # ------------------------------------------------------------------------------------ stage

    def loader(self, source: str, dtype: str, role: str) -> Callable[[], PyTree]:
        """Loads a network's parameters, spread by the rules for the path `role/...` over the mesh now in use."""
        mesh = jax.sharding.get_mesh()
        places = None if mesh.empty else shardings({role: self.backbone.shapes}, self.config, mesh)[role]

        def load():
            with jax.ensure_compile_time_eval():  # arrays, not parts of a program that is being traced
                return self.backbone.load(source, dtype, places)

        return load

    def load(self, source: str, dtype: str, role: str) -> PyTree:
        return self.loader(source, dtype, role)()

    def judged(self) -> PyTree:
        """The frozen parameters that turn trained parameters into images and scores."""
        parts = {"vae": self.backbone.load_vae()}
        if self.config.network.generator == "lora":
            name = self.base_of("generator")
            parts[name] = self.load(name, self.config.network.frozen_dtype, name)
        return parts | ({} if self.mix is None else {"rewards": self.mix.params})

    def frozen(self) -> PyTree:
        """What the step reads and never changes."""
        parts = self.judged() | {"no_text": self.no_text()}
        return parts if "base" in parts else parts | {"base": self.load("base", self.config.network.frozen_dtype, "base")}

    def starter(self, who: str) -> Callable[[], PyTree]:
        """Makes the parameters, or fresh adapters, that the generator or the TA begins with."""
        source, salt = {"generator": ("generator", 0), "ta": ("base", 1)}[who]
        network, knobs = self.config.network, self.config.lora
        if network[who] == "full":
            return self.loader(source, network.param_dtype, who)

        def adapters():
            if who == "generator" and self.config.weights.generator_adapter:
                path, backbone = self.config.weights.generator_adapter, self.backbone
                return lora.load(path, backbone.shapes, knobs.alpha, backbone.table, prefix=backbone.part)
            key = jax.random.fold_in(jax.random.key(self.config.seed), salt)
            return lora.init(key, self.backbone.shapes, knobs.layers, knobs.rank)

        return adapters

    def start(self, who: str) -> PyTree:
        return self.starter(who)()

    def start_shapes(self, who: str) -> PyTree:
        """Of `start(who)`, nothing read but adapters that are given."""
        if self.config.network[who] == "lora":
            return jax.eval_shape(self.starter(who))
        return cast(self.backbone.shapes, self.config.network.param_dtype)

    def conditions(self) -> Callable[[np.random.Generator, int], PyTree]:
        """`(rng, rows) -> conditions [rows, ...]` of prompts picked at random."""
        table, n = self.table(self.prompts), len(self.prompts)
        self.no_text()  # on disk from here on
        self.release_encoder()

        def pick(rng, rows):
            picked = rng.integers(n, size=rows)
            return jax.tree.map(lambda column: column[picked], table)

        return pick

    def align(self, _products: PyTree):
        """The stage's builder."""
        config = self.config.copy_and_resolve_references()
        config.align = resolve_estimator(config.align, self.mix)
        conditions = self.conditions()
        # Read when a run begins, kept by nobody: beside the state there is no room for what it began with.
        generator, ta = self.starter("generator"), self.starter("ta")
        like = self.start_shapes("generator"), self.start_shapes("ta")

        def stage(frozen):
            return game_stage(
                "align", config, roles=self.roles(frozen), conditions=conditions,
                init_generator=generator, init_ta=ta, like=like, frozen=frozen,
            )  # fmt: skip

        # The step binds the frozen parameters that it is handed, not those of this process at build time.
        return dataclasses.replace(
            stage(self.frozen()),
            step=lambda state, frozen, batch: stage(frozen).step(state, frozen, batch),
        )

    def score_images(self, workdir: str) -> None:
        section = self.config.score
        tokenizer = self.backbone.clip_tokenizer if self.config.weights.base else None
        models = load_rewards(self.config.rewards, tokenizer)
        score_folder(section.images, section.prompts, models, os.path.join(workdir, "scores.csv"), batch_size=section.batch_size)


def _require_path(key: str, value: str) -> None:
    if not value:
        raise InputError(f"config.{key} is empty; give --config.{key}=PATH")
