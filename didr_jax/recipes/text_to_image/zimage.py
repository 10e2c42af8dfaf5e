"""Z-Image (arXiv 2511.22699) as a backbone of `text_to_image`.

The reference is the transformer of the base folder, which must be Z-Image itself: guidance is not defined
for the distilled Turbo.  The schedule is a rectified flow, x_t = (1 − t) x0 + t ε, so t is σ; the network
takes 1 − σ and answers x0 − ε, the negative of the velocity v.  The generator, a transformer of the same
architecture (Turbo's, say), begins with unit noise z at σ = 1, where x0 = x_t − σ v is

    x0 = z − v(z, 1)                                                                           (1)

and has its further steps, if any, where `ZImagePipeline` with the schedule's shift takes them.

Captions are ragged: `text` is {"caption": [b, L, d], "length": [b]}.  Guidance's unconditional branch is
the empty prompt, put through the chat template like any other.  `ZImagePipeline` writes guidance as
v_c + g (v_c − v_u): its g = 4 is our scale w = g + 1 = 5.
"""

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from didr_jax.checks import listed, require_choice
from didr_jax.models.attention import BACKENDS
from didr_jax.models.config import building
from didr_jax.models.qwen3 import Qwen3Config
from didr_jax.models.zimage import ZImageTransformer
from didr_jax.models.zimage_config import ZImageConfig
from didr_jax.recipes.text_to_image.backbone import Backbone
from didr_jax.recipes.text_to_image.scheduler import scheduler_class
from didr_jax.text.cache import digest_files, digest_texts
from didr_jax.text.qwen import PARTS, qwen_encoder
from didr_jax.types import InputError
from didr_jax.weights.folder import part_json
from didr_jax.weights.zimage import zimage_single_table, zimage_table

SCHEDULER = "FlowMatchEulerDiscreteScheduler"
# Options of the scheduler that would take it off the static grid; each must be absent or false.
OFF_GRID = (
    "use_dynamic_shifting",
    "invert_sigmas",
    "shift_terminal",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "stochastic_sampling",
)


class ZImage(Backbone):
    """Z-Image: `text` is {"caption": [b, L, d], "length": [b]}."""

    part = "transformer"
    pipeline_class = "ZImagePipeline"
    network_class = "ZImageTransformer2DModel"
    single_adapters = "comfyui"
    single_name = "layers.0.attention.qkv.weight"
    repository = "Tongyi-MAI/Z-Image"
    text_parts = all_text_parts = PARTS
    config_parts = ("scheduler",)
    zero_text = False
    prediction = "velocity"

    @functools.cached_property
    def arch(self) -> ZImageConfig:
        return ZImageConfig.from_json(self.config_json)

    @property
    def table(self):
        return zimage_table(self.arch)

    @property
    def single_table(self):
        return zimage_single_table(self.arch)

    @property
    def multiple(self) -> int:
        return self.image.arch.factor * self.arch.patch_size

    @functools.cached_property
    def schedule(self):
        schedule = super().schedule
        if schedule.name != "rectified_flow":
            raise InputError(f"config.schedule.name = {schedule.name!r}: Z-Image is a rectified_flow")
        return schedule

    @functools.cached_property
    def transformer(self) -> ZImageTransformer:
        knobs = self.config.network
        require_choice("network.attention", knobs.attention, BACKENDS)
        return ZImageTransformer(self.arch, jnp.dtype(knobs.dtype), remat=knobs.remat, backend=knobs.attention)

    def network(self, params, x_t, t, text, dtype=None):
        transformer = self.transformer if dtype is None else self.transformer.clone(dtype=dtype)
        clean_minus_noise = transformer.apply({"params": params}, x_t, 1 - t, text["caption"], text["length"])
        return -clean_minus_noise.astype(jnp.float32)

    @functools.cached_property
    def shapes(self):
        return self._shapes(self.arch.patch_size, self.arch.patch_size, 1)

    def _shapes(self, height: int, width: int, tokens: int):
        """Of the parameters, which do not depend on the latent and the caption; the transformer checks that it can do these."""

        def init():
            x = jnp.zeros((1, height, width, self.arch.in_channels))
            caption = jnp.zeros((1, tokens, self.arch.cap_feat_dim))
            return self.transformer.init(jax.random.key(0), x, jnp.zeros(1), caption, jnp.ones(1, int))["params"]

        with building("ZImageTransformer2DModel"):
            return jax.eval_shape(init)

    @functools.cached_property
    def text_shapes(self):
        data = self.config.data
        caption = (1, data.max_length, self.arch.cap_feat_dim)
        return {
            "caption": jax.ShapeDtypeStruct(caption, jnp.dtype(data.dtype)),
            "length": jax.ShapeDtypeStruct((1,), jnp.int32),
        }

    @property
    def longest(self) -> int:
        return self.config.data.max_length

    def encoder(self):
        data, variant = self.config.data, self.config.weights.variant or None
        return qwen_encoder(self.folder, data.max_length, jnp.dtype(data.encoder_dtype), variant)

    def text_digest(self) -> str:
        data = self.config.data
        return digest_texts([digest_files(self.folder / part for part in PARTS), data.encoder_dtype, str(data.max_length)])

    def check(self) -> None:
        data, arch, vae = self.config.data, self.arch, self.image.arch
        require_choice("data.encoder_dtype", data.encoder_dtype, ("bfloat16", "float32"))
        if data.max_length < 1:
            raise InputError(f"config.data.max_length = {data.max_length}: must be at least 1 token")
        if vae.latent_channels != arch.in_channels:
            raise InputError(
                f"config.weights.base: the transformer's latents have {arch.in_channels} channels, the VAE's "
                f"{vae.latent_channels}; the parts are not of one pipeline"
            )
        self._shapes(*self.event_shape[:2], data.max_length)
        if not self.given:
            return
        _check_scheduler(self.folder, self._scheduler)
        width = Qwen3Config.from_json(part_json(self.folder, "text_encoder")).hidden_size
        if width != arch.cap_feat_dim:
            raise InputError(
                f"config.weights.base: the transformer takes captions of width {arch.cap_feat_dim}, the text encoder gives "
                f"{width}; the parts are not of one pipeline"
            )
        _require_architecture(self.generator_source(), arch)

    @functools.cached_property
    def _scheduler(self) -> Mapping[str, Any]:
        return part_json(self.folder, "scheduler", "scheduler_config.json")

    @functools.cached_property
    def scheduler_json(self):
        """The base's, with this config's shift and the generator's solver."""
        _check_scheduler(self.folder, self._scheduler)
        several = len(self.few_step.times) > 1
        stochastic = several and self.few_step.solver == "renoise"
        return {**self._scheduler, "shift": float(self.config.schedule.shift), "stochastic_sampling": stochastic}

    @property
    def warnings(self):
        return _warnings(self.config, self.file or self.folder, self.generator_source(), self.shared)


def _require_architecture(path: Path, arch: ZImageConfig) -> None:
    """Raises InputError if a generator's folder says that it has another architecture than the base."""
    if not (path / "config.json").is_file():
        return
    theirs = ZImageConfig.from_json(part_json(path.parent, path.name))
    ours = vars(arch)
    if wrong := [f"{key} {value} ({ours[key]})" for key, value in vars(theirs).items() if value != ours[key]]:
        raise InputError(
            f"config.weights.generator: {path} has another architecture than the base (in brackets): {listed(wrong)}", wrong
        )


def _check_scheduler(base: Path, raw: Mapping[str, Any]) -> None:
    scheduler_class(base, raw, {SCHEDULER: {}})
    wrong = [f"{key}={raw[key]!r}" for key in OFF_GRID if raw.get(key)]
    wrong += [] if raw.get("num_train_timesteps", 1000) == 1000 else [f"num_train_timesteps={raw['num_train_timesteps']}"]
    if wrong:
        raise InputError(f"config.weights.base: {base}/scheduler is not a {SCHEDULER} with a static shift: {', '.join(wrong)}")


def _warnings(config, base: Path, generator: Path, shared: bool) -> tuple[str, ...]:
    """What is legal and looks like a mistake.  The files of Turbo and of Z-Image differ only in their weights'
    values, so a Turbo base is known by a name that says so, or by being given as the generator too."""
    lines = []
    guided = f"config.align.guidance = {config.align.guidance:g}"
    remedy = "the reference should be Z-Image itself (or set config.align.guidance=1)"
    if config.align.guidance != 1:
        if named := _called_turbo(base):
            lines.append(f"{guided}, but config.weights.base looks like Turbo ({named}), which knows no guidance: {remedy}")
        elif config.weights.generator and shared:
            lines.append(
                f"{guided}, and config.weights.base and config.weights.generator are the same: if that is Turbo, {remedy}"
            )
    scheduler = generator.parent / "scheduler" / "scheduler_config.json"
    if config.weights.generator and scheduler.is_file():
        shift = part_json(generator.parent, "scheduler", scheduler.name).get("shift", 1.0)
        if shift != config.schedule.shift:
            lines.append(
                f"config.schedule.shift = {config.schedule.shift:g}, the generator's own scheduler has {shift!s:.20}: times "
                "are drawn, several steps are placed and the exported scheduler is written with the former"
            )
    return tuple(lines)


def _called_turbo(base: Path) -> str | None:
    """The name by which a pipeline says that it is Turbo: its folder's, or what its files were saved from."""
    parts = Path(os.path.realpath(base)).parts
    names = [base.name, *(parts[-3:] if "snapshots" in parts else parts[-1:])]  # of the hub's cache: repository, …
    for part, file in (("", "model_index.json"), ("transformer", "config.json")):
        if (base / part / file).is_file():
            names.append(str(part_json(base, part, file).get("_name_or_path", "")))
    return next((name for name in names if "turbo" in name.lower()), None)
