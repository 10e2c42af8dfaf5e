"""Stable Diffusion XL and 1.5 as backbones of `text_to_image`; the folder says which.

The reference is the folder's UNet.  The generator is a UNet of the same architecture, evaluated at a few
fixed timesteps (DMD2, arXiv 2405.14867: 999, 749, 499, 249), or once on unit noise z (τ = 399 for SDXL):

    x0 = (z − σ_τ ε̂(z, τ)) / α_τ                                                               (1)

Guidance's unconditional branch of SDXL is the zero embedding and the zero pooled embedding, that of
SD 1.5 the embedding of the empty prompt.
"""

from pathlib import Path

import jax
import jax.numpy as jnp

from didr_jax.builders import make_few_step, make_schedule
from didr_jax.checks import require_choice
from didr_jax.models.attention import BACKENDS
from didr_jax.models.unet import UNet
from didr_jax.models.unet_config import UNetConfig
from didr_jax.models.vae import VAEConfig
from didr_jax.recipes.text_to_image.backbone import Backbone
from didr_jax.recipes.text_to_image.latents import architecture, decoder, latent_shape, open_sources
from didr_jax.text.cache import digest_files
from didr_jax.text.clip import clip_encoder, parts
from didr_jax.types import InputError
from didr_jax.weights.folder import part_json, require_parts
from didr_jax.weights.unet import unet_table

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v"}  # diffusers' names -> ours
MAX_TOKENS = 77  # of a prompt


def stable_diffusion(config) -> Backbone:
    """Reads all but the weights themselves.  Without `weights.base`, for plans: a published architecture, no weights.

    Raises:
      InputError: a part is absent, an architecture or scheduler is not one that this port does, or the
        image size is not one that the networks can do.
    """
    base, knobs = Path(config.weights.base), config.network
    raw = architecture(config, "unet", "vae")
    arch = UNetConfig.from_json(raw["unet"])
    xl = arch.added_time_dim is not None
    if config.weights.base:
        require_parts(base, "weights.base", [*parts(xl), "unet", "vae"])
    for name in ("attention", "cross_attention"):
        require_choice(f"network.{name}", knobs[name], BACKENDS)

    vae, vae_shapes, load_vae, decode = decoder(config, base, raw["vae"])
    event_shape = _latent_shape(config, arch, vae)
    schedule = make_schedule(config)
    backends = dict(backend=knobs.attention, cross_backend=knobs.cross_attention)
    unet = UNet(arch, **backends, remat=knobs.remat, dtype=jnp.dtype(knobs.dtype))
    height, width = config.image.height, config.image.width

    def network(params, x_t, t, text):
        added = None
        if xl:  # original size, top-left corner of the crop, target size: an uncropped image of its own size
            ids = jnp.tile(jnp.array([[height, width, 0, 0, height, width]], jnp.float32), (len(x_t), 1))
            added = {"text_embeds": text["pooled"], "time_ids": ids}
        eps = unet.apply({"params": params}, x_t, schedule.timestep(t), text["prompt"], added)
        return eps.astype(jnp.float32)

    def init():
        text = {"prompt": jnp.zeros((1, 1, arch.context_dim)), "pooled": jnp.zeros((1, _pooled_width(arch)))}
        added = {"text_embeds": text["pooled"], "time_ids": jnp.zeros((1, 6))} if xl else None
        return unet.init(jax.random.key(0), jnp.zeros((1, *event_shape)), jnp.zeros(1), text["prompt"], added)["params"]

    text_shapes = {"prompt": jax.ShapeDtypeStruct((1, MAX_TOKENS, arch.context_dim), config.data.dtype)}
    if xl:
        text_shapes["pooled"] = jax.ShapeDtypeStruct((1, _pooled_width(arch)), config.data.dtype)

    return Backbone(
        schedule=schedule,
        prediction=_prediction(base, config, schedule),
        event_shape=event_shape,
        few_step=make_few_step(config, schedule),
        network=network,
        shapes=jax.eval_shape(init),
        table=unet_table(arch),
        sources=open_sources(config, base / "unet", config.weights.generator or base / "unet"),
        part="unet",
        config_json=raw["unet"],
        zero_text=xl,
        load_vae=load_vae,
        decode=decode,
        text_digest=lambda: digest_files(base / name for name in parts(xl)),
        load_encoder=lambda: clip_encoder(base, xl),
        clip_tokenizer=str(base / "tokenizer"),
        vae_shapes=vae_shapes,
        text_shapes=text_shapes,
    )


def _pooled_width(arch: UNetConfig) -> int:
    return arch.added_dim - 6 * arch.added_time_dim if arch.added_time_dim else 0


def _latent_shape(config, arch: UNetConfig, vae: VAEConfig) -> tuple[int, int, int]:
    if not arch.in_channels == arch.out_channels == vae.latent_channels:
        raise InputError(
            f"config.weights.base: the UNet maps {arch.in_channels} to {arch.out_channels} channels, the VAE's latents "
            f"have {vae.latent_channels}; give a text-to-image pipeline (no inpainting, no refiner)"
        )
    return latent_shape(config.image, vae, vae.factor * 2 ** (len(arch.channels) - 1))


def _prediction(base: Path, config, schedule) -> str:
    """What the UNet predicts, after the folder's scheduler was compared with the config's schedule."""
    if not config.weights.base or not (base / "scheduler").is_dir():
        return "eps"
    raw = part_json(base, "scheduler", "scheduler_config.json")
    theirs = {"num_timesteps": raw.get("num_train_timesteps", 1000), "beta_start": raw.get("beta_start", 0.00085),
              "beta_end": raw.get("beta_end", 0.012)}  # fmt: skip
    ours = {"num_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012} | {
        k: v for k, v in config.schedule.items() if k != "name"
    }
    linear_in_root = raw.get("beta_schedule", "scaled_linear") == "scaled_linear"
    if schedule.name != "ddpm" or theirs != ours or not linear_in_root or raw.get("rescale_betas_zero_snr"):
        raise InputError(
            f"config.schedule ({schedule.name}, {ours}) is not that of {base}/scheduler "
            f"({raw.get('beta_schedule')}, {theirs}); the networks only make sense with their own"
        )
    kind = raw.get("prediction_type", "epsilon")
    require_choice("weights.base: prediction_type of its scheduler", kind, PREDICTIONS)
    return PREDICTIONS[kind]
