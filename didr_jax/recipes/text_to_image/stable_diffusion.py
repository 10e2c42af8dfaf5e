"""Stable Diffusion XL and 1.5 as backbones of `text_to_image`; the folder says which.

The reference is the folder's UNet.  The generator is a UNet of the same architecture, evaluated at a few
fixed timesteps (DMD2, arXiv 2405.14867: 999, 749, 499, 249), or once on unit noise z (τ = 399 for SDXL):

    x0 = (z − σ_τ ε̂(z, τ)) / α_τ                                                               (1)

Guidance's unconditional branch of SDXL is the zero embedding and the zero pooled embedding, that of
SD 1.5 the embedding of the empty prompt.
"""

import functools

import jax
import jax.numpy as jnp

from didr_jax.checks import require_choice
from didr_jax.models.attention import BACKENDS
from didr_jax.models.config import building
from didr_jax.models.unet import UNet
from didr_jax.models.unet_config import UNetConfig
from didr_jax.recipes.text_to_image.backbone import Backbone
from didr_jax.recipes.text_to_image.scheduler import FILE, discrete_prediction, few_step_scheduler, timesteps_of
from didr_jax.text.cache import digest_files, digest_tensors, digest_texts
from didr_jax.text.clip import clip_encoder, parts
from didr_jax.types import InputError
from didr_jax.weights import single_file
from didr_jax.weights.clip import OPEN_CLIP_TEXT, TEXT, load_text
from didr_jax.weights.folder import part_json
from didr_jax.weights.ldm import ldm_unet_table, ldm_vae_table
from didr_jax.weights.unet import unet_table

MAX_TOKENS = 77  # of a prompt
REPOSITORIES = {
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
}


class StableDiffusion(Backbone):
    """SDXL or SD 1.5: `text` is {"prompt": [b, 77, d]}, and {"pooled": [b, p]} for SDXL."""

    part = "unet"
    pipeline_class = property(lambda self: "StableDiffusionXLPipeline" if self.xl else "StableDiffusionPipeline")
    network_class = "UNet2DConditionModel"
    single_adapters = "kohya"
    all_text_parts = parts(xl=True)
    single_name = "input_blocks.0.0.weight"

    @functools.cached_property
    def arch(self) -> UNetConfig:
        return UNetConfig.from_json(self.config_json)

    @property
    def xl(self) -> bool:
        return self.arch.added_time_dim is not None

    @property
    def zero_text(self) -> bool:
        return self.xl

    @property
    def text_parts(self):
        return parts(self.xl)

    @property
    def table(self):
        return unet_table(self.arch)

    @property
    def single_table(self):
        return ldm_unet_table(self.arch)

    @property
    def repository(self) -> str:
        return REPOSITORIES.get(self.config.compile.pipeline, REPOSITORIES["sdxl"])

    @property
    def multiple(self) -> int:
        return self.image.arch.factor * 2 ** (len(self.arch.channels) - 1)

    @property
    def clip_tokenizer(self) -> str | None:
        return str(self.folder / "tokenizer") if self.given else None

    @functools.cached_property
    def unet(self) -> UNet:
        knobs = self.config.network
        for name in ("attention", "cross_attention"):
            require_choice(f"network.{name}", knobs[name], BACKENDS)
        backends = dict(backend=knobs.attention, cross_backend=knobs.cross_attention)
        return UNet(self.arch, **backends, remat=knobs.remat, dtype=jnp.dtype(knobs.dtype))

    def network(self, params, x_t, t, text, dtype=None):
        added = None
        if self.xl:  # original size, top-left corner of the crop, target size: an uncropped image of its own size
            height, width = self.config.image.height, self.config.image.width
            ids = jnp.tile(jnp.array([[height, width, 0, 0, height, width]], jnp.float32), (len(x_t), 1))
            added = {"text_embeds": text["pooled"], "time_ids": ids}
        unet = self.unet if dtype is None else self.unet.clone(dtype=dtype)
        eps = unet.apply({"params": params}, x_t, self.schedule.timestep(t), text["prompt"], added)
        return eps.astype(jnp.float32)

    @functools.cached_property
    def shapes(self):
        side = 2 ** (len(self.arch.channels) - 1)  # parameters do not depend on the size of an image

        def init(x):
            text = {name: jnp.zeros((1, *a.shape[1:])) for name, a in self.text_shapes.items()}
            added = {"text_embeds": text["pooled"], "time_ids": jnp.zeros((1, 6))} if self.xl else None
            return self.unet.init(jax.random.key(0), x, jnp.zeros(1), text["prompt"], added)["params"]

        with building("UNet2DConditionModel"):
            return jax.eval_shape(init, jax.ShapeDtypeStruct((1, side, side, self.arch.in_channels), jnp.float32))

    @functools.cached_property
    def text_shapes(self):
        dtype, arch = jnp.dtype(self.config.data.dtype), self.arch
        shapes = {"prompt": jax.ShapeDtypeStruct((1, MAX_TOKENS, arch.context_dim), dtype)}
        if self.xl:
            pooled = (arch.added_dim or 0) - 6 * (arch.added_time_dim or 0)
            if pooled < 1:
                raise InputError("UNet2DConditionModel config.json: projection_class_embeddings_input_dim leaves no pooled text")
            shapes["pooled"] = jax.ShapeDtypeStruct((1, pooled), dtype)
        return shapes

    def encoder(self):
        return clip_encoder(self.folder, self.xl, self.opened)

    def text_digest(self) -> str:
        folders = digest_files(self.folder / name for name in self.text_parts)
        inside = [part for part in self.text_parts if part in single_file.PARTS and self.in_file(part)]
        return digest_texts([folders, *(digest_tensors(self.opened(part)()) for part in inside)]) if inside else folders

    def check(self) -> None:
        arch, vae = self.arch, self.image.arch
        if not arch.in_channels == arch.out_channels == vae.latent_channels:
            raise InputError(
                f"config.weights.base: the UNet maps {arch.in_channels} to {arch.out_channels} channels, the VAE's latents "
                f"have {vae.latent_channels}; give a text-to-image pipeline (no inpainting, no refiner)"
            )

    @functools.cached_property
    def prediction(self) -> str:
        """What the UNet predicts, after the folder's scheduler was compared with the config's schedule."""
        return discrete_prediction(self.folder, self.config, self.schedule.name) if self.given else "eps"

    @functools.cached_property
    def scheduler_json(self):
        raw = part_json(self.folder, "scheduler", FILE) if (self.folder / "scheduler" / FILE).is_file() else {}
        return few_step_scheduler(raw, self.config, self.few_step, self.prediction)

    @property
    def timesteps(self) -> list[int] | None:
        return None if self.scheduler_json is not None else timesteps_of(self.few_step)

    def checkpoint(self):
        assert self.image.whole is not None, "of a pipeline's VAE"
        parts = {"vae": (single_file.PARTS["vae"][0], self.image.whole, ldm_vae_table(self.image.arch))}
        first = single_file.PARTS["text_encoder"][0 if self.xl else 1]
        tables = {"text_encoder": (first, TEXT), "text_encoder_2": (single_file.PARTS["text_encoder_2"][0], OPEN_CLIP_TEXT)}
        for part in self.text_parts:
            if part in tables:
                prefix, table = tables[part]
                parts[part] = (prefix, load_text(self.folder / part, self.opened(part))[1], table)
        return parts
