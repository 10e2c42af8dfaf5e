"""Scores a folder of images and their prompts: the rewards that train are the metrics that measure."""

import csv
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from didr_jax.checks import listed
from didr_jax.images import read_rgb, size_of
from didr_jax.models.rows import alone
from didr_jax.paths import lies_in
from didr_jax.rewards.base import RewardModel
from didr_jax.rewards.kept import Kept
from didr_jax.text.prompts import COLUMNS, TABLES, kind_of, named, plain, read_rows
from didr_jax.types import InputError
from didr_jax.whole_files import whole_file

# Names under which a row of the prompt file may call its image and its prompt, best first.
IMAGE_FIELDS = ("image", "file_name", "file", "path", "filename")
PROMPT_FIELDS = COLUMNS

Pair = tuple[str, str]


def read_pairs(path: str | os.PathLike) -> list[Pair]:
    """(image name, prompt) of every row of a `.jsonl`, `.csv`, `.tsv` or `.parquet` file, in order.

    Raises:
      InputError: another kind of file, unreadable or empty; a row without an image or a prompt.
    """
    if not Path(path).is_dir() and kind_of(path) not in TABLES:
        raise InputError(f"prompts: {path} is none of {', '.join(TABLES)}")
    pairs = [
        (_field(row, IMAGE_FIELDS, where), _field(row, PROMPT_FIELDS, where))
        for where, row in read_rows(path, IMAGE_FIELDS + PROMPT_FIELDS)
    ]
    if not pairs:
        raise InputError(f"prompts: {path} has no rows")
    return pairs


def _field(row: Any, names: Sequence[str], where: str) -> str:
    """The first of the row's fields of these names that is not empty."""
    cells = row if isinstance(row, dict) else {}
    value = next((cells[n] for n in named(names, list(cells)) if cells[n]), None)
    if not isinstance(value, str):
        raise InputError(f"prompts: {where} has no text under {' or '.join(names)}")
    return plain(value, where)


def read_image(path: str | os.PathLike | bytes) -> np.ndarray:
    """An image file, or what it holds -> float32 `[h, w, 3]` in [-1, 1]; transparency is dropped, as the rewards' own code does.

    Raises:
      InputError: no such file, or not an image.
    """
    return read_rgb(path).astype(np.float32) / 127.5 - 1


@alone()  # every process scores all images
def score_pictures(
    images: Sequence[str | os.PathLike | bytes],
    prompts: Sequence[str],
    rewards: Sequence[RewardModel],
    batch_size: int = 8,
    kept: Kept | None = None,
) -> dict[str, np.ndarray]:
    """Scores of n images against their prompts by all rewards, `{reward: [n]}` in published units.

    The rewards' weights are loaded here, once, and let go of.  Images of any sizes: those of one size are scored together; only the resize is compiled anew for another size.

    Args:
      images: paths, or what image files hold.
      prompts: n.
      rewards: `didr_jax.rewards.load(...)` each, with different names.
      batch_size: images scored at once.
      kept: of an earlier start, what it scored is taken, and what is scored now is added as it comes.

    Raises:
      InputError: unreadable images, no rewards, weights that do not fit.
    """
    if not rewards or len({r.name for r in rewards}) < len(rewards):
        raise InputError("score: give one or more rewards with different names")
    scores = {r.name: np.full(len(images), np.nan) for r in rewards}
    left = _left(images, prompts, scores, kept)
    if not left:
        return scores
    for r in rewards:
        r.weights.check()
    params = {r.name: r.weights.load() for r in rewards}
    programs = {r.name: (jax.jit(r.score), jax.jit(r.preprocess)) for r in rewards}
    for indices in _batches(images, left, batch_size):
        filled = indices + [indices[-1]] * (batch_size - len(indices))  # one shape, one program
        x, text = np.stack([read_image(images[i]) for i in filled]), [prompts[i] for i in filled]
        for r in rewards:
            score, preprocess = programs[r.name]
            scores[r.name][indices] = np.asarray(score(params[r.name], preprocess(x), r.tokenize(text)))[: len(indices)]
        if kept is not None:
            kept.add([(images[i], prompts[i], {name: float(values[i]) for name, values in scores.items()}) for i in indices])
    return scores


def _left(images: Sequence[Any], prompts: Sequence[str], scores: dict[str, np.ndarray], kept: Kept | None) -> list[int]:
    """Places among the images of which nothing is kept; fills in the scores of the others."""
    left = []
    for i in range(len(images)):
        known = kept.get(images[i], prompts[i]) if kept is not None and len(kept) else None
        if known is None or known.keys() != scores.keys():
            left.append(i)
            continue
        for name, score in known.items():
            scores[name][i] = score
    return left


def score_folder(
    images: str | os.PathLike,
    prompts: str | os.PathLike,
    rewards: Sequence[RewardModel],
    out: str | os.PathLike | None = None,
    *,
    batch_size: int = 8,
    outside: bool = False,
    of: str = "",
) -> list[dict[str, str | float]]:
    """Scores every image against its prompt by all rewards, in their published units, and prints the means.

    Args:
      images: the folder.
      prompts: `.jsonl`, `.csv`, `.tsv` or `.parquet` with an image name (relative to the folder) and a prompt a row.
      rewards: `didr_jax.rewards.load(...)` each, with different names.
      out: a `.csv` to write; its folder is made.
      batch_size: images scored at once.
      outside: images may lie outside of the folder: absolute names, "..", links.
      of: which rewards these are, in words that change with them: what ends in the middle is kept beside `out`, in
        `OUT.partial.jsonl`, and taken up by the next start that says the same.  Empty: nothing is kept.

    Returns:
      One dict a row of the prompt file, in its order: `image`, `prompt` and a score for each reward's name.

    Raises:
      InputError: unreadable prompts or images (all absent files are counted at once), images outside of the folder, no
        rewards, weights that do not fit.
    """
    if not rewards or len({r.name for r in rewards}) < len(rewards):
        raise InputError("score: give one or more rewards with different names")
    pairs = pairs_in(images, prompts, outside)
    files = [Path(images) / name for name, _ in pairs]
    kept = Kept(f"{os.fspath(out)}.partial.jsonl", of) if out is not None and of else None
    if kept:
        print(f"{len(kept)} pictures were scored before; to score them anew remove {kept.path}", flush=True)
    scores = score_pictures(files, [prompt for _, prompt in pairs], rewards, batch_size, kept)
    rows: list[dict] = [
        {"image": name, "prompt": prompt} | {reward: float(values[i]) for reward, values in scores.items()}
        for i, (name, prompt) in enumerate(pairs)
    ]
    if out is not None:
        _write(Path(out), rows)
    if kept is not None:
        kept.remove()
    print(table(rows, [r.name for r in rewards]))
    return rows


def pairs_in(images: str | os.PathLike, prompts: str | os.PathLike, outside: bool = False) -> list[Pair]:
    """`read_pairs` of a prompt file whose images are all there; opens none of them.

    Args:
      images, prompts, outside: as of `score_folder`.

    Raises:
      InputError: as `read_pairs`; images that are not there, or lie outside of the folder.
    """
    pairs = read_pairs(prompts)
    if not outside:
        _require_inside(Path(images), [name for name, _ in pairs])
    absent = sorted({name for name, _ in pairs if not os.path.isfile(Path(images) / name)})
    if absent:
        raise InputError(f"score: {len(absent)} images are not in {images}: {listed(absent)}", absent)
    return pairs


def _require_inside(folder: Path, names: Sequence[str]) -> None:
    """Raises InputError, naming the first, if an image is not a file of the folder, its links followed."""
    for name in names:
        if not lies_in(folder / name, folder):
            raise InputError(
                f"score: the image {name!r} lies outside of {folder}; set config.score.outside=True if that is meant"
            )


def _batches(images: Sequence[str | os.PathLike | bytes], left: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Those of the places among the images, at most `batch_size` at a time, all of one image size."""
    by_size = defaultdict(list)
    for i in left:
        by_size[size_of(images[i])].append(i)
    for indices in by_size.values():
        for start in range(0, len(indices), batch_size):
            yield indices[start : start + batch_size]


def _write(path: Path, rows: Sequence[dict]) -> None:
    with whole_file(path, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def table(rows: Sequence[dict], names: Sequence[str]) -> str:
    """Mean and standard deviation of each reward over the finite scores, as text; non-finite ones are counted."""
    lines = [f"{'reward':<14} {'mean':>10} {'std':>10} {'images':>8} {'not finite':>11}"]
    for name in names:
        scores = np.array([row[name] for row in rows])
        finite = scores[np.isfinite(scores)]
        mean, std = (finite.mean(), finite.std()) if finite.size else (np.nan, np.nan)
        lines.append(f"{name:<14} {mean:>10.4f} {std:>10.4f} {len(rows):>8} {len(rows) - finite.size:>11}")
    return "\n".join(lines)
