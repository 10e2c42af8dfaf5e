"""The image side that latent text-to-image backbones share: weights on disk, size of a latent, VAE decoder."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from didr_jax.checks import require_choice
from didr_jax.models.attention import BACKENDS
from didr_jax.models.published import PIPELINES
from didr_jax.models.vae import AutoencoderKL, VAEConfig
from didr_jax.recipes.text_to_image.backbone import cast
from didr_jax.types import Array, InputError, PyTree
from didr_jax.weights.engine import to_flax
from didr_jax.weights.files import Tensors, read_tensors
from didr_jax.weights.folder import part_json, require_parts
from didr_jax.weights.vae import VAE_TABLE


def open_weights(config, path: str | os.PathLike) -> Tensors:
    """Tensors still on disk.  A folder's variant is `config.weights.variant`; a file is what it is."""
    return read_tensors(path, variant=config.weights.variant or None if Path(path).is_dir() else None)


def architecture(config, *parts: str) -> dict[str, Mapping[str, Any]]:
    """`config.json` of parts: the folder's, or, without `weights.base`, those of a published pipeline, for plans.

    Raises:
      InputError: a part is absent, an unknown pipeline.
    """
    base = config.weights.base
    if not base:
        require_choice("compile.pipeline", config.compile.pipeline, PIPELINES)
        return PIPELINES[config.compile.pipeline]
    require_parts(base, "weights.base", [f"{part}/config.json" for part in parts])
    return {part: part_json(base, part) for part in parts}


def open_sources(config, base: str | os.PathLike, generator: str | os.PathLike) -> dict[str, Tensors]:
    """`Backbone.sources`: one and the same mapping for both where both paths are one place.  Without `weights.base`,
    for plans: two, and nothing in them."""
    if not config.weights.base:
        return {"base": {}, "generator": {}}
    tensors = open_weights(config, base)
    same = os.path.realpath(base) == os.path.realpath(generator)
    return {"base": tensors, "generator": tensors if same else open_weights(config, generator)}


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


def decoder(
    config, base: Path, raw: Mapping[str, Any]
) -> tuple[VAEConfig, PyTree, Callable[[], PyTree], Callable[[PyTree, Array], Array]]:
    """The VAE of a pipeline with the `config.json` `raw`: its config, and `vae_shapes`, `load_vae` and `decode` of a
    `Backbone`.

    Raises:
      InputError: a VAE that this port does not do, an unknown attention backend.
    """
    knobs, image = config.network, config.image
    require_choice("network.vae_attention", knobs.vae_attention, BACKENDS)
    arch, dtype = VAEConfig.from_json(raw), jnp.dtype(knobs.vae_dtype)
    vae = AutoencoderKL(arch, backend=knobs.vae_attention, remat=knobs.vae_remat, dtype=dtype)

    image = jax.ShapeDtypeStruct((1, image.height, image.width, 3), jnp.float32)
    shapes = cast(jax.eval_shape(vae.init, jax.random.key(0), image)["params"], dtype)

    def load():
        return to_flax(open_weights(config, base / "vae"), VAE_TABLE, shapes)

    def decode(params, x0):
        return vae.apply({"params": params}, arch.unscale(x0), method="decode").astype(jnp.float32)

    return arch, shapes, load, decode
