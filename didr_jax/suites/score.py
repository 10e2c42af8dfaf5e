"""Scores of a prompt set's pictures by every configured reward, each process scoring its share."""

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
from didr_jax.rewards.scoring import score_pictures
from didr_jax.suites.prompts import Prompt
from didr_jax.suites.table import Suite
from didr_jax.types import InputError

MIX = "mix"  # Σ w (r − centre)/spread of the rewards that are trained on, as --mode=tac calls it


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
    suite: Suite, prompts: Sequence[Prompt], files: Sequence[Sequence[Path]], mix: RewardMix, batch_size: int = 8
) -> dict[str, np.ndarray]:
    """`{reward: [prompts, pictures of each]}` in published units, and the mix as `mix` where it has more than one.

    Every process scores a share of the pictures and gets all scores.

    Args:
      suite: for its grids, which are cut.
      prompts: n.
      files: `[n][pictures of a prompt]`.
      mix: the rewards.
      batch_size: pictures scored at once.

    Raises:
      InputError: a picture that cannot be read.
    """
    per_prompt = len(files[0])
    flat = [(file, k, prompt.text) for prompt, row in zip(prompts, files, strict=True) for k, file in enumerate(row)]
    mine = flat[jax.process_index() :: jax.process_count()]
    pictures = [_cell(file, k, suite.grid) if suite.grid > 1 else file for file, k, _ in mine]
    names = list(mix.models)
    scores = {name: np.full(len(flat), np.nan) for name in names}
    if mine:
        own = score_pictures(pictures, [text for *_, text in mine], list(mix.models.values()), batch_size)
        for name in names:
            scores[name][jax.process_index() :: jax.process_count()] = own[name]
    scores = {name: _from_all(values) for name, values in scores.items()}
    if len(mix.weights) > 1:
        scores[MIX] = mix.combine(scores)
    return {name: values.reshape(len(prompts), per_prompt) for name, values in scores.items()}


def _from_all(values: np.ndarray) -> np.ndarray:
    """Scores `[n]` of all processes, of which process i has filled the i-th, the (i + count)-th, …."""
    count = jax.process_count()
    if count == 1:
        return values
    # As bits: JAX would round float64 to float32 on the way.
    bits = multihost_utils.process_allgather(np.ascontiguousarray(values).view(np.uint32))
    rows = np.ascontiguousarray(bits).view(np.float64)
    return np.stack([rows[i % count, i] for i in range(len(values))])


def _cell(file: Path, k: int, grid: int) -> bytes:
    """One picture of a square grid, as what a PNG of it holds."""
    whole = read_rgb(file)
    height, width = whole.shape[0] // grid, whole.shape[1] // grid
    row, column = divmod(k, grid)
    out = io.BytesIO()
    Image.fromarray(whole[row * height : (row + 1) * height, column * width : (column + 1) * width]).save(out, "PNG")
    return out.getvalue()
