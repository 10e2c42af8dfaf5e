"""Rotary positions (RoFormer, arXiv 2104.09864) in the two layouts that text-to-image models use."""

import jax.numpy as jnp
import numpy as np

from didr_jax.types import Array


def rotary_table(length: int, width: int, theta: float) -> np.ndarray:
    """Angles p·θ^(−2j/width) of positions p < length, [length, width/2] float32, rounded once from float64."""
    frequencies = theta ** -(np.arange(0, width, 2, dtype=np.float64) / width)
    return np.outer(np.arange(length, dtype=np.float64), frequencies).astype(np.float32)


def rotate_pairs(x: Array, angles: Array) -> Array:
    """Turns the pairs (x_0, x_1), (x_2, x_3), … of `x [b, l, heads, d]` by `angles [b or 1, l, d/2]`.

    Computed in float32, returned in x's type.  Z-Image's layout.
    """
    even = jnp.arange(x.shape[-1]) % 2 == 0
    x32 = x.astype(jnp.float32)
    # Neighbours are swapped by rolls: an axis of length two would be padded to a full tile on a TPU.
    turned = jnp.where(even, -jnp.roll(x32, -1, axis=-1), jnp.roll(x32, 1, axis=-1))
    return _turn(x32, turned, jnp.repeat(angles, 2, axis=-1)).astype(x.dtype)


def rotate_halves(x: Array, angles: Array) -> Array:
    """As `rotate_pairs` for the pairs (x_j, x_{j+d/2}): the layout of Qwen and most language models."""
    x32 = x.astype(jnp.float32)
    first, second = jnp.split(x32, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return _turn(x32, turned, jnp.concatenate([angles, angles], axis=-1)).astype(x.dtype)


def _turn(x: Array, turned: Array, angles: Array) -> Array:
    angles = angles[:, :, None]  # the same for all heads
    return x * jnp.cos(angles) + turned * jnp.sin(angles)
