"""Text embeddings on disk: computed once per prompt file and encoder, read through memory maps ever after.

An entry (`text.entry`) is a folder `CACHE/KEY/` with one `.npy` per array, first axis the prompts.  KEY is a digest of
everything the values depend on, and the entry has digests of the values: what is not what was written is computed
again.  A build that is interrupted goes on where it was.  Other runs and users may share the cache.
"""

import contextlib
import errno
import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from didr_jax.exits import CannotSave
from didr_jax.finite import all_finite
from didr_jax.models.rows import alone
from didr_jax.text.encoder import TextEncoder
from didr_jax.text.entry import Arrays, Damaged, open_entry
from didr_jax.text.leftovers import building, remove_leftovers, set_aside
from didr_jax.text.writer import Writer, publish
from didr_jax.types import InputError
from didr_jax.whole_files import DISK, cannot_save


def digest_tensors(tensors: Mapping[str, Any]) -> str:
    """A digest of named arrays: names, types, shapes and contents."""
    total = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        total.update(f"{name}\0{array.dtype.name}\0{list(array.shape)}\0".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def digest_files(folders: Iterable[str | os.PathLike]) -> str:
    """A digest of the names and contents of all files in `folders`; their place does not enter."""
    total = hashlib.blake2b(digest_size=16)
    for folder in folders:
        for path in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
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
    """The embeddings of prompts, from disk if they are there.

    Args:
      cache: folder of entries; made if missing.
      key: digest of all that the values depend on besides `dtype`.
      prompts: n strings.
      make_encoder: called where there is no such entry; its weights are held while the entry is written and no longer.
      dtype: of floating-point arrays on disk, `float16`, `bfloat16` or `float32`; integers stay as they are.
      batch_size: prompts encoded at once, always so many, so that the encoder compiles once.
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
        arrays = _opened(entry, len(prompts), say)
        if arrays is None:
            try:
                _build(entry, prompts, make_encoder, jnp.dtype(dtype), batch_size, say)
            except Damaged as damage:
                say(f"{entry}: {damage}: all is computed again")
        else:
            return arrays
    raise InputError(f"config.data.cache: {entry} changes while it is used; choose another")


def _build(
    entry: Path,
    prompts: Sequence[str],
    make_encoder: Callable[[], TextEncoder],
    dtype: np.dtype,
    batch_size: int,
    say: Callable[[str], None],
) -> None:
    """Makes the entry, going on with what was left of it."""
    encoder = make_encoder()
    with contextlib.ExitStack() as held:
        with _writing(entry):
            folder = held.enter_context(building(entry))
            remove_leftovers(entry.parent)
            writer = held.enter_context(Writer(folder, len(prompts)))
        held.enter_context(alone())  # every process embeds all prompts
        left = prompts[writer.done :]
        what = f"{len(left):,} of {len(prompts):,} prompts" if writer.done else f"{len(prompts):,} prompts"
        say(f"embedding {what} into {entry}")
        _require_room(entry, encoder.shapes, len(left), dtype)
        for rows in _embedded(left, encoder, dtype, batch_size) if left else ():
            with _writing(entry, begun=True):
                writer.add(rows)
        with _writing(entry, begun=True):
            writer.finish()
            publish(folder, entry)


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


def _embedded(prompts: Sequence[str], encoder: TextEncoder, dtype: np.dtype, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """The next rows of all arrays as they go to disk."""
    params, encode = encoder.weights.load(), jax.jit(encoder.encode)
    for start in range(0, len(prompts), batch_size):
        chunk = list(prompts[start : start + batch_size])
        filled = chunk + [""] * (batch_size - len(chunk))
        found = encode(params, encoder.tokenize(filled))
        yield {name: _stored(name, np.asarray(values)[: len(chunk)], dtype, chunk) for name, values in found.items()}


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
