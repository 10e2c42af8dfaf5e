"""BLIP's image tower and its image-grounded text encoder, and ImageReward on top of them.

Source: Li et al. 2201.12086; Xu et al. 2304.05977 (THUDM/ImageReward, `BLIP/vit.py`, `BLIP/med.py`);
`BlipForImageTextRetrieval` of transformers has the same towers.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from didr_jax.models.clip import VisionConfig
from didr_jax.models.encoder import Attention, Encoder, Mlp
from didr_jax.models.remat import rematerialised
from didr_jax.models.rows import Network
from didr_jax.types import Array


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The text encoder; the defaults are ImageReward's (bert-base, with [DEC] and [ENC] added)."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    vocab: int = 30524
    positions: int = 512
    act: str = "gelu"
    eps: float = 1e-12


VIT_L_16 = VisionConfig(1024, 24, 16, 4096, patch=16, eps=1e-6)


class ImageEncoder(nn.Module):
    """ViT: all tokens, normalised."""

    config: VisionConfig
    remat: str = "none"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pixels: Array) -> Array:
        """Normalised `pixels [b, size, size, 3]` -> `[b, 1 + patches, width]`."""
        c, kinds = self.config, dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = nn.Conv(c.width, (c.patch, c.patch), (c.patch, c.patch), padding="VALID", name="patch_embed", **kinds)(
            pixels.astype(self.dtype)
        )
        x = x.reshape(x.shape[0], -1, c.width)
        normal = nn.initializers.normal(0.02)
        cls = self.param("class_embed", normal, (1, c.width), self.param_dtype).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, c.width)), x], axis=1)
        x = x + self.param("pos_embed", normal, x.shape[1:], self.param_dtype).astype(self.dtype)
        x, _ = Encoder(c.depth, c.heads, c.hidden, c.act, c.eps, remat=self.remat, name="encoder", **kinds)(x)
        return nn.LayerNorm(epsilon=c.eps, name="norm", **kinds)(x)


class BertBlock(nn.Module):
    """Post-norm: self-attention, cross-attention to the image, MLP, each normalised after its residual."""

    config: BertConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask: Array, image: Array) -> tuple[Array, None]:
        c, kinds = self.config, dict(dtype=self.dtype, param_dtype=self.param_dtype)
        norm = lambda name: nn.LayerNorm(epsilon=c.eps, name=name, **kinds)
        x = norm("attn_norm")(x + Attention(c.heads, name="attn", **kinds)(x, mask=mask))
        x = norm("cross_norm")(x + Attention(c.heads, name="cross", **kinds)(x, context=image))
        return norm("mlp_norm")(x + Mlp(c.hidden, c.act, name="mlp", **kinds)(x)), None


class TextEncoder(nn.Module):
    """BERT whose every block also reads the image."""

    config: BertConfig
    remat: str = "none"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, ids: Array, mask: Array, image: Array) -> Array:
        """`ids [b, n]`, boolean `mask [b, n]` (True: a real token), `image [b, m, e]` -> `[b, n, width]`."""
        c, kinds = self.config, dict(dtype=self.dtype, param_dtype=self.param_dtype)
        normal = nn.initializers.normal(0.02)
        pos = self.param("pos_embed", normal, (c.positions, c.width), self.param_dtype)
        x = nn.Embed(c.vocab, c.width, embedding_init=normal, name="token_embed", **kinds)(ids)
        x = nn.LayerNorm(epsilon=c.eps, name="embed_norm", **kinds)(x + pos[: ids.shape[1]].astype(self.dtype))
        block = rematerialised(BertBlock, self.remat, prevent_cse=False)
        layers = nn.scan(block, length=c.depth, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=nn.broadcast)
        return layers(c, self.dtype, self.param_dtype, name="layers")(x, mask, image)[0]


class LinearHead(Network):
    """Five dense layers with nothing between them, in float32: the head of ImageReward and of Aesthetic.

    Both were trained with dropout only; the activations in their sources are commented out.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[b, d] -> [b]`."""
        x = x.astype(jnp.float32)
        for i, width in enumerate((1024, 128, 64, 16, 1)):
            x = nn.Dense(width, name=f"dense_{i}")(x)
        return x[:, 0]


class ImageReward(Network):
    """Raw, not yet standardised ImageReward of an image and a prompt."""

    vision: VisionConfig = VIT_L_16
    text: BertConfig = BertConfig()
    remat: str = "none"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pixels: Array, ids: Array, mask: Array) -> Array:
        """Normalised `pixels [b, size, size, 3]`, `ids [b, n]`, boolean `mask [b, n]` -> `[b]`, float32."""
        kinds = dict(remat=self.remat, dtype=self.dtype, param_dtype=self.param_dtype)
        image = ImageEncoder(self.vision, name="vision", **kinds)(pixels)
        text = TextEncoder(self.text, name="text", **kinds)(ids, mask, image)
        return LinearHead(name="head")(text[:, 0])
