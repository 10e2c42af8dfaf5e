"""Prompt sets that lay a prompt's pictures into one file."""

import os
from collections.abc import Sequence

import jax
import numpy as np

from didr_jax.images import read_rgb
from didr_jax.suites.table import Suite
from didr_jax.training.reports import picture_grid, save_picture


def write_grids(cells: Sequence[Sequence[str]], files: Sequence[str], suite: Suite) -> None:
    """A square grid without gaps of each prompt's pictures, where it is not there yet; processes share the work.

    Args:
      cells: files of the single pictures, `[n][grid · grid]`.
      files: of the grids, `[n]`.
      suite: for the side of the grid, and how pictures are saved.
    """
    mine = slice(jax.process_index(), None, jax.process_count())
    for row, file in zip(cells[mine], files[mine], strict=True):
        if not os.path.isfile(file):
            save_picture(file, picture_grid(np.stack([read_rgb(cell) for cell in row]), suite.grid, gap=0), **suite.saved)
