"""The crops and resizes of published protocols, exactly, on the host.

A picture is `[h, w, 3]`, uint8 or float32 in [0, 255].  FIDs under different resizes differ by tenths to points
(Parmar et al. 2104.11222), and so do they when the odd pixel of a crop goes to the other side.
"""

from collections.abc import Callable

import numpy as np

from didr_jax.types import InputError

Picture = np.ndarray


def centre(x: Picture, size: int, half: Callable[[float], int] = round) -> Picture:
    """The middle `size` x `size`.  `half` of an odd margin: torchvision rounds half to even, others cut it off (`int`)."""
    h, w = x.shape[:2]
    if min(h, w) < size:
        raise InputError(f"a picture of {h}x{w} has no middle of {size}x{size}; this protocol needs larger pictures")
    top, left = (int(half((n - size) / 2)) for n in (h, w))
    return x[top : top + size, left : left + size]


def square(x: Picture, half: Callable[[float], int] = round) -> Picture:
    """The middle square, as large as the short side."""
    return centre(x, min(x.shape[:2]), half)


def pil(x: Picture, height: int, width: int, kind: str) -> Picture:
    """PIL's resize of an 8-bit picture, which rounds to 8 bits after each pass.  `kind`: bicubic or lanczos."""
    from PIL import Image

    return np.asarray(Image.fromarray(x).resize((width, height), Image.Resampling[kind.upper()]))


def pil_short_side(x: Picture, size: int) -> Picture:
    """Short side to `size`, bicubic, the long one to `int(size · long / short)`: torchvision's and CLIP's `Resize`."""
    short = min(x.shape[:2])
    height, width = (size if n == short else int(size * n / short) for n in x.shape[:2])
    return pil(x, height, width, "bicubic")


def pil_float(x: Picture, size: int) -> Picture:
    """clean-fid's resize: PIL's bicubic on each channel as float32, clipped to [0, 255], not rounded."""
    from PIL import Image

    channels = (Image.fromarray(x[..., i].astype(np.float32)) for i in range(3))
    resized = [np.asarray(c.resize((size, size), Image.Resampling.BICUBIC)) for c in channels]
    return np.stack(resized, axis=-1).clip(0, 255)


def tensorflow_bilinear(x: Picture, size: int) -> Picture:
    """TensorFlow 1's `resize_bilinear`: no antialiasing, pixel i from i · n/size, so that corners are not centred.

    Operation by operation as torch-fidelity's `interpolate_bilinear_2d_like_tensorflow1x`: equal to the last bit.
    """
    x = x.astype(np.float32)
    for axis in (1, 0):
        n = x.shape[axis]
        position = np.arange(size, dtype=np.float32) * np.float32(n / size)
        x = _between(x, axis, position)
    return x


def torch_bilinear(x: Picture, size: int) -> Picture:
    """`torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`: no antialiasing, corners centred."""
    x = x.astype(np.float32)
    for axis in (1, 0):
        scale = np.float64(np.float32(x.shape[axis] / size))  # torch multiplies and subtracts in one rounding
        position = ((np.arange(size) + 0.5) * scale - 0.5).astype(np.float32)
        x = _between(x, axis, np.maximum(position, 0))
    return x


def _between(x: Picture, axis: int, position: np.ndarray) -> Picture:
    """Linear interpolation along one axis, the last pixel repeated."""
    low = position.astype(np.int64)
    high = np.minimum(low + 1, x.shape[axis] - 1)
    weight = np.expand_dims((position - low.astype(np.float32)).astype(np.float32), [i for i in range(3) if i != axis])
    below, above = np.take(x, low, axis), np.take(x, high, axis)
    return below + (above - below) * weight


# The steps a protocol is made of: name -> (picture, its arguments) -> picture.
STEPS: dict[str, Callable[..., Picture]] = {
    "square": square,
    "square_floor": lambda x: square(x, int),
    "centre": centre,
    "lanczos": lambda x, size: pil(x, size, size, "lanczos"),
    "bicubic": lambda x, size: pil(x, size, size, "bicubic"),
    "short_side": pil_short_side,
    "bicubic_float": pil_float,
    "tensorflow_bilinear": tensorflow_bilinear,
    "torch_bilinear": torch_bilinear,
}

Steps = tuple[tuple, ...]


def prepare(x: Picture, steps: Steps) -> Picture:
    """`x`, 8-bit RGB, through the steps `(name, *arguments)`."""
    if x.dtype != np.uint8 or x.ndim != 3 or x.shape[2] != 3:
        raise InputError(f"a picture is [h, w, 3], uint8 or float in [-1, 1], not {x.dtype} {list(x.shape)}")
    for name, *arguments in steps:
        x = STEPS[name](x, *arguments)
    return x


def to_8_bit(x: np.ndarray, how: str) -> np.ndarray:
    """A sampler's pictures `[..., h, w, 3]` in [-1, 1] -> uint8.

    `how`: "truncate", as DMD2's evaluation does, or "round", as diffusers saves pictures; half a grey level between.
    """
    x = (np.asarray(x, np.float32) + 1) * 127.5
    return (np.rint(x) if how == "round" else x).clip(0, 255).astype(np.uint8)
