"""Pipeline folders as diffusers saves them: one sub-folder a part, each with its `config.json` and weights."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from didr_jax.checks import listed
from didr_jax.json_files import read_object
from didr_jax.types import InputError

PIPELINE = "a whole pipeline in diffusers' format"


def require_parts(folder: str | os.PathLike, where: str, parts: Iterable[str], what: str = PIPELINE) -> None:
    """Raises InputError unless `folder` has all `parts`, files or folders; `where` is the config key, `what` belongs there."""
    folder = Path(folder)
    if not str(folder) or not folder.is_dir():
        raise InputError(f"config.{where}: no such folder: {folder}; give {what}")
    absent = [part for part in parts if not (folder / part).exists()]
    if absent:
        raise InputError(f"config.{where}: {folder} lacks {listed(absent)}; give {what}", absent)


def part_json(folder: str | os.PathLike, part: str, name: str = "config.json") -> dict[str, Any]:
    """The parsed `FOLDER/PART/config.json`.

    Raises:
      InputError: unreadable, or not an object.
    """
    return read_object(Path(folder) / part / name)
