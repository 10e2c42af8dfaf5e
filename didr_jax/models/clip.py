"""CLIP's image and text towers: OpenAI's, OpenCLIP's, and the text encoders of Stable Diffusion.

Source: Radford et al. 2103.00020; `CLIPModel` and `CLIPTextModelWithProjection` of transformers, which equal
open_clip's `CLIP` to float error once `act="gelu"`.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from didr_jax.models.encoder import Encoder
from didr_jax.models.rows import Network
from didr_jax.types import Array, InputError


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """One image tower.  `embed=None`: no projection, the embedding is the normalised class token."""

    width: int
    depth: int
    heads: int
    hidden: int
    patch: int
    image_size: int = 224
    embed: int | None = None
    act: str = "gelu"
    eps: float = 1e-5


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """One text tower.

    `eos`: the prompt is pooled at the first token with this id; `None` pools at the largest id instead,
    which is open_clip's rule and that of Hugging Face configs that say `eos_token_id=2`.
    """

    width: int
    depth: int
    heads: int
    hidden: int
    vocab: int = 49408
    positions: int = 77
    embed: int | None = None
    act: str = "gelu"
    eps: float = 1e-5
    eos: int | None = None


# The published architectures, (image, text), by the name open_clip gives them.
ARCHITECTURES: dict[str, tuple[VisionConfig, TextConfig]] = {
    "ViT-L-14-quickgelu": (
        VisionConfig(1024, 24, 16, 4096, patch=14, embed=768, act="quick_gelu"),
        TextConfig(768, 12, 12, 3072, embed=768, act="quick_gelu"),
    ),
    "ViT-L-14": (VisionConfig(1024, 24, 16, 4096, patch=14, embed=768), TextConfig(768, 12, 12, 3072, embed=768)),
    "ViT-H-14": (VisionConfig(1280, 32, 16, 5120, patch=14, embed=1024), TextConfig(1024, 24, 16, 4096, embed=1024)),
    "ViT-H-14-quickgelu": (
        VisionConfig(1280, 32, 16, 5120, patch=14, embed=1024, act="quick_gelu"),
        TextConfig(1024, 24, 16, 4096, embed=1024, act="quick_gelu"),
    ),
    "ViT-bigG-14": (VisionConfig(1664, 48, 16, 8192, patch=14, embed=1280), TextConfig(1280, 32, 20, 5120, embed=1280)),
}


def architecture(name: str) -> tuple[VisionConfig, TextConfig]:
    """(image, text) configuration of a published CLIP; raises `InputError` for an unknown name."""
    if name not in ARCHITECTURES:
        raise InputError(f"CLIP architecture {name!r} is unknown; one of {', '.join(ARCHITECTURES)} is")
    return ARCHITECTURES[name]


class VisionTower(Network):
    """Image tower: patches and a class token through a pre-norm encoder."""

    config: VisionConfig
    remat: str = "none"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pixels: Array) -> Array:
        """`pixels [b, size, size, 3]`, already normalised by the tower's mean and std -> `[b, embed]`.

        The embedding is not scaled to unit length.  Raises `InputError` for another image size: the position
        embedding is fixed, `rewards.preprocess` makes the size.
        """
        c, kinds = self.config, dict(dtype=self.dtype, param_dtype=self.param_dtype)
        if pixels.shape[1:] != (c.image_size, c.image_size, 3):
            raise InputError(
                f"the image tower takes [b, {c.image_size}, {c.image_size}, 3], got "
                f"{list(pixels.shape)}; resize with didr_jax.rewards.preprocess"
            )
        norm = lambda name: nn.LayerNorm(epsilon=c.eps, name=name, **kinds)
        x = nn.Conv(
            c.width, (c.patch, c.patch), (c.patch, c.patch), padding="VALID", use_bias=False, name="patch_embed", **kinds
        )(pixels.astype(self.dtype))
        x = x.reshape(x.shape[0], -1, c.width)
        normal = nn.initializers.normal(c.width**-0.5)
        cls = self.param("class_embed", normal, (c.width,), self.param_dtype).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, c.width)), x], axis=1)
        x = x + self.param("pos_embed", normal, x.shape[1:], self.param_dtype).astype(self.dtype)
        x, _ = Encoder(c.depth, c.heads, c.hidden, c.act, c.eps, remat=self.remat, name="encoder", **kinds)(norm("pre_norm")(x))
        x = norm("post_norm")(x[:, 0])
        return x if c.embed is None else nn.Dense(c.embed, use_bias=False, name="proj", **kinds)(x)


class TextOutput(NamedTuple):
    """What diffusion models and rewards read from a text tower."""

    penultimate: Array  # [b, n, d]  hidden_states[-2], no final norm: the conditioning of SDXL
    last: Array  # [b, n, d]  after the final norm: the conditioning of SD 1.5
    pooled: Array  # [b, d]     `last` at the end-of-text token
    embedding: Array  # [b, e]     projected `pooled` (`pooled` itself without a projection), not unit length


class TextTower(Network):
    """Text tower: causal, so padding after the end-of-text token never reaches the pooled embedding."""

    config: TextConfig
    remat: str = "none"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, ids: Array) -> TextOutput:
        """Token `ids [b, n]`, n ≤ positions -> `TextOutput`."""
        c, kinds = self.config, dict(dtype=self.dtype, param_dtype=self.param_dtype)
        if ids.shape[1] > c.positions:
            raise InputError(
                f"a prompt of {ids.shape[1]} tokens exceeds the text tower's {c.positions}; truncate it in the tokenizer"
            )
        normal = nn.initializers.normal(0.02)
        pos = self.param("pos_embed", normal, (c.positions, c.width), self.param_dtype)
        x = nn.Embed(c.vocab, c.width, embedding_init=normal, name="token_embed", **kinds)(ids)
        x = x + pos[: ids.shape[1]].astype(self.dtype)
        x, penultimate = Encoder(
            c.depth, c.heads, c.hidden, c.act, c.eps, causal=True, remat=self.remat, name="encoder", **kinds
        )(x)
        last = nn.LayerNorm(epsilon=c.eps, name="final_norm", **kinds)(x)
        end = jnp.argmax(ids if c.eos is None else ids == c.eos, axis=1)
        pooled = jnp.take_along_axis(last, end[:, None, None], axis=1)[:, 0]
        embedding = pooled if c.embed is None else nn.Dense(c.embed, use_bias=False, name="proj", **kinds)(pooled)
        return TextOutput(penultimate, last, pooled, embedding)
