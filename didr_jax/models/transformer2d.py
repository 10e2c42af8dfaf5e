"""Attention over the pixels of a feature map, with cross-attention to the text.

Sources: `Transformer2DModel`, `BasicTransformerBlock` of diffusers.
"""

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from didr_jax.models.attention import attend
from didr_jax.models.remat import rematerialised
from didr_jax.models.resnet import GroupNorm
from didr_jax.types import Array


class Attention(nn.Module):
    """Multi-head attention of `x [b, n, d]` to `context [b, m, e]` (itself if None) → `[b, n, d]`."""

    heads: int
    bias: bool = False
    backend: str = "xla"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, context: Array | None = None) -> Array:
        width = x.shape[-1]
        dense = functools.partial(nn.Dense, width, dtype=self.dtype, param_dtype=self.param_dtype)
        heads = lambda y: y.reshape(*y.shape[:2], self.heads, width // self.heads)
        context = x if context is None else context
        q = heads(dense(use_bias=self.bias, name="to_q")(x))
        k = heads(dense(use_bias=self.bias, name="to_k")(context))
        v = heads(dense(use_bias=self.bias, name="to_v")(context))
        return dense(name="to_out")(attend(q, k, v, backend=self.backend).reshape(x.shape))


class GEGLU(nn.Module):
    """Linear(gelu(gate) · value), four times as wide inside (arXiv 2002.05202)."""

    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        value, gate = jnp.split(nn.Dense(8 * x.shape[-1], name="proj_in", **types)(x), 2, axis=-1)
        return nn.Dense(x.shape[-1], name="proj_out", **types)(value * nn.gelu(gate, approximate=False))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward; each normalised first and added to the stream."""

    heads: int
    backend: str = "xla"
    cross_backend: str = "xla"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, context: Array) -> tuple[Array, None]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        norm = functools.partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False, **types)
        x += Attention(self.heads, backend=self.backend, name="attn1", **types)(norm(name="norm1")(x))
        x += Attention(self.heads, backend=self.cross_backend, name="attn2", **types)(norm(name="norm2")(x), context)
        return x + GEGLU(name="ff", **types)(norm(name="norm3")(x)), None  # (carry, no output) of a scan


class Transformer2D(nn.Module):
    """`layers` equal `TransformerBlock`s over the pixels, between two projections, plus a skip.

    `x [b, h, w, c]`, `context [b, m, e]` → `[b, h, w, c]`.  The blocks are one scanned block whose
    parameters have a leading axis of length `layers` (also when it is one): SDXL's ten-layer stacks
    compile as one layer does.
    """

    layers: int
    heads: int
    groups: int
    backend: str = "xla"
    cross_backend: str = "xla"
    remat: str = "none"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, context: Array) -> Array:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        b, h, w, c = x.shape
        y = GroupNorm(self.groups, 1e-6, name="norm", **types)(x).reshape(b, h * w, c)
        y = nn.Dense(c, name="proj_in", **types)(y)
        block = rematerialised(TransformerBlock, self.remat, prevent_cse=False)
        blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.layers,
        )
        y, _ = blocks(self.heads, self.backend, self.cross_backend, name="transformer_blocks", **types)(y, context)
        return x + nn.Dense(c, name="proj_out", **types)(y).reshape(b, h, w, c)
