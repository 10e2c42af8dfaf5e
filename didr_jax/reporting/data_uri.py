"""Pictures as text that stands in a page."""

import base64
import io

import numpy as np
from PIL import Image

LARGE = 128  # pixels of the longer side from which a picture is kept as JPEG where that is smaller


def data_uri(picture: np.ndarray | Image.Image, most: int = 1400) -> str:
    """`data:image/…` of a picture.

    Args:
      picture: uint8 `[h, w]` or `[h, w, 3]`, or opened by PIL.
      most: pixels of the longer side, above which it is made smaller.
    """
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    image = image if image.mode in ("L", "RGB") else image.convert("RGB")
    if max(image.size) > most:
        scale = most / max(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    found = [("png", _encoded(image, "PNG", optimize=True))]
    if max(image.size) >= LARGE:
        found.append(("jpeg", _encoded(image, "JPEG", quality=88)))
    kind, content = min(found, key=lambda row: len(row[1]))
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _encoded(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()
