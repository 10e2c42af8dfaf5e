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

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from didr_jax.builders import make_few_step, make_schedule
from didr_jax.checks import require_choice
from didr_jax.models.attention import BACKENDS
from didr_jax.models.qwen3 import Qwen3Config
from didr_jax.models.zimage import ZImageTransformer
from didr_jax.models.zimage_config import ZImageConfig
from didr_jax.recipes.text_to_image.backbone import Backbone
from didr_jax.recipes.text_to_image.latents import architecture, decoder, latent_shape, open_sources
from didr_jax.text.cache import digest_files, digest_texts
from didr_jax.text.qwen import PARTS, qwen_encoder
from didr_jax.types import InputError
from didr_jax.weights.folder import part_json, require_parts
from didr_jax.weights.zimage import zimage_table

SCHEDULER = "FlowMatchEulerDiscreteScheduler"
# Options of the scheduler that would take it off the static grid; each must be absent or false.
OFF_GRID = (
    "use_dynamic_shifting", "invert_sigmas", "shift_terminal", "use_karras_sigmas", "use_exponential_sigmas",
    "use_beta_sigmas", "stochastic_sampling",
)  # fmt: skip


def zimage(config) -> Backbone:
    """Reads all but the weights themselves.  Without `weights.base`, for plans: a published architecture, no weights.

    Raises:
      InputError: a part is absent, an architecture or scheduler is not one that this port does, or the
        image size is not one that the networks can do.
    """
    base, knobs, data = Path(config.weights.base), config.network, config.data
    if given := config.weights.base:
        require_parts(base, "weights.base", ("scheduler", *PARTS))
    require_choice("network.attention", knobs.attention, BACKENDS)
    require_choice("data.encoder_dtype", data.encoder_dtype, ("bfloat16", "float32"))
    raw = architecture(config, "transformer", "vae")
    arch = ZImageConfig.from_json(raw["transformer"])
    generator = _generator_weights(config.weights.generator, base, arch) if given else base
    schedule = make_schedule(config)
    if schedule.name != "rectified_flow":
        raise InputError(f"config.schedule.name = {schedule.name!r}: Z-Image is a rectified_flow")
    few_step = make_few_step(config, schedule)
    scheduler = part_json(base, "scheduler", "scheduler_config.json") if given else {}
    _check_scheduler(base, scheduler)

    vae, vae_shapes, load_vae, decode = decoder(config, base, raw["vae"])
    if vae.latent_channels != arch.in_channels:
        raise InputError(
            f"config.weights.base: the transformer's latents have {arch.in_channels} channels, the VAE's "
            f"{vae.latent_channels}; the parts are not of one pipeline"
        )
    width = Qwen3Config.from_json(part_json(base, "text_encoder")).hidden_size if given else arch.cap_feat_dim
    if width != arch.cap_feat_dim:
        raise InputError(
            f"config.weights.base: the transformer takes captions of width {arch.cap_feat_dim}, the text encoder gives "
            f"{width}; the parts are not of one pipeline"
        )
    if data.max_length < 1:
        raise InputError(f"config.data.max_length = {data.max_length}: must be at least 1 token")
    event_shape = latent_shape(config.image, vae, vae.factor * arch.patch_size)
    model = ZImageTransformer(arch, jnp.dtype(knobs.dtype), remat=knobs.remat, backend=knobs.attention)

    def network(params, x_t, t, text):
        clean_minus_noise = model.apply({"params": params}, x_t, 1 - t, text["caption"], text["length"])
        return -clean_minus_noise.astype(jnp.float32)

    def init():
        caption = jnp.zeros((1, data.max_length, arch.cap_feat_dim))
        x, t, length = jnp.zeros((1, *event_shape)), jnp.zeros(1), jnp.ones(1, int)
        return model.init(jax.random.key(0), x, t, caption, length)["params"]

    dtype, variant = data.encoder_dtype, config.weights.variant or None
    return Backbone(
        schedule=schedule,
        prediction="velocity",
        event_shape=event_shape,
        few_step=few_step,
        network=network,
        shapes=jax.eval_shape(init),
        table=zimage_table(arch),
        sources=open_sources(config, base / "transformer", generator),
        part="transformer",
        config_json=raw["transformer"],
        zero_text=False,
        load_vae=load_vae,
        decode=decode,
        text_digest=lambda: digest_texts([digest_files(base / part for part in PARTS), dtype, str(data.max_length)]),
        load_encoder=lambda: qwen_encoder(base, data.max_length, jnp.dtype(dtype), variant),
        clip_tokenizer=None,
        scheduler_json=scheduler
        | {
            "shift": float(config.schedule.shift),
            "stochastic_sampling": len(few_step.times) > 1 and few_step.solver == "renoise",
        },
        warnings=_warnings(config, base, generator) if given else (),
        vae_shapes=vae_shapes,
        text_shapes={
            "caption": jax.ShapeDtypeStruct((1, data.max_length, arch.cap_feat_dim), jnp.dtype(data.dtype)),
            "length": jax.ShapeDtypeStruct((1,), jnp.int32),
        },
    )


def _generator_weights(given: str, base: Path, arch: ZImageConfig) -> Path:
    """Where the generator's weights are: a file, a transformer's folder, or that of a pipeline; empty: the base's own."""
    path = Path(given) if given else base
    path = path / "transformer" if (path / "transformer").is_dir() else path
    if (path / "config.json").is_file():
        theirs = ZImageConfig.from_json(part_json(path.parent, path.name))
        ours = vars(arch)
        if wrong := [f"{key} {value} ({ours[key]})" for key, value in vars(theirs).items() if value != ours[key]]:
            raise InputError(
                f"config.weights.generator: {path} has another architecture than the base (in brackets): {', '.join(wrong)}"
            )
    return path


def _check_scheduler(base: Path, raw: Mapping[str, Any]) -> None:
    wrong = [f"{key}={raw[key]!r}" for key in OFF_GRID if raw.get(key)]
    wrong += [] if raw.get("_class_name", SCHEDULER) == SCHEDULER else [str(raw["_class_name"])]
    wrong += [] if raw.get("num_train_timesteps", 1000) == 1000 else [f"num_train_timesteps={raw['num_train_timesteps']}"]
    if wrong:
        raise InputError(f"config.weights.base: {base}/scheduler is not a {SCHEDULER} with a static shift: {', '.join(wrong)}")


def _warnings(config, base: Path, generator: Path) -> tuple[str, ...]:
    """What is legal and looks like a mistake.  The files of Turbo and of Z-Image differ only in their weights'
    values, so a Turbo base is known by a name that says so, or by being given as the generator too."""
    lines = []
    guided = f"config.align.guidance = {config.align.guidance:g}"
    remedy = "the reference should be Z-Image itself (or set config.align.guidance=1)"
    if config.align.guidance != 1:
        if named := _called_turbo(base):
            lines.append(f"{guided}, but config.weights.base looks like Turbo ({named}), which knows no guidance: {remedy}")
        elif config.weights.generator and os.path.realpath(generator) == os.path.realpath(base / "transformer"):
            lines.append(
                f"{guided}, and config.weights.base and config.weights.generator are the same: if that is Turbo, {remedy}"
            )
    scheduler = generator.parent / "scheduler" / "scheduler_config.json"
    if config.weights.generator and scheduler.is_file():
        shift = part_json(generator.parent, "scheduler", scheduler.name).get("shift", 1.0)
        if shift != config.schedule.shift:
            lines.append(
                f"config.schedule.shift = {config.schedule.shift:g}, the generator's own scheduler has {shift:g}: times "
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
