"""People's rankings of pictures of one prompt, from the files in which they are published.

ImageRewardDB  `test.json`   [{prompt, generations: [file], ranking: [1 is best, ties]}]
HPDv2          `test.json`   [{prompt, image_path: [file], rank: [smallest is best]}]
Pick-a-Pic     `*.parquet`   caption, jpg_0, jpg_1 (bytes), label_0, label_1 (1, 0, or .5 each for a tie)
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from didr_jax.text.prompts import plain, read_rows
from didr_jax.types import InputError

Picture = str | bytes  # a file's name, or what it holds


class Ranked(NamedTuple):
    """n pictures of one prompt and people's score of them, `[n]`, larger is better; equal where people tied them.

    `source`: the set that they are of, a key of `conventions.CONVENTIONS`; empty: not known.
    """

    prompt: str
    pictures: tuple[Picture, ...]
    people: np.ndarray
    source: str = ""


def read_rankings(path: str | os.PathLike, limit: int = 0) -> list[Ranked]:
    """The rankings of a file of one of the kinds above, those of a single picture left out.

    Args:
      path: `.json` or `.parquet`.
      limit: read no more than so many; 0: all.

    Raises:
      InputError: another kind of file, unreadable, or without the fields of any of them.
    """
    found: list[Ranked] = []
    for ranked in _pick_a_pic(path) if Path(path).suffix == ".parquet" else _json(path):
        if len(ranked.pictures) > 1:
            found.append(ranked)
        if limit and len(found) == limit:
            break
    if not found:
        raise InputError(f"tac: {path} ranks nothing; give a file with two or more pictures a prompt")
    return found


# The fields of a row that hold its pictures and their ranks, the smallest of which is best.
_RANKED: dict[str, tuple[str, str]] = {"ImageRewardDB": ("generations", "ranking"), "HPDv2": ("image_path", "rank")}


def _json(path: str | os.PathLike) -> Iterator[Ranked]:
    try:
        rows: Any = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"tac: cannot read {path} ({' '.join(str(error).split())}); give a .json or .parquet file") from None
    for number, row in enumerate(rows if isinstance(rows, list) else [rows], 1):
        names = row.keys() if isinstance(row, dict) else ()
        source = next((name for name, pair in _RANKED.items() if {"prompt", *pair} <= set(names)), None)
        if source is None:
            wanted = " or ".join(f"prompt, {', '.join(pair)} ({name})" for name, pair in _RANKED.items())
            raise InputError(f"tac: {path}, row {number} has {', '.join(names) or 'no fields'}; it needs {wanted}")
        pictures, ranks = (row[field] for field in _RANKED[source])
        if not _is_ranked(row["prompt"], pictures, ranks):
            raise InputError(
                f"tac: {path}, row {number}: needs a text, a list of file names, and as long a list of numbers; mend it"
            )
        if len(pictures) != len(ranks):
            raise InputError(f"tac: {path}, row {number} has {len(pictures)} pictures and {len(ranks)} ranks; mend that row")
        yield Ranked(plain(row["prompt"], f"{path}, row {number}"), tuple(pictures), -np.asarray(ranks, np.float64), source)


def _is_ranked(prompt: Any, pictures: Any, ranks: Any) -> bool:
    numbers = isinstance(ranks, list) and all(type(rank) in (int, float) and abs(rank) < 1e9 for rank in ranks)
    names = isinstance(pictures, list) and all(isinstance(name, str) and "\0" not in name for name in pictures)
    return isinstance(prompt, str) and names and numbers


_PAIR = ("caption", "jpg_0", "jpg_1", "label_0", "label_1")


def _pick_a_pic(path: str | os.PathLike) -> Iterator[Ranked]:
    for where, row in read_rows(path, _PAIR):
        absent = [name for name in _PAIR if row.get(name) is None]
        if absent:
            raise InputError(f"tac: {where} has no {', '.join(absent)}; give a file of Pick-a-Pic with its pictures")
        if not isinstance(row["caption"], str) or not all(isinstance(row[f"jpg_{i}"], bytes) for i in (0, 1)):
            raise InputError(f"tac: {where}: caption is to be text, jpg_0 and jpg_1 the bytes of a picture")
        labels = np.asarray([row["label_0"], row["label_1"]], np.float64)
        yield Ranked(row["caption"], (row["jpg_0"], row["jpg_1"]), labels, "Pick-a-Pic")


def named(rankings: list[Ranked]) -> list[str]:
    """The names of files that rankings are of, in order."""
    return [picture for ranked in rankings for picture in ranked.pictures if isinstance(picture, str)]
