"""Writes an entry of the text cache, some rows of every array after the others, so that an interrupted build goes on.

    KEY.partial-…/NAME.npy    the arrays as far as they go
    KEY.partial-…/.progress   a line about the arrays, dtype and shape of a row; then a line each time that rows were
                              added: how many, and of each array the digest of their bytes

What is found is believed only as far as the digests prove it; the rest is cut off and written again.
"""

import contextlib
import hashlib
import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from didr_jax.text.entry import FORMAT, TABLE, Damaged, write_checked
from didr_jax.text.leftovers import JOURNAL
from didr_jax.whole_files import names_to_disk, to_disk

Kinds = dict[str, tuple[np.dtype, tuple[int, ...]]]  # of arrays: the dtype, and the shape of a row


class Writer:
    """Writes arrays of `count` rows into a folder, after those that are there; `finish` makes it an entry.

    A context manager.

    Attributes:
      folder: where it writes.
      done: rows that every array has.

    Raises:
      OSError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, count: int):
        self.folder, self._count, self.done = folder, count, 0
        self._kinds: Kinds = {}
        self._columns: dict[str, _Column] = {}
        self._journal = open(folder / JOURNAL, "a+b")
        proven = self._proven()
        if not self.done:
            self._close_columns()
            proven = 0
        for column in self._columns.values():
            column.cut()
        self._journal.truncate(proven)

    def add(self, rows: Mapping[str, np.ndarray]) -> None:
        """The next `rows [k, ...]` of all arrays.

        Raises:
          Damaged: the rows that are there are of other arrays.
          OSError: they could not be written.
        """
        kinds = {name: (values.dtype, values.shape[1:]) for name, values in rows.items()}
        if not self._columns:
            self._kinds = kinds
            self._columns = {name: _Column(self.folder, name, *kinds[name], self._count, "w+b") for name in kinds}
            self._note({name: {"dtype": dtype.name, "row": row} for name, (dtype, row) in kinds.items()})
        if kinds != self._kinds:
            self._journal.truncate(0)
            raise Damaged("the rows that are there are of other arrays")
        pieces = {name: np.ascontiguousarray(values).tobytes() for name, values in rows.items()}
        for name, data in pieces.items():
            self._columns[name].put(data)
        n = len(next(iter(rows.values())))
        self._note({"rows": n, "digests": {name: _digest(data) for name, data in pieces.items()}})
        self.done += n

    def _note(self, line: dict[str, Any]) -> None:
        self._journal.write(json.dumps(line).encode() + b"\n")
        self._journal.flush()

    def finish(self) -> None:
        """Brings everything to the disk, and writes the table; raises OSError."""
        for column in self._columns.values():
            to_disk(column.file)
        table = {
            name: {"dtype": dtype.name, "shape": (self._count, *row), **self._columns[name].told()}
            for name, (dtype, row) in self._kinds.items()
        }
        with open(self.folder / TABLE, "w", encoding="utf-8") as text:
            json.dump({"format": FORMAT, "arrays": table}, text, indent=1)
            to_disk(text)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_exception) -> None:
        with contextlib.suppress(OSError):  # of a full disk it was told before
            self._journal.close()
        self._close_columns()

    def _close_columns(self) -> None:
        for column in self._columns.values():
            with contextlib.suppress(OSError):
                column.file.close()
        self._columns = {}

    def _proven(self) -> int:
        """Takes what is there as far as it is proven; how many bytes of the journal tell of that."""
        self._journal.seek(0)
        first, *lines = self._journal.readlines() or [b""]
        proven = len(first)
        try:
            self._kinds = _kinds(first)
            for name, kind in self._kinds.items():
                self._columns[name] = _Column(self.folder, name, *kind, self._count, "r+b")
            for line in lines:
                told = json.loads(line)
                n, wanted = int(told["rows"]), told["digests"]
                if not 0 < n <= self._count - self.done or wanted.keys() != self._kinds.keys():
                    break
                pieces = {name: column.read(n) for name, column in self._columns.items()}
                if {name: _digest(data) for name, data in pieces.items()} != wanted:
                    break
                for name, data in pieces.items():
                    self._columns[name].count(data)
                self.done, proven = self.done + n, proven + len(line)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            pass  # torn or damaged from here on
        return proven


class _Column:
    """The file of an array, and the digest of what counts of it."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype, row: tuple[int, ...], count: int, mode: str):
        """With `r+b` raises ValueError where another array begins."""
        self.file = open(folder / f"{name}.npy", mode)
        self._digest, self._size, self._row = hashlib.blake2b(digest_size=16), 0, math.prod(row) * dtype.itemsize
        head = _header(dtype, (count, *row))
        if mode == "w+b":
            self.put(head)
        elif self.file.read(len(head)) == head:
            self.count(head)
        else:
            raise ValueError(f"{name}.npy begins otherwise")

    def put(self, data: bytes) -> None:
        self.file.write(data)
        self.file.flush()
        self.count(data)

    def read(self, rows: int) -> bytes:
        """The next rows, or what there is of them."""
        return self.file.read(rows * self._row)

    def count(self, data: bytes) -> None:
        self._digest.update(data)
        self._size += len(data)

    def cut(self) -> None:
        """Takes away what does not count."""
        self.file.seek(self._size)
        self.file.truncate()

    def told(self) -> dict[str, Any]:
        return {"bytes": self._size, "digest": self._digest.hexdigest()}


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _kinds(line: bytes) -> Kinds:
    """The journal's first line; raises one of many errors for another."""
    kinds = {}
    for name, told in json.loads(line).items():
        row = tuple(int(n) for n in told["row"])
        if not name.isidentifier() or min(row, default=0) < 0:  # a name that leads elsewhere
            raise ValueError(name)
        kinds[name] = jnp.dtype(told["dtype"]), row
    return kinds


def _header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    head = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, described)
    return head.getvalue()


def publish(folder: Path, entry: Path) -> None:
    """Makes a finished folder the entry, unless another process has been faster; raises OSError."""
    names_to_disk(folder)
    try:
        os.replace(folder, entry)
    except OSError:
        if not entry.is_dir():
            raise
        return
    names_to_disk(entry.parent)
    with contextlib.suppress(OSError):
        os.remove(entry / JOURNAL)
    write_checked(entry)
