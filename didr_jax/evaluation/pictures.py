"""Sets of pictures: a folder of files, or arrays."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from didr_jax.evaluation.resize import Picture
from didr_jax.images import SUFFIXES, read_rgb
from didr_jax.types import InputError

Source = str | os.PathLike | Sequence[Picture] | np.ndarray


def picture_files(folder: str | os.PathLike) -> list[Path]:
    """All picture files below a folder, sorted by path.  Raises `InputError` if there are none."""
    files = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise InputError(f"pictures: {folder} holds none of {', '.join(sorted(SUFFIXES))}")
    return files


def open_pictures(source: Source) -> tuple[int, Callable[[int], Picture]]:
    """How many there are, and the function that reads the i-th as RGB.

    `source`: a folder, or arrays `[h, w, 3]` of any sizes, uint8 or a sampler's float in [-1, 1].
    """
    if isinstance(source, (str, os.PathLike)):
        files = picture_files(source)
        return len(files), lambda i: read_rgb(files[i])
    return len(source), lambda i: np.asarray(source[i])
