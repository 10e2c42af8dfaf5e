"""Convolutional parts that the UNet and the autoencoder share.  All NHWC.

Sources: `ResnetBlock2D`, `Upsample2D`, `Downsample2D` of diffusers.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype

from didr_jax.types import Array


def nearest_twice(x: Array) -> Array:
    """`x [b, h, w, c]` → `[b, 2h, 2w, c]`, each entry four times."""
    b, h, w, c = x.shape
    # Broadcast and reshape: unlike a gather, its gradient is a plain sum.
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


class GroupNorm(nn.Module):
    """Group normalisation; statistics and arithmetic in float32, result in `dtype`."""

    groups: int
    eps: float
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        # E[x²] − E[x]² would lose what is left of small variances after large means.
        norm = nn.GroupNorm(
            self.groups, epsilon=self.eps, use_fast_variance=False, dtype=jnp.float32, param_dtype=self.param_dtype
        )
        nn.share_scope(self, norm)
        return norm(x).astype(self.dtype)


class ResnetBlock(nn.Module):
    """norm → silu → conv → (+ time embedding) → norm → silu → conv, plus a skip.

    `x [b, h, w, c]`, `temb [b, d]` or None for the autoencoder → `[b, h, w, channels]`.
    """

    channels: int
    groups: int
    eps: float
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, temb: Array | None = None) -> Array:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        norm = functools.partial(GroupNorm, self.groups, self.eps, **types)
        conv = functools.partial(nn.Conv, self.channels, (3, 3), padding=1, **types)
        h = conv(name="conv1")(nn.silu(norm(name="norm1")(x)))
        if temb is not None:
            h += nn.Dense(self.channels, name="time_emb_proj", **types)(nn.silu(temb))[:, None, None]
        h = conv(name="conv2")(nn.silu(norm(name="norm2")(h)))
        if x.shape[-1] != self.channels:
            x = nn.Dense(self.channels, name="conv_shortcut", **types)(x)  # a 1x1 convolution
        return x + h


class Downsample(nn.Module):
    """Convolution with stride 2.  `padding` is ((top, bottom), (left, right))."""

    padding: tuple = ((1, 1), (1, 1))
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        return nn.Conv(x.shape[-1], (3, 3), strides=2, padding=self.padding, name="conv", **types)(x)


class NearestConv(nn.Conv):
    """`nearest_twice` and then this 3 × 3 convolution, as four 2 × 2 convolutions of x itself: 4/9 of the operations.

    Of the 3 rows that meet an output row, 2 are copies of one row of x, so their weights add up: an even row sees
    (w₀, w₁ + w₂) on the rows i − 1 and i of x, an odd one (w₀ + w₁, w₂) on i and i + 1; columns likewise.  Exact but for
    rounding, at the border too, where both see zeros.  `x [b, h, w, c]` → `[b, 2h, 2w, features]`.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        (b, h, w, c), zeros = x.shape, nn.initializers.zeros_init()
        kernel = self.param("kernel", self.kernel_init, (3, 3, c, self.features), self.param_dtype)
        bias = self.param("bias", zeros, (self.features,), self.param_dtype) if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        phases = [
            jax.lax.conv_general_dilated(
                x, part, (1, 1), ((1 - odd_row, odd_row), (1 - odd, odd)), dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            for odd_row, rows in enumerate(_folded(kernel, 0))
            for odd, part in enumerate(_folded(rows, 1))
        ]
        y = jnp.stack(phases, -2).reshape(b, h, w, 2, 2, self.features)
        y = y.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, self.features)
        return y if bias is None else y + bias


def _folded(kernel: Array, axis: int) -> tuple[Array, Array]:
    """What even and odd places see of three weights along an axis, two each."""
    first, middle, last = jnp.split(kernel, 3, axis)
    return jnp.concatenate([first, middle + last], axis), jnp.concatenate([first + middle, last], axis)


class Upsample(nn.Module):
    """Nearest neighbour to twice the size, cropped to `size` (h, w) if given, and a convolution."""

    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, size: tuple[int, int] | None = None) -> Array:
        b, h, w, c = x.shape
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        if size is None or size == (2 * h, 2 * w):
            return NearestConv(c, (3, 3), name="conv", **types)(x)
        # what is cut off, the convolution sees as zeros
        return nn.Conv(c, (3, 3), padding=1, name="conv", **types)(nearest_twice(x)[:, : size[0], : size[1]])
