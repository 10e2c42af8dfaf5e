"""The prompt files of published sets, as they are published."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from didr_jax.json_files import read_list
from didr_jax.text.prompts import plain, read_prompts, read_rows
from didr_jax.types import InputError

STYLES = ("anime", "concept-art", "paintings", "photo")  # of HPSv2


class Prompt(NamedTuple):
    """One prompt of a set.

    Attributes:
      number: its place in the whole set, from which the noise of its pictures follows.
      name: of its pictures, with folders; nothing that leads out of theirs.
      text: what is asked for.
      groups: `{heading: the group it is in}`, of the tables.
      row: what its file says of it besides.
    """

    number: int
    name: str
    text: str
    groups: Mapping[str, str] = {}
    row: Mapping[str, Any] = {}


def hpsv2(folder: Path) -> list[Prompt]:
    """`{style}.json` of the four styles, a list of strings each; named `style/00000`."""
    found: list[Prompt] = []
    for style in STYLES:
        for i, text in enumerate(read_list(folder / f"{style}.json")):
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"config.benchmark.prompts: {folder}/{style}.json, entry {i} is no prompt; fetch the file again")
            found.append(Prompt(len(found), f"{style}/{i:05d}", plain(text, f"{style}.json, entry {i}"), {"style": style}))
    return found


def parti(path: Path) -> list[Prompt]:
    """PartiPrompts.tsv: Prompt, Category, Challenge."""
    return list(_table(path, ("Prompt",), ("Category", "Challenge")))


def drawbench(path: Path) -> list[Prompt]:
    """A table with Prompts (or Prompt, prompt), and Category where it has that."""
    return list(_table(path, ("Prompts", "Prompt", "prompt"), ("Category",)))


def _table(path: Path, texts: Sequence[str], headings: Sequence[str]) -> Iterator[Prompt]:
    for i, (where, row) in enumerate(read_rows(path, (*texts, *headings))):
        text = next((row[name] for name in texts if isinstance(row, dict) and row.get(name)), None)
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"config.benchmark.prompts: {where} has nothing under {' or '.join(texts)}; fetch the file again")
        groups = {heading: str(row[heading]) for heading in headings if row.get(heading)}
        yield Prompt(i, f"{i:05d}", plain(text, where), groups)


def image_reward(path: Path) -> list[Prompt]:
    """benchmark-prompts.json: `[{id, prompt}]`, named by their ids."""
    found = []
    for i, row in enumerate(read_list(path)):
        if not isinstance(row, dict) or not isinstance(row.get("id"), str) or not isinstance(row.get("prompt"), str):
            raise InputError(f"config.benchmark.prompts: {path}, entry {i} is not {{id, prompt}}; fetch the file again")
        found.append(Prompt(i, _name(row["id"], path), plain(row["prompt"], f"{path}, entry {i}")))
    return found


def geneval(path: Path) -> list[Prompt]:
    """evaluation_metadata.jsonl: `{tag, include, exclude, prompt}` a line."""
    found = []
    for i, (where, row) in enumerate(read_rows(path, ("prompt", "tag"))):
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not isinstance(row.get("tag"), str):
            raise InputError(f"config.benchmark.prompts: {where} has no prompt and tag; give evaluation_metadata.jsonl")
        if not _asks(row):
            raise InputError(
                f"config.benchmark.prompts: {where}: include and exclude are lists of {{class, count}}; fetch it again"
            )
        found.append(Prompt(i, f"{i:05d}", plain(row["prompt"], where), {"tag": row["tag"]}, row))
    return found


def _asks(row: Mapping[str, Any]) -> bool:
    """Whether `geneval.judge` can read what a line asks for."""
    include, exclude = row.get("include", []), row.get("exclude", [])
    if not isinstance(include, list) or not isinstance(exclude, list):
        return False
    counted = lambda o: isinstance(o, dict) and isinstance(o.get("class"), str) and type(o.get("count")) is int and o["count"] > 0
    objects = all(map(counted, include + exclude))
    places = [(i, o["position"]) for i, o in enumerate(include) if objects and "position" in o]
    earlier = lambda i, p: isinstance(p, list) and list(map(type, p)) == [str, int] and 0 <= p[1] < i
    return objects and all(earlier(i, place) for i, place in places)


def dpg(folder: Path) -> list[Prompt]:
    """A folder of `{id}.txt`, named by their ids and sorted by them."""
    files = sorted(folder.glob("*.txt"))
    texts = [" ".join(_text(file).split()) for file in files]
    for file, text in zip(files, texts, strict=True):
        if not text:
            raise InputError(f"config.benchmark.prompts: {file} is empty; fetch it again")
    names = [_name(file.stem, folder) for file in files]
    return [Prompt(i, name, plain(text, str(file))) for i, (name, text, file) in enumerate(zip(names, texts, files, strict=True))]


def listed(path: Path) -> list[Prompt]:
    """Any prompt file of `text.prompts`."""
    if path.suffix == ".pkl":
        raise InputError(
            f"config.benchmark.prompts: {path} is a pickle, which may run anything and is not opened; where you trust it: "
            'open("all_prompts.txt", "w").write("\\n".join(pickle.load(open("all_prompts.pkl", "rb"))))'
        )
    return [Prompt(i, f"{i:05d}", text) for i, text in enumerate(read_prompts(path))]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"config.benchmark.prompts: cannot read {path} ({reason}); fetch it again") from None


def _name(given: str, where: Path) -> str:
    """An id that may name a file."""
    if not re.fullmatch(r"[\w-][\w.-]{0,199}", given):
        raise InputError(f"config.benchmark.prompts: {where}: {given[:60]!r} cannot name a picture; use letters, digits and -")
    return given
