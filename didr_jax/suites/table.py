"""The table of prompt sets: which file each is read from, how many pictures it asks for, where these lie, what is reported."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from didr_jax.checks import require_choice
from didr_jax.suites import prompts
from didr_jax.suites.prompts import Prompt
from didr_jax.types import InputError

# (prompt's name, number of the picture, pictures a prompt) -> names of its file below the folder; the first is written,
# one of the others is read where somebody else made the pictures
Names = Callable[[str, int, int], Sequence[str]]

PNG: Mapping[str, Any] = {"format": "PNG"}
JPEG: Mapping[str, Any] = {"format": "JPEG", "quality": 75}  # Pillow's own default, as HPSv2's published pictures were saved


@dataclasses.dataclass(frozen=True)
class Suite:
    """A prompt set.

    Attributes:
      read: its file or folder -> prompts, in order.
      file: what exactly is to be given, and where it is published.
      count: prompts of the published set.
      per_prompt: pictures that it asks for of each.
      names: of the pictures.
      saved: how Pillow is to save them.
      beside: `{name: text}` that lies beside a prompt's pictures.
      chunks: `{figure: n}`, whose mean is also reported as that of n equal parts of each group's prompts, in order.
      grid: pictures of a prompt lie in one file, so many in a row and in a column; 1: they do not.
      note: what is measured outside.
    """

    read: Callable[[Path], list[Prompt]]
    file: str
    count: int
    per_prompt: int
    names: Names
    saved: Mapping[str, Any] = dataclasses.field(default_factory=lambda: PNG)
    beside: Callable[[Prompt], Mapping[str, str]] = lambda prompt: {}
    chunks: Mapping[str, int] = dataclasses.field(default_factory=dict)
    grid: int = 1
    note: str = ""


def _flat(suffix: str) -> Names:
    """`NAME.png`, or `NAME_0.png` where a prompt has several."""
    return lambda name, k, of: [f"{name}_{k}{suffix}"] if of > 1 else [f"{name}{suffix}"]


SUITES: dict[str, Suite] = {
    "hpsv2": Suite(
        prompts.hpsv2,
        "the folder with anime.json, concept-art.json, paintings.json and photo.json, 800 strings each (zhwang/HPDv2, benchmark/)",
        count=3200,
        per_prompt=1,
        names=_flat(".jpg"),
        saved=JPEG,
        chunks={"hps": 10},
    ),
    "partiprompts": Suite(
        prompts.parti,
        "PartiPrompts.tsv, 1,632 rows of Prompt, Category, Challenge, Note (google-research/parti)",
        count=1632,
        per_prompt=1,
        names=_flat(".png"),
    ),
    "drawbench": Suite(
        prompts.drawbench,
        "DrawBench.csv (.tsv, .jsonl or .parquet do too), 200 rows of Prompts, Category (Imagen's prompt sheet)",
        count=200,
        per_prompt=1,
        names=_flat(".png"),
    ),
    "imagereward": Suite(
        prompts.image_reward,
        "benchmark-prompts.json, 100 of {id, prompt} (THUDM/ImageReward, benchmark/)",
        count=100,
        per_prompt=10,
        names=lambda name, k, of: [f"{name}_{k}.png"],
    ),
    "geneval": Suite(
        prompts.geneval,
        "evaluation_metadata.jsonl, 553 lines of {tag, include, exclude, prompt} (djghosh13/geneval, prompts/)",
        count=553,
        per_prompt=4,
        names=lambda name, k, of: [f"{name}/samples/{k:04d}.png", f"{name}/samples/{k:05d}.png"],
        beside=lambda prompt: {f"{prompt.name}/metadata.jsonl": json.dumps(dict(prompt.row))},
        note="its detector is outside: give its results.jsonl as benchmark.results, or boxes as benchmark.detections",
    ),
    "dpg": Suite(
        prompts.dpg,
        "the folder prompts/ with 1,065 files {id}.txt (TencentQQGYLab/ELLA, dpg_bench/)",
        count=1065,
        per_prompt=4,
        names=lambda name, k, of: [f"{name}.png"],
        grid=2,
        note="its visual question answering is outside: compute_dpg_bench.py reads the folder of grids",
    ),
    "coco10k": Suite(
        prompts.listed,
        "all_prompts.txt, 10,000 captions, one a line (DMD2's coco10k.zip has them as a pickle: docs/benchmarks.md)",
        count=10_000,
        per_prompt=1,
        names=_flat(".png"),
        note="FID and patch-FID of the folder: docs/metrics.md, protocols dmd2 and dmd2-patch",
    ),
    "plain": Suite(
        prompts.listed,
        "a .txt, .jsonl, .csv, .tsv or .parquet of prompts",
        count=0,
        per_prompt=1,
        names=_flat(".png"),
    ),
}


def open_suite(name: str, path: str) -> tuple[Suite, list[Prompt]]:
    """A row of the table and the prompts of a file.

    Args:
      name: of the row.
      path: of the file or folder that it wants.

    Raises:
      InputError: unknown, absent (what is expected is named), unreadable, empty, or two prompts whose pictures would be one.
    """
    require_choice("benchmark.name", name, SUITES)
    suite, where = SUITES[name], Path(path)
    absent = (
        "is empty" if not path else f"= {path}: there is no such {'folder' if suite.file.startswith('the folder') else 'file'}"
    )
    if not path or not where.exists():
        raise InputError(f"config.benchmark.prompts {absent}; {name} takes {suite.file}")
    found = suite.read(where)
    if not found:
        raise InputError(f"config.benchmark.prompts = {path} has no prompts; {name} takes {suite.file}")
    names = [prompt.name.lower() for prompt in found]  # some file systems do not tell capitals from small letters
    twice = {a for a, b in zip(sorted(names), sorted(names)[1:], strict=False) if a == b}
    if twice:
        raise InputError(f"config.benchmark.prompts = {path}: {sorted(twice)[0]!r} stands twice; each name is one picture's")
    return suite, found


def first(found: Sequence[Prompt], limit: int) -> list[Prompt]:
    """The first `limit` prompts of every style (group of their first heading); 0: all."""
    seen: dict[str, int] = {}
    kept = []
    for prompt in found:
        group = next(iter(prompt.groups.values()), "")
        seen[group] = seen.get(group, 0) + 1
        if not limit or seen[group] <= limit:
            kept.append(prompt)
    return kept
