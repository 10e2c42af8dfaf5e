"""The image side that latent text-to-image backbones share: the size of a latent, and its decoders."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp

from didr_jax.checks import require_choice
from didr_jax.models.attention import BACKENDS
from didr_jax.models.config import building
from didr_jax.models.tiny_vae import CLASS, TinyDecoder, TinyVAEConfig
from didr_jax.models.vae import AutoencoderKL, VAEConfig
from didr_jax.types import Array, InputError, PyTree, Weights
from didr_jax.weights.engine import weights_of
from didr_jax.weights.files import Tensors
from didr_jax.weights.ldm import ldm_vae_table
from didr_jax.weights.tiny_vae import TINY_VAE_TABLE
from didr_jax.weights.vae import NO_ENCODER, VAE_TABLE

REWARD_VAE = "network.reward_vae"
_GIVE = "give the tiny one that was made for it (madebyollin/taesdxl, taesd, taef1)"


Arch = TypeVar("Arch", VAEConfig, TinyVAEConfig)


@dataclasses.dataclass(frozen=True)
class ImageSide(Generic[Arch]):
    """A decoder of latents.

    Attributes:
      arch: of the VAE that it is part of.
      weights: its parameters; no encoder's, which nothing here asks.
      name: under which a step has them among what is frozen.
      apply: `(parameters, raw latents) -> image`.
      whole: with the encoder's, as a file has them; None: of a tiny one.
    """

    arch: Arch
    weights: Weights
    apply: Callable[[PyTree, Array], Array]
    name: str = "vae"
    whole: Weights | None = None

    def decode(self, frozen: PyTree, x0: Array) -> Array:
        """Images `[b, H, W, 3]` of latents: about [-1, 1], unclipped, float32.  `frozen`: `{name: parameters}`."""
        return self.apply(frozen[self.name], self.arch.unscale(x0)).astype(jnp.float32)


def decoding(knobs, arch: VAEConfig, dtype: str) -> Callable[[PyTree, Array], Array]:
    """The `apply` of a pipeline's VAE that computes in `dtype`; `knobs`: `config.network`."""
    vae = _network(knobs, arch, dtype)
    return lambda params, raw: vae.apply({"params": params}, raw, method="decode")


def _network(knobs, arch: VAEConfig, dtype: str) -> AutoencoderKL:
    return AutoencoderKL(arch, backend=knobs.vae_attention, remat=knobs.vae_remat, dtype=jnp.dtype(dtype))


def image_side(config, raw: Mapping[str, Any], opened: Callable[[], Tensors]) -> ImageSide[VAEConfig]:
    """The VAE of a pipeline.

    Args:
      config: for `network.vae_…`.
      raw: its `config.json`.
      opened: opens its tensors, in diffusers' names or those of single files.

    Raises:
      InputError: a VAE that this port does not do, an unknown attention backend.
    """
    knobs = config.network
    require_choice("network.vae_attention", knobs.vae_attention, BACKENDS)
    arch = VAEConfig.from_json(raw)
    vae = _network(knobs, arch, knobs.vae_dtype)
    image = jax.ShapeDtypeStruct((1, arch.factor, arch.factor, arch.in_channels), jnp.float32)
    latent = jax.ShapeDtypeStruct((1, 1, 1, arch.latent_channels), jnp.float32)
    with building("AutoencoderKL"):
        shapes = jax.eval_shape(vae.init, jax.random.key(0), image)["params"]
        decoders = jax.eval_shape(lambda z: vae.init(jax.random.key(0), z, method="decode"), latent)["params"]
    table = lambda tensors: ldm_vae_table(arch) if "encoder.mid.block_1.conv1.weight" in tensors else VAE_TABLE
    part = lambda tensors: [*NO_ENCODER, *table(tensors)]
    where = "config.weights.base: vae"
    weights = weights_of(opened, part, decoders, where=where).cast(knobs.vae_dtype)
    whole = weights_of(opened, table, shapes, where=where)
    return ImageSide(arch, weights, decoding(knobs, arch, knobs.vae_dtype), whole=whole)


def tiny_image_side(config, raw: Mapping[str, Any], opened: Callable[[], Tensors], full: VAEConfig) -> ImageSide[TinyVAEConfig]:
    """The tiny decoder of `network.reward_vae`, on the same latents as the VAE of architecture `full`.

    Args:
      config, raw, opened: as of `image_side`, of the tiny one.

    Raises:
      InputError: a tiny VAE that this port does not do, or one of other latents or of pictures of another size.
    """
    where, knobs = f"config.{REWARD_VAE} = {config.network.reward_vae}", config.network
    arch, dtype = TinyVAEConfig.from_json(raw), jnp.dtype(knobs.reward_vae_dtype)
    for what in ("latent_channels", "out_channels", "factor"):
        ours, theirs = getattr(arch, what), getattr(full, what)
        if ours != theirs:
            raise InputError(f"{where}: {what.replace('_', ' ')} {ours}, the pipeline's VAE has {theirs}; {_GIVE}")
    vae = TinyDecoder(arch, remat=knobs.vae_remat, dtype=dtype)
    with building(CLASS):
        z = jax.ShapeDtypeStruct((1, 1, 1, arch.latent_channels), jnp.float32)
        shapes = jax.eval_shape(vae.init, jax.random.key(0), z)["params"]
    weights = weights_of(opened, TINY_VAE_TABLE, shapes, where=where).cast(dtype)
    return ImageSide(arch, weights, lambda params, raw: vae.apply({"params": params}, raw), name="reward_vae")


def latent_shape(section, vae: VAEConfig, multiple: int) -> tuple[int, int, int]:
    """`[h, w, c]` of the latents of `config.image`.

    Raises:
      InputError: a side is not a positive multiple of `multiple` pixels.
    """
    for side in ("height", "width"):
        n = section[side]
        if n < multiple or n % multiple:
            near = max(multiple, round(n / multiple) * multiple)
            raise InputError(
                f"config.image.{side} = {n} is not divisible by {multiple}, which these networks need; {near} is near"
            )
    return section.height // vae.factor, section.width // vae.factor, vae.latent_channels
