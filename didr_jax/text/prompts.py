"""Reading prompt files: one prompt a line, or a table with a column of prompts."""

import csv
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from didr_jax.types import InputError

# Names under which a table may hold its prompts, best first.
COLUMNS = ("prompt", "caption", "text")


def read_prompts(path: str | os.PathLike, column: str = "", limit: int = 0) -> list[str]:
    """The prompts of a file, in order, stripped; empty ones are left out.

    Args:
      path: `.txt` (one a line), `.jsonl` (objects or bare strings), `.csv`, `.tsv` or `.parquet`.
      column: of a table; empty: the first of `COLUMNS` that it has.
      limit: read no further than so many prompts; 0: all.

    Raises:
      InputError: another kind of file, unreadable, without such a column, or without any prompt.
    """
    path = Path(path)
    if path.suffix not in READERS:
        raise InputError(f"prompts: {path} is none of {', '.join(READERS)}")
    prompts = []
    try:
        for text in READERS[path.suffix](path, column):
            if text := text.strip():
                prompts.append(text)
            if limit and len(prompts) == limit:
                break
    except (OSError, ValueError, csv.Error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"prompts: cannot read {path}: {' '.join(str(error).split())}") from error
    if not prompts:
        raise InputError(f"prompts: {path} has no prompts")
    return prompts


def _lines(path: Path, column: str) -> Iterator[str]:
    if column:
        raise InputError(f"prompts: {path} is a plain list and has no column {column!r}; leave the column empty")
    with open(path, encoding="utf-8") as file:
        yield from file


def _json_lines(path: Path, column: str) -> Iterator[str]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                row = json.loads(line)
                yield row if isinstance(row, str) and not column else _cell(row, column, f"{path}, line {number}")


def _separated(delimiter: str) -> Callable[[Path, str], Iterator[str]]:
    def rows(path: Path, column: str) -> Iterator[str]:
        with open(path, newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.DictReader(file, delimiter=delimiter), 1):
                yield _cell(row, column, f"{path}, row {number}")

    return rows


def _parquet(path: Path, column: str) -> Iterator[str]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"prompts: {path} needs the package pyarrow: pip install pyarrow, or give jsonl") from None
    with parquet.ParquetFile(path) as file:  # pyarrow's own errors are OSError and ValueError
        name = _choose(file.schema_arrow.names, column, str(path))
        for batch in file.iter_batches(columns=[name]):
            for text in batch.column(0).to_pylist():
                yield _text(text, name, str(path))


def _cell(row, column: str, where: str) -> str:
    names = list(row) if isinstance(row, dict) else []
    name = _choose(names, column, where)
    return _text(row[name], name, where)


def _choose(names: list[str], column: str, where: str) -> str:
    wanted = (column,) if column else COLUMNS
    found = next((name for name in wanted if name in names), None)
    if found is None:
        has = ", ".join(map(str, names)) or "none"
        raise InputError(f"prompts: {where} has no column {' or '.join(wanted)}; it has {has}")
    return found


def _text(value, name: str, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(f"prompts: {where}: {name} is {value!r}, not text")
    return value


READERS = {
    ".txt": _lines,
    ".jsonl": _json_lines,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".parquet": _parquet,
}
