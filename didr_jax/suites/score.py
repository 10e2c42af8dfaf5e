"""Scores of a prompt set's pictures by every configured reward, each process scoring its share."""

import functools
import io
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from PIL import Image

from didr_jax.images import read_rgb
from didr_jax.rewards import RewardMix
from didr_jax.rewards.kept import Kept
from didr_jax.rewards.scoring import score_pictures
from didr_jax.rewards.tac import MIX
from didr_jax.suites.prompts import Prompt
from didr_jax.suites.table import Suite
from didr_jax.types import InputError


def find_pictures(suite: Suite, prompts: Sequence[Prompt], per_prompt: int, folder: str | os.PathLike) -> list[list[Path]]:
    """The files of every prompt's pictures in the suite's layout, `[prompts][per_prompt]`.

    Of a grid every picture has the grid's own file.

    Raises:
      InputError: some are not there: their number and the first, by the name that it would have.
    """
    found, absent = [], []
    for prompt in prompts:
        row = []
        for k in range(per_prompt):
            names = suite.names(prompt.name, k, per_prompt)
            there = [Path(folder) / name for name in names if (Path(folder) / name).is_file()]
            absent += [] if there else [names[0]]
            row += there[:1]
        found.append(row)
    if absent:
        raise InputError(
            f"benchmark: {len(absent)} of {len(prompts) * per_prompt} pictures are not in {folder}, the first {absent[0]}; "
            "make them, or set config.benchmark.per_prompt and limit to what is there"
        )
    return found


def score_suite(
    suite: Suite,
    prompts: Sequence[Prompt],
    files: Sequence[Sequence[Path]],
    mix: RewardMix,
    batch_size: int = 8,
    kept: Kept | None = None,
) -> dict[str, np.ndarray]:
    """`{reward: [prompts, pictures of each]}` in published units, and the mix as `mix` where it has more than one.

    Every process scores a share of the pictures and gets all scores.

    Args:
      suite: for its grids, which are cut.
      prompts: n.
      files: `[n][pictures of a prompt]`.
      mix: the rewards.
      batch_size: pictures scored at once.
      kept: of this process, as of `scoring.score_pictures`.

    Raises:
      InputError: a picture that cannot be read.
    """
    per_prompt = len(files[0])
    flat = [(file, k, prompt.text) for prompt, row in zip(prompts, files, strict=True) for k, file in enumerate(row)]
    shares = np.array_split(np.arange(len(flat)), jax.process_count())
    mine = [flat[i] for i in shares[jax.process_index()]]
    pictures: Sequence[Path | bytes] = [file for file, _, _ in mine]
    if suite.grid > 1:
        pictures = Cells([(file, k) for file, k, _ in mine], suite.grid)
    scores = {name: np.full(len(flat), np.nan) for name in mix.models}
    if mine:
        own = score_pictures(pictures, [text for *_, text in mine], list(mix.models.values()), batch_size, kept)
        for name in scores:
            scores[name][shares[jax.process_index()]] = own[name]
    scores = {name: _from_all(values, shares) for name, values in scores.items()}
    if len(mix.weights) > 1:
        scores[MIX] = mix.combine(scores)
    return {name: values.reshape(len(prompts), per_prompt) for name, values in scores.items()}


def _from_all(values: np.ndarray, shares: Sequence[np.ndarray]) -> np.ndarray:
    """Scores `[n]` of all processes, each of which has filled its share."""
    if len(shares) == 1:
        return values
    # As bits: JAX would round float64 to float32 on the way.
    bits = multihost_utils.process_allgather(np.ascontiguousarray(values).view(np.uint32))
    rows = np.ascontiguousarray(bits).view(np.float64)
    return np.concatenate([row[share] for row, share in zip(rows, shares, strict=True)])


class Cells(Sequence[bytes]):
    """Pictures that lie in square grids, each as what a file of it would hold, cut when it is asked for.

    Args:
      places: (the grid's file, number of the picture in it, row by row).
      side: pictures in a row and in a column.
    """

    def __init__(self, places: Sequence[tuple[Path, int]], side: int):
        self._places, self._side = places, side
        self._opened = functools.lru_cache(2)(read_rgb)  # a grid's pictures are asked for one after the other

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, i):
        file, k = self._places[i]
        whole, (row, column) = self._opened(file), divmod(k, self._side)
        height, width = whole.shape[0] // self._side, whole.shape[1] // self._side
        out = io.BytesIO()
        cell = whole[row * height : (row + 1) * height, column * width : (column + 1) * width]
        Image.fromarray(cell).save(out, "BMP")  # as it is, and at once
        return out.getvalue()
