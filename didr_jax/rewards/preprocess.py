"""From images in [-1, 1] to what a reward's image tower was trained on, differentiably.

Each published reward resizes 8-bit images with PIL.  The same arithmetic, without the rounding to 8 bits:
antialiased bicubic (Keys' kernel, a = -1/2, widened by the shrink factor), rows first, then columns, clipped
to the valid range after each pass as 8-bit images are.  Rounded to 8 bits, the result is PIL's within one level.
"""

import functools
from typing import Callable

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
def _bicubic(n_in: int, n_out: int) -> np.ndarray:
    """Weights `[n_out, n_in]` of a one-dimensional antialiased bicubic resize."""
    scale = n_in / n_out
    centre = (np.arange(n_out) + 0.5) * scale - 0.5
    t = np.abs(np.arange(n_in) - centre[:, None]) / max(scale, 1)
    w = np.where(t < 1, (1.5 * t - 2.5) * t**2 + 1, np.where(t < 2, ((2.5 - 0.5 * t) * t - 4) * t + 2, 0))
    return (w / w.sum(axis=1, keepdims=True)).astype(np.float32)


def resize_bicubic(x: Array, height: int, width: int) -> Array:
    """Antialiased bicubic resize of `x [b, h, w, c]` in [0, 1] -> `[b, height, width, c]` in [0, 1], float32.

    Source: `PIL.Image.resize(resample=BICUBIC)`, also `torchvision.transforms.Resize` on PIL images.
    """
    einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)  # TPUs would take bf16 products
    if x.shape[2] != width:
        x = _clip01(einsum("bhwc,vw->bhvc", x, _bicubic(x.shape[2], width)))
    if x.shape[1] != height:
        x = _clip01(einsum("bhwc,vh->bvwc", x, _bicubic(x.shape[1], height)))
    return x


def _unit(images: Array) -> Array:
    """[-1, 1] -> [0, 1] in float32; values beyond the range are clipped, as saving an image does."""
    return _clip01(images.astype(jnp.float32) / 2 + 0.5)


def _standardise(x: Array) -> Array:
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
    x = resize_bicubic(_unit(images), height, width)
    return _standardise(x[:, top : top + size, left : left + size])


def resize_and_pad(images: Array, size: int = 224) -> Array:
    """Longest side to `size`, black padding to a square, CLIP mean and std: `[b, size, size, 3]` from [-1, 1].

    The odd pixel of padding goes to the bottom or right.  Source: hpsv2's `ResizeMaxSize(fill=0)`, which pads
    before normalising: black is pixel value 0, not the mean.
    """
    h, w = images.shape[1:3]
    height, width = (max(1, round(n * (size / max(h, w)))) for n in (h, w))
    top, left = (size - height) // 2, (size - width) // 2
    x = resize_bicubic(_unit(images), height, width)
    pads = ((0, 0), (top, size - height - top), (left, size - width - left), (0, 0))
    return _standardise(jnp.pad(x, pads))
