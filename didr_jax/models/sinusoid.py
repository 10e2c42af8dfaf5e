"""Sinusoidal embedding of a number (arXiv 1706.03762), as diffusion models embed their timestep."""

import math

import jax.numpy as jnp
import numpy as np

from didr_jax.types import Array


def sinusoid(t: Array, dim: int, *, cos_first: bool = True, freq_shift: float = 0) -> Array:
    """`t [...]` → `[..., dim]`, float32: sines and cosines of t at periods 2π…20000π."""
    half = dim // 2
    # t reaches 1000, so one bit of a frequency shows in the angle: the exponent is rounded to float32 as in
    # torch, and its exponential is the nearest float32, which XLA's own exp is not.
    exponents = -math.log(10_000) * np.arange(half, dtype=np.float32) / np.float32(half - freq_shift)
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = t.astype(jnp.float32)[..., None] * frequencies
    parts = [jnp.cos(angles), jnp.sin(angles)] if cos_first else [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(parts, axis=-1)
