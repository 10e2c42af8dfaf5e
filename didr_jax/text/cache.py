"""Text embeddings on disk: computed once per prompt file and encoder, read through memory maps ever after.

An entry (`text.entry`) is a folder `CACHE/KEY/` with one `.npy` per array, first axis the prompts.  KEY is a digest of
everything the values depend on, and the entry has digests of the values: what is not what was written is computed
again.  A build that is interrupted goes on where it was.  Other runs and users may share the cache.

All processes of a run embed together (`text.spread`), and one of them writes: those that see its folder wait for it, and
those whose cache is a folder of their own write a copy there.
"""

import contextlib
import errno
import functools
import hashlib
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from didr_jax.agreement import agreed, heard
from didr_jax.exits import CannotSave
from didr_jax.finite import all_finite
from didr_jax.text.encoder import TextEncoder
from didr_jax.text.entry import Arrays, Damaged, open_entry
from didr_jax.text.leftovers import building, remove_leftovers, set_aside
from didr_jax.text.spread import embedded
from didr_jax.text.writer import Writer, publish
from didr_jax.types import InputError
from didr_jax.whole_files import DISK, cannot_save

KINDS = (InputError, CannotSave, Damaged)  # what one process raises, all do
PATIENCE = 120.0  # seconds in which what another process has renamed is seen here: file systems of networks remember names


def digest_tensors(tensors: Mapping[str, Any]) -> str:
    """A digest of named arrays: names, types, shapes and contents."""
    total = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        total.update(f"{name}\0{array.dtype.name}\0{list(array.shape)}\0".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def digest_files(places: Iterable[str | os.PathLike]) -> str:
    """A digest of the names and contents of all files in folders, or of single files; their place does not enter."""
    total = hashlib.blake2b(digest_size=16)
    for place in map(Path, places):
        folder, files = (place.parent, [place]) if place.is_file() else (place, sorted(place.rglob("*")))
        for path in (p for p in files if p.is_file()):
            total.update(str(path.relative_to(folder)).encode() + b"\0")
            with open(path, "rb") as file:
                total.update(hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest())
    return total.hexdigest()


def digest_texts(*parts: Sequence[str]) -> str:
    """A digest of lists of strings."""
    total = hashlib.blake2b(digest_size=16)
    for part in parts:
        total.update(len(part).to_bytes(8, "little"))
        for text in part:
            total.update(len(text.encode()).to_bytes(8, "little") + text.encode())
    return total.hexdigest()


def cached(
    cache: str | os.PathLike,
    key: str,
    prompts: Sequence[str],
    make_encoder: Callable[[], TextEncoder],
    *,
    dtype: str = "float16",
    batch_size: int = 32,
    say: Callable[[str], None] = print,
) -> Arrays:
    """The embeddings of prompts, from disk if they are there.  Every process of a run calls it, with the same arguments.

    Args:
      cache: folder of entries; made if missing.
      key: digest of all that the values depend on besides `dtype`.
      prompts: n strings.
      make_encoder: called where there is no such entry; its weights are held while the entry is written and no longer.
      dtype: of floating-point arrays on disk, `float16`, `bfloat16` or `float32`; integers stay as they are.
      batch_size: prompts that a device encodes at once, always so many, so that the encoder compiles once.
      say: told what is computed, and where it went.

    Returns:
      {name: memory map [n, ...]}.

    Raises:
      InputError: the cache cannot be read or written to, a value is not finite or beyond the range of `dtype`, or the
        encoder cannot be read.
      CannotSave: the disk is full.  What was embedded is kept: the next call goes on after it.
    """
    entry = Path(cache).expanduser() / f"{key}-{dtype}"
    for _ in range(3):  # another process may remove a damaged entry, or be faster
        arrays = agreed(lambda: _opened(entry, len(prompts), say), KINDS)
        lacking = [bool(told) for told in heard("" if arrays is not None else "lacks it")]
        if arrays is not None and not any(lacking):
            return arrays
        try:
            _build(entry, lacking, prompts, make_encoder, jnp.dtype(dtype), batch_size, say)
        except Damaged as damage:
            say(f"{entry}: {damage}: all is computed again")
    raise InputError(f"config.data.cache: {entry} changes while it is used; choose another")


def _build(
    entry: Path,
    lacking: Sequence[bool],
    prompts: Sequence[str],
    make_encoder: Callable[[], TextEncoder],
    dtype: np.dtype,
    batch_size: int,
    say: Callable[[str], None],
) -> None:
    """Makes the entry, going on with what was left of it; `lacking`: of each process, whether it has none."""
    encoder = agreed(make_encoder)
    with contextlib.ExitStack() as held:
        writer = _writer(entry, lacking, len(prompts), held)
        at = min(int(done) for done in heard("" if writer is None else str(writer.done)) if done)
        what = f"{len(prompts) - at:,} of {len(prompts):,} prompts" if at else f"{len(prompts):,} prompts"
        say(f"embedding {what} into {entry}")
        written = lambda work: agreed(lambda: work(writer) if writer else None, KINDS)
        written(lambda writer: _require_room(entry, encoder.shapes, len(prompts) - writer.done, dtype))
        for found in embedded(prompts[at:], encoder, batch_size) if at < len(prompts) else ():
            n = len(next(iter(found.values())))
            rows = {name: _stored(name, values, dtype, prompts[at : at + n]) for name, values in found.items()}
            written(functools.partial(_add, entry=entry, rows=rows, at=at))
            at += n
        written(functools.partial(_publish, entry=entry))
    if lacking[jax.process_index()] and writer is None:
        waited = time.monotonic()
        while not entry.exists() and time.monotonic() - waited < PATIENCE:
            time.sleep(0.1)


def _writer(entry: Path, lacking: Sequence[bool], count: int, held: contextlib.ExitStack) -> Writer | None:
    """What writes the entry in this process, open for as long as `held`; None: another one does, or it is there."""
    first, here = lacking.index(True), jax.process_index()

    def opened() -> Writer:
        with _writing(entry):
            folder = held.enter_context(building(entry))
            remove_leftovers(entry.parent)
            return held.enter_context(Writer(folder, count))

    writer = agreed(lambda: opened() if here == first else None, KINDS)
    name = heard(writer.folder.name if writer else "")[first]
    apart = here != first and lacking[here] and not (entry.parent / name).is_dir()
    other = agreed(lambda: opened() if apart else None, KINDS)
    return writer or other


def _add(writer: Writer, rows: Mapping[str, np.ndarray], at: int, entry: Path) -> None:
    """Writes what it has not yet of the rows from `at` on."""
    new = {name: values[max(writer.done - at, 0) :] for name, values in rows.items()}
    if len(next(iter(new.values()))):
        with _writing(entry, begun=True):
            writer.add(new)


def _publish(writer: Writer, entry: Path) -> None:
    with _writing(entry, begun=True):
        writer.finish()
        publish(writer.folder, entry)


def _require_room(entry: Path, shapes: Mapping[str, jax.ShapeDtypeStruct], count: int, dtype: np.dtype) -> None:
    """Raises CannotSave if rows of these shapes will not fit."""
    floating = lambda kind: jnp.issubdtype(kind, jnp.floating)
    sizes = (math.prod(a.shape[1:]) * (dtype if floating(a.dtype) else a.dtype).itemsize for a in shapes.values())
    need, free = count * sum(sizes), shutil.disk_usage(entry.parent).free
    if need > free:
        room = f"{os.strerror(errno.ENOSPC)}: it needs {need / 1e9:.3g} GB, {free / 1e9:.3g} GB are free"
        raise CannotSave(f"config.data.cache: could not write {entry} ({room}); make room, or choose another")


def _opened(entry: Path, count: int, say: Callable[[str], None]) -> Arrays | None:
    """The entry, or None where there is none, or was one that is not what was written."""
    try:
        return open_entry(entry, count)
    except FileNotFoundError:  # removed this very moment
        return None
    except OSError as error:
        raise InputError(f"config.data.cache: cannot read {entry} ({error.strerror or error}); choose another") from error
    except Damaged as damage:
        say(f"{entry} is damaged ({damage}): its embeddings are computed again")
    with _writing(entry):
        set_aside(entry)
    return None


@contextlib.contextmanager
def _writing(entry: Path, begun: bool = False) -> Iterator[None]:
    """`begun`: something has been written there already, so that it is not the wrong place."""
    try:
        yield
    except OSError as error:
        if begun or error.errno in DISK:
            raise cannot_save(entry, error) from error
        raise InputError(f"config.data.cache: cannot write {entry} ({error.strerror or error}); choose another") from error


def _stored(name: str, values: np.ndarray, dtype: np.dtype, prompts: Sequence[str]) -> np.ndarray:
    """The rows of some prompts as they go to disk."""
    if not jnp.issubdtype(values.dtype, jnp.floating):
        return values
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(values.astype(dtype))
    if all_finite(narrow):
        return narrow
    for row, prompt in zip(values, prompts, strict=True):
        if not all_finite(np.ascontiguousarray(row)):
            raise InputError(
                f"text encoder: the embedding {name!r} of the prompt {prompt[:60]!r} is not finite; look at the encoder's "
                "weights and the type it computes in"
            )
    raise InputError(f"config.data.dtype: {name!r} has values beyond {dtype.name}; choose bfloat16 or float32")
