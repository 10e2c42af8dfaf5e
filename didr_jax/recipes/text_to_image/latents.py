"""The image side that latent text-to-image backbones share: the size of a latent, and its decoder."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from didr_jax.checks import require_choice
from didr_jax.models.attention import BACKENDS
from didr_jax.models.config import building
from didr_jax.models.vae import AutoencoderKL, VAEConfig
from didr_jax.types import Array, InputError, PyTree, Weights
from didr_jax.weights.engine import weights_of
from didr_jax.weights.files import Tensors
from didr_jax.weights.ldm import ldm_vae_table
from didr_jax.weights.vae import VAE_TABLE


class ImageSide:
    """The VAE of a pipeline.

    Args:
      config: for `image` and `network.vae_…`.
      raw: its `config.json`.
      opened: opens its tensors, in diffusers' names or those of single files.

    Attributes:
      arch: its architecture.
      weights: its parameters.

    Raises:
      InputError: a VAE that this port does not do, an unknown attention backend.
    """

    def __init__(self, config, raw: Mapping[str, Any], opened: Callable[[], Tensors]):
        knobs, image = config.network, config.image
        require_choice("network.vae_attention", knobs.vae_attention, BACKENDS)
        self.arch = VAEConfig.from_json(raw)
        dtype = jnp.dtype(knobs.vae_dtype)
        self._vae = AutoencoderKL(self.arch, backend=knobs.vae_attention, remat=knobs.vae_remat, dtype=dtype)
        size = jax.ShapeDtypeStruct((1, image.height, image.width, 3), jnp.float32)
        with building("AutoencoderKL"):
            shapes = jax.eval_shape(self._vae.init, jax.random.key(0), size)["params"]
        table = lambda tensors: ldm_vae_table(self.arch) if "encoder.mid.block_1.conv1.weight" in tensors else VAE_TABLE
        self.weights: Weights = weights_of(opened, table, shapes, where="config.weights.base: vae").cast(dtype)

    def decode(self, params: PyTree, x0: Array) -> Array:
        """Images `[b, H, W, 3]` of latents: about [-1, 1], unclipped, float32."""
        raw = self.arch.unscale(x0)
        return self._vae.apply({"params": params}, raw, method="decode").astype(jnp.float32)


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
