"""An entry of the text cache: a folder of arrays that can tell whether it is still what was written.

    KEY/entry.json     of each array: dtype, shape, bytes and a digest of its file
    KEY/NAME.npy       the array, first axis the prompts
    KEY.checked        beside the folder: the files' sizes and times when their contents were last compared

An entry is written (`text.writer`) under another name, brought to the disk, and renamed when whole.  Opening it compares
names, sizes and times with `KEY.checked`, and reads all of it again only where one of them is new.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from didr_jax.text.leftovers import partial

FORMAT = 1
TABLE, CHECKED = "entry.json", ".checked"

Arrays = dict[str, np.ndarray]


class Damaged(Exception):
    """An entry that is not what was written; the message says how."""


def open_entry(entry: Path, count: int) -> Arrays | None:
    """Memory maps of the arrays, or None if there is no such entry.

    Args:
      entry: its folder.
      count: rows of every array.

    Raises:
      Damaged: it is there, and is not what was written.
      OSError: it may not be read.
    """
    try:
        names = _files(entry)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise Damaged("it is no folder") from None
    table = _table(entry, names)
    stamps = _stamps(entry, names)
    if stamps != _read_checked(entry):
        for name, row in table.items():
            if os.path.getsize(entry / f"{name}.npy") != row["bytes"] or _digest(entry / f"{name}.npy") != row["digest"]:
                raise Damaged(f"{name}.npy is not what was written")
        write_checked(entry)
    return {name: _map(entry / f"{name}.npy", row, count) for name, row in table.items()}


def _files(entry: Path) -> set[str]:
    """Hidden ones are the file system's own."""
    return {name for name in os.listdir(entry) if not name.startswith(".")}


def _table(entry: Path, names: set[str]) -> dict[str, dict[str, Any]]:
    try:
        text = (entry / TABLE).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise Damaged(f"it has no {TABLE}") from None
    except UnicodeDecodeError:
        raise Damaged(f"{TABLE} is not text") from None
    try:
        raw = json.loads(text)
        version = raw["format"]
        table = {
            str(name): {"bytes": int(row["bytes"]), "digest": str(row["digest"]), "dtype": str(row["dtype"]),
                        "shape": tuple(int(n) for n in row["shape"])}
            for name, row in raw["arrays"].items()
        }  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise Damaged(f"{TABLE} cannot be understood") from None
    if version != FORMAT:
        raise Damaged(f"{TABLE} is of another version")
    wanted = {TABLE, *(f"{name}.npy" for name in table)}
    if not table or names != wanted:
        raise Damaged(f"its files are {', '.join(sorted(names))[:200]}, not {', '.join(sorted(wanted))[:200]}")
    return table


def _map(path: Path, row: dict[str, Any], count: int) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.dtype.kind == "V":  # numpy's format has no bfloat16: it comes back as two bytes without a meaning
            array = array.view(jnp.bfloat16)
    except (ValueError, EOFError) as error:
        raise Damaged(f"{path.name} is no array ({' '.join(str(error).split())[:100]})") from None
    if array.dtype.name != row["dtype"] or array.shape != row["shape"] or array.shape[:1] != (count,):
        raise Damaged(f"{path.name} is {array.dtype.name} {list(array.shape)}, not {row['dtype']} {list(row['shape'])}")
    return array


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _stamps(entry: Path, names: set[str]) -> dict[str, list[int]]:
    """Of every file what changes when its contents do: nobody can set the third back."""
    stats = {name: os.stat(entry / name) for name in names}
    return {name: [s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for name, s in stats.items()}


def _read_checked(entry: Path) -> dict | None:
    try:
        with open(f"{entry}{CHECKED}", encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError, RecursionError):
        return None


def write_checked(entry: Path) -> None:
    """Remembers that the contents are what was written.  Without it the contents are compared again: whoever may not write here, or has no room, does so."""
    with contextlib.suppress(OSError), partial(entry) as folder:
        with open(folder / CHECKED, "w", encoding="utf-8") as file:
            json.dump(_stamps(entry, _files(entry)), file)
        os.replace(folder / CHECKED, f"{entry}{CHECKED}")
