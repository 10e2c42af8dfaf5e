"""Pictures of sprouts: drawn as vector art by DiceBear's style "Sprouts" (CC0 1.0), kept on disk as an album.

Needs the packages `dicebear-core`, `dicebear-styles` and `resvg-py` of exactly the versions in `VERSIONS`: what a name
draws depends on them.  They are asked for only where a picture is drawn.
"""

import functools
import importlib.metadata
import importlib.resources
import io
import json
import os
import zipfile
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image

from didr_jax.recipes.sprouts.parts import PARTS, VALUES, WORDS, draw_parts, with_other_mouth
from didr_jax.types import InputError
from didr_jax.whole_files import whole_file

VERSIONS = {"dicebear-core": "10.7.0", "dicebear-styles": "10.6.0", "resvg-py": "0.5.0"}
SIDE = 64  # pixels
ZOOM = 70  # pixels that the whole artwork, with its empty margins, would have; SIDE of them are kept
OPTION = {"colour": "potColor", "leaf": "plantColor", "ground": "backgroundColor"}  # the others are PARTVariant
# What the law leaves out, the same in every picture.
FIXED = {"seed": "sprouts", "patternProbability": 0, "cheeksProbability": 0, "bloomColor": ["#fda4af"]}

# Faces that 64 pixels can show: {part: factor about its centre, and percent of its height that it moves down}.
LARGER = {"mouth": (1.8, 12), "eyes": (1.2, -18)}


class Album(NamedTuple):
    """`images uint8 [n, 64, 64, 3]`, their `parts [n, 7]`, and the same with another mouth (see `parts`)."""

    images: np.ndarray
    parts: np.ndarray
    other_images: np.ndarray
    other_parts: np.ndarray


@functools.cache
def _style():
    for package, version in VERSIONS.items():
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found = "not installed"
        if found != version:
            wanted = " ".join(f"{name}=={number}" for name, number in VERSIONS.items())
            raise InputError(f"drawing sprouts needs {package} {version}, which is {found}: pip install {wanted}")
    from dicebear import Style

    text = (importlib.resources.files("dicebear_styles") / "sprouts.json").read_text(encoding="utf-8")
    definition = json.loads(text)
    for part, (scale, down) in LARGER.items():
        exactly = lambda value: {"min": value, "max": value}
        definition["components"][part] |= {"scale": exactly(scale), "translate": {"y": exactly(down)}}
    return Style(definition)


def draw(parts: np.ndarray) -> np.ndarray:
    """The picture of one sprout's `parts [7]`, uint8 `[64, 64, 3]`.

    Raises:
      InputError: the drawing packages are missing, or of another version.
    """
    style = _style()
    import resvg_py
    from dicebear import Avatar

    chosen = {part: VALUES[part][WORDS[part][value]] for part, value in zip(PARTS, parts, strict=True)}
    options = {OPTION.get(part, f"{part}Variant"): [value] for part, value in chosen.items()}
    svg = Avatar(style, {**FIXED, **options}).to_string()
    png = resvg_py.svg_to_bytes(svg_string=svg, width=ZOOM, height=ZOOM, skip_system_fonts=True)
    image = np.asarray(Image.open(io.BytesIO(bytes(png)), formats=["PNG"]).convert("RGB"))
    left = (ZOOM - SIDE) // 2
    return image[ZOOM - SIDE :, left : left + SIDE]  # the pot stands on the lower edge


@functools.lru_cache(maxsize=4)
def album(folder: str, n: int, seed: int, pairs: int = 0) -> Album:
    """n pictures by a seed, the first `pairs` of them with another mouth too; drawn once, then read from `folder`.

    Every process that asks while there is none draws it: it is a function of its arguments.
    """
    path = os.path.join(os.path.expanduser(folder), f"sprouts-{n}-{pairs}-{seed}.npz")
    if not os.path.exists(path):
        rng = np.random.default_rng([seed, *b"sprouts"])
        parts = draw_parts(rng, n)
        other = with_other_mouth(rng, parts[:pairs])
        images, others = (np.stack([draw(row) for row in rows]) if len(rows) else np.empty((0, SIDE, SIDE, 3), np.uint8)
                          for rows in (parts, other))  # fmt: skip
        with whole_file(path, binary=True) as file:
            np.savez_compressed(file, images=images, parts=parts, other_images=others, other_parts=other)
    try:
        with np.load(path, allow_pickle=False) as held:
            return Album(*(held[name] for name in Album._fields))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}); remove it, and it is drawn again") from None


def to_float(images: np.ndarray) -> np.ndarray:
    """uint8 -> float32 in [-1, 1]."""
    return images.astype(np.float32) / 127.5 - 1
