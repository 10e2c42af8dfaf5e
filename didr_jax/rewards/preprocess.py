"""From images in [-1, 1] to what a reward's image tower was trained on, differentiably.

Antialiased bicubic: Keys' kernel (a = -1/2) widened by the shrink factor, rows first, then columns, as PIL and
torch do it.  Rewards that resize 8-bit images with PIL clip to the valid range after each pass; so do we, without
the rounding to 8 bits: rounded, the result is PIL's within one level.  HPSv2 resizes float tensors and never clips.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from didr_jax.types import Array

# Means and standard deviations of CLIP's training images, per channel of [0, 1] RGB (openai/CLIP, clip.py).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

ROUNDING = 1e-5  # float noise allowed beyond [0, 1] before the clip's gradient vanishes


def _clip01(x: Array) -> Array:
    """Clip to [0, 1] with its true derivative: 1 inside, bounds included, 0 outside.

    `jnp.clip` halves the gradient at the bounds, and rounding would switch it at random in black and white
    areas; within `ROUNDING` of the range the value passes untouched.
    """
    return jnp.where((x < -ROUNDING) | (x > 1 + ROUNDING), jnp.clip(x, 0, 1), x)


@functools.lru_cache
def _bicubic(n_in: int, n_out: int, antialias: bool) -> np.ndarray:
    """Weights `[n_out, n_in]` of a one-dimensional bicubic resize.

    Without antialiasing: torch's interpolation, a = -3/4, four taps, the border pixel repeated beyond the border.
    """
    scale = n_in / n_out
    a, wide = (-0.5, max(scale, 1)) if antialias else (-0.75, 1)
    reach = 0 if antialias else 2
    pixels = np.arange(-reach, n_in + reach)
    t = np.abs(pixels - ((np.arange(n_out) + 0.5) * scale - 0.5)[:, None]) / wide
    near, far = ((a + 2) * t - (a + 3)) * t**2 + 1, (((t - 5) * t + 8) * t - 4) * a
    w = np.where(t < 1, near, np.where(t < 2, far, 0))
    inside = w[:, reach : reach + n_in]
    inside[:, 0] += w[:, :reach].sum(axis=1)
    inside[:, -1] += w[:, reach + n_in :].sum(axis=1)
    return (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)


def resize_bicubic(x: Array, height: int, width: int, *, clip: bool = True, antialias: bool = True) -> Array:
    """Bicubic resize of `x [b, h, w, c]` in [0, 1] -> `[b, height, width, c]`, float32.

    `clip`: to [0, 1] after each pass.  Source: `PIL.Image.resize(resample=BICUBIC)` with `clip`,
    `torch.nn.functional.interpolate(mode="bicubic")` without.
    """
    einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)  # TPUs would take bf16 products
    bound = _clip01 if clip else lambda x: x
    if x.shape[2] != width:
        x = bound(einsum("bhwc,vw->bhvc", x, _bicubic(x.shape[2], width, antialias)))
    if x.shape[1] != height:
        x = bound(einsum("bhwc,vh->bvwc", x, _bicubic(x.shape[1], height, antialias)))
    return x


def unit_range(images: Array) -> Array:
    """[-1, 1] -> [0, 1] in float32; values beyond the range are clipped, as saving an image does."""
    return _clip01(images.astype(jnp.float32) / 2 + 0.5)


def standardise(x: Array) -> Array:
    """CLIP's mean and standard deviation out of `x [b, h, w, 3]` in [0, 1]."""
    return (x - jnp.asarray(CLIP_MEAN)) / jnp.asarray(CLIP_STD)


def resize_and_crop(images: Array, size: int = 224, half: Callable[[float], int] = round) -> Array:
    """Shortest side to `size`, centre crop, CLIP mean and std: `[b, h, w, 3]` in [-1, 1] -> `[b, size, size, 3]`.

    The long side becomes `int(size * long / short)`.  When an odd number of pixels is to be cropped, `half`
    decides: torchvision's `CenterCrop` takes `round(d / 2)` (half to even), Hugging Face's processors `int(d / 2)`.
    Source: openai/CLIP `_transform`, ImageReward `_transform`, transformers `CLIPImageProcessor`.
    """
    h, w = images.shape[1:3]
    height, width = (int(size * n / min(h, w)) if n > min(h, w) else size for n in (h, w))
    top, left = (int(half((n - size) / 2)) for n in (height, width))
    x = resize_bicubic(unit_range(images), height, width)
    return standardise(x[:, top : top + size, left : left + size])


def resize_and_pad(images: Array, size: int = 224, *, antialias: bool = True) -> Array:
    """Longest side to `size`, black padding to a square, CLIP mean and std: `[b, size, size, 3]` from [-1, 1].

    The odd pixel of padding goes to the bottom or right; overshoot of the resize is not clipped.  Source: hpsv2
    1.2.0's `ToTensor, ResizeMaxSize(fill=0), Normalize`: black is pixel value 0, not the mean.  torchvision
    antialiases tensors since 0.17; `antialias=False` is what older ones did.
    """
    h, w = images.shape[1:3]
    height, width = (max(1, round(n * (size / max(h, w)))) for n in (h, w))
    top, left = (size - height) // 2, (size - width) // 2
    x = resize_bicubic(unit_range(images), height, width, clip=False, antialias=antialias)
    pads = ((0, 0), (top, size - height - top), (left, size - width - left), (0, 0))
    return standardise(jnp.pad(x, pads))
