"""Picture files of others: only of formats on a list, and no larger than a picture is.

Pillow reads some fifty formats by what a file holds, whatever its name; one of them is handed to another program
(PostScript, to Ghostscript).
"""

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from didr_jax.types import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
MOST_PIXELS = 2**27  # 11,585 squared: 400 MB as RGB
# Modes of at most 8 bits a value, which Pillow makes RGB of by itself; grey of more it cuts off at 255.
SHALLOW = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
_BITS, _WHITE_IS = 258, 262  # tags of TIFF


@contextlib.contextmanager
def opened(source: str | os.PathLike | bytes) -> Iterator["Image"]:
    """A picture, in a file or as what a file holds, whose header is read, and whose size is looked at before anything is decoded.

    Raises:
      InputError: no such file, none of `FORMATS`, too large, or damaged, found while it is open.
    """
    from PIL import Image

    file: Any
    if isinstance(source, bytes):
        path, file = "a picture within the file", io.BytesIO(source)
    else:
        path, file = os.fspath(source), source
        if not Path(source).is_file():
            raise InputError(f"images: cannot read {path} (no such file)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own, about sizes and odd tags
            with Image.open(file, formats=FORMATS) as image:
                if not 0 < image.width * image.height <= MOST_PIXELS:
                    raise ValueError(f"{image.width} x {image.height} pixels; at most {MOST_PIXELS} are read")
                yield image
    except Exception as error:  # Pillow's decoders raise a dozen kinds for damaged files
        reason = " ".join(f"{error or type(error).__name__}".split())[:200]
        hint = f"; it must be one of {', '.join(FORMATS)}" if isinstance(error, Image.UnidentifiedImageError) else ""
        raise InputError(f"images: cannot read {path} ({reason}){hint}") from error


def read_rgb(path: str | os.PathLike | bytes) -> np.ndarray:
    """A file, or what it holds -> uint8 `[h, w, 3]`; transparency is dropped, as the metrics' and rewards' own code does.

    Grey of 9 to 16 bits is brought to 8, white to white (Pillow's own conversion makes nearly all of it white).

    Raises:
      InputError: as `opened`; or values whose range the file does not say.
    """
    with opened(path) as image:
        if image.mode in SHALLOW:
            return np.asarray(image.convert("RGB"))
        black, white = _ends(image)
        grey = (np.asarray(image, np.float32) - black) * (255 / (white - black))
        return np.repeat(np.rint(np.clip(grey, 0, 255)).astype(np.uint8)[..., None], 3, axis=-1)


def _ends(image: "Image") -> tuple[int, int]:
    """The values of black and white in a grey picture of more than 8 bits; raises ValueError where nobody knows."""
    tags = getattr(image, "tag_v2", {})  # of a TIFF; PNG and PPM have 16 bits here
    if image.mode == "F" or (image.mode == "I" and tags) or image.mode[0] != "I":
        raise ValueError(
            f"its values, Pillow's mode {image.mode}, have no range that is known; save it with 8 or 16 bits a value"
        )
    white = 2 ** int(tags.get(_BITS, (16,))[0]) - 1
    return (white, 0) if tags.get(_WHITE_IS) == 0 else (0, white)


def size_of(path: str | os.PathLike | bytes) -> tuple[int, int]:
    """(width, height) of a file, or what it holds, of which no more than the header is read.

    Raises:
      InputError: as `opened`.
    """
    with opened(path) as image:
        return image.size
