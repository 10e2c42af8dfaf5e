"""Reading prompt files: one prompt a line, or a table with a column of prompts; compressed by gzip; a folder of shards.

Of a file's name only the ending counts, in either case: `PROMPTS.TXT`, `part-0.jsonl.gz`.  A name of a column is looked
for as it is written, and then without regard to case.
"""

import codecs
import csv
import gzip
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from didr_jax.checks import listed
from didr_jax.types import InputError

# Names under which a table may hold its prompts, best first.
COLUMNS = ("prompt", "caption", "text")

BOM = "\ufeff"
# How files begin that say their encoding; the longer marks first.
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

# (where it stands, {column: cell}, or the bare string that stands for a row)
Row = tuple[str, Any]


def read_prompts(path: str | os.PathLike, column: str = "", limit: int = 0) -> list[str]:
    """The prompts of a file, in order, stripped; empty ones are left out.

    Args:
      path: `.txt` (one a line), `.jsonl` (objects or bare strings), `.json` (a list of them), `.csv`, `.tsv` or
        `.parquet`; all but the last also with `.gz`; or a folder of files of one of these kinds, read by name.
      column: of a table; empty: the first of `COLUMNS` that it has.
      limit: read no further than so many prompts; 0: all.

    Raises:
      InputError: another kind of file, unreadable, without such a column, or without any prompt.
    """
    wanted = (column,) if column else COLUMNS
    if column and Path(path).is_file() and kind_of(path) == ".txt":
        raise InputError(f"prompts: {path} is a plain list and has no column {column!r}; leave the column empty")
    prompts = []
    for where, row in read_rows(path, wanted):
        text = plain(row, where) if isinstance(row, str) and not column else _cell(row, wanted, where)
        if text := text.strip().lstrip(BOM).strip():
            prompts.append(text)
        if limit and len(prompts) == limit:
            break
    if not prompts:
        raise InputError(f"prompts: {path} has no prompts")
    return prompts


def read_rows(path: str | os.PathLike, wanted: Sequence[str]) -> Iterator[Row]:
    """The rows of a file, or of a folder's files, one after the other, as text in UTF-8, or in what a byte order mark says.

    Marks at the beginning of later lines, as files have that were joined, are left out too.

    Args:
      path: of one of the kinds in `READERS`.
      wanted: columns that the caller looks at; those of a `.parquet` file that are not are not read.

    Raises:
      InputError: another kind of file, or unreadable.
    """
    for each in _files(Path(path)):
        try:
            yield from READERS[kind_of(each)](each, wanted)
        except InputError:
            raise
        except Exception as error:  # csv, json, gzip and pyarrow raise a dozen kinds for damaged files
            reason = " ".join(f"{error or type(error).__name__}".split())[:300]
            raise InputError(f"prompts: cannot read {each}: {reason}") from error


def kind_of(path: str | os.PathLike) -> str:
    """The key of `READERS` that a file's name says; empty if none."""
    first, *last = reversed([suffix.lower() for suffix in Path(path).suffixes[-2:]] or [""])
    if first == GZIP:
        return last[0] if last and last[0] in READERS and last[0] not in WHOLE else ""
    return first if first in READERS else ""


def _files(path: Path) -> list[Path]:
    """A file, or those of a folder in order."""
    if path.is_dir():
        shards = sorted(each for each in path.iterdir() if each.is_file() and kind_of(each) and not each.name.startswith("."))
        kinds = sorted({kind_of(each) for each in shards})
        if len(kinds) != 1:
            held = f"files of several kinds ({', '.join(kinds)})" if kinds else f"none of {', '.join(READERS)}"
            raise InputError(f"prompts: {path} holds {held}; give a folder with shards of one kind")
        return shards
    if not kind_of(path):
        raise InputError(f"prompts: {path} is none of {', '.join(READERS)}")
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise InputError(f"prompts: cannot read {path}: it is no file")
    return [path]


def _open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix.lower() == GZIP else open(path, "rb")


def _text(path: Path) -> Iterator[str]:
    """The lines of a file with their ends as they are."""
    with _open(path) as file:
        head = file.read(4)
        file.seek(0)
        encoding = next((name for mark, name in MARKS.items() if head.startswith(mark)), "utf-8")
        for line in io.TextIOWrapper(file, newline="", encoding=encoding):
            yield line.removeprefix(BOM)


def _lines(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    for number, line in enumerate(_text(path), 1):
        yield f"{path}, line {number}", line


def _json_lines(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    for where, line in _lines(path, wanted):
        if not line.strip():
            continue
        yield where, _parsed(line, where)


def _json_list(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    rows = _parsed("".join(_text(path)), str(path))
    if not isinstance(rows, list):
        raise InputError(f"prompts: {path} holds no list; give a list of strings or of objects with a column of prompts")
    for number, row in enumerate(rows, 1):
        yield f"{path}, row {number}", row


def _parsed(text: str, where: str) -> Any:
    try:
        content = json.loads(text)
        if "\\u" in text:  # an escape can be half a character, which no encoding has
            json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(error.object[error.start]):04X}"
        raise InputError(f"prompts: {where} holds {half}, half of a character; write the file again as UTF-8") from None
    except ValueError as error:
        raise InputError(f"prompts: cannot read {where}: {error}") from None
    return content


def _separated(delimiter: str) -> Callable[[Path, Sequence[str]], Iterator[Row]]:
    def rows(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
        reader = csv.reader(_text(path), delimiter=delimiter, strict=True)
        names = next(reader, [])
        column = next((names.index(name) for name in named(wanted, names)), -1)
        number = 0
        while True:
            where, first = f"{path}, row {number + 1}", reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise InputError(
                    f"prompts: {where}, from line {first} on: {error}; close what a quote opens, and write a quote inside as two"
                ) from None
            if not cells:
                continue
            if any(cells[len(names) :]) or len(cells) <= column:
                raise InputError(
                    f"prompts: {where} (line {first}) has {len(cells)} cells, and the header {len(names)}; put texts that hold "
                    f"{delimiter!r} into quotes"
                )
            number += 1
            yield where, dict(zip(names, cells, strict=False))

    return rows


def _parquet(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"prompts: {path} needs the package pyarrow: pip install pyarrow, or give jsonl") from None
    with parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        found = named(wanted, names)
        if not found:
            raise _absent(str(path), wanted, names)
        rows = (row for batch in file.iter_batches(columns=found) for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            yield f"{path}, row {number}", row


def _cell(row: Any, wanted: Sequence[str], where: str) -> str:
    """The text in the first wanted column that the row has; an empty cell is the empty string."""
    names = list(row) if isinstance(row, dict) else []
    found = next(iter(named(wanted, names)), None)
    if found is None:
        raise _absent(where, wanted, names)
    if not isinstance(row[found], str | None):
        raise InputError(f"prompts: {where}: {found} is {row[found]!r}, not text")
    return plain(row[found] or "", where)


def named(wanted: Iterable[str], names: Sequence[Any]) -> list[Any]:
    """Those of the names that are wanted, best first: as they are written, or else without regard to case."""
    by_case = {name.strip().lower(): name for name in reversed(names) if isinstance(name, str)}
    found = (name if name in names else by_case.get(name.lower()) for name in wanted)
    return list(dict.fromkeys(name for name in found if name is not None))


def plain(text: str, where: str) -> str:
    """The text itself.  Raises InputError for what no file can be named and no tokenizer reads: zeros, half characters."""
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InputError(f"prompts: {where}: {text[:60]!r} is not plain text")
    return text


def _absent(where: str, wanted: Sequence[str], names: Sequence[Any]) -> InputError:
    held = [str(name) for name in names]
    return InputError(f"prompts: {where} has no column {' or '.join(wanted)}; it has {listed(held) or 'none'}", held)


# Kinds of files whose rows have columns, and all kinds.
TABLES: dict[str, Callable[[Path, Sequence[str]], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".json": _json_list,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".parquet": _parquet,
}
READERS = {".txt": _lines} | TABLES
GZIP, WHOLE = ".gz", (".parquet",)  # what may follow a kind, and kinds that it may not follow
