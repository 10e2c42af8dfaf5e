"""Text embeddings on disk: computed once per prompt file and encoder, read through memory maps ever after.

An entry is a folder `CACHE/KEY/` with one `.npy` per array, first axis the prompts.  KEY is a digest of
everything the values depend on, so an entry is either right or not there: it is written under another
name and renamed when whole, and other runs may share it.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from didr_jax.types import InputError

Arrays = dict[str, np.ndarray]


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
    encode: Callable[[Sequence[str]], Arrays],
    *,
    dtype: str = "float16",
    batch_size: int = 32,
    say: Callable[[str], None] = print,
) -> Arrays:
    """`encode(prompts)`, from disk if it is there.

    Args:
      cache: folder of entries; made if missing.
      key: digest of all that the values depend on besides `dtype`.
      prompts: n strings.
      encode: b strings -> {name: [b, ...]}; always called with `batch_size` strings, so that it compiles once.
      dtype: of floating-point arrays on disk, `float16`, `bfloat16` or `float32`; integers stay as they are.
      batch_size: b.
      say: told what is computed, and where it went.

    Returns:
      {name: memory map [n, ...]}.

    Raises:
      InputError: the cache cannot be written, or a value is beyond the range of float16.
    """
    entry = Path(cache).expanduser() / f"{key}-{dtype}"
    if not entry.is_dir():
        say(f"embedding {len(prompts):,} prompts into {entry}")
        try:
            _write(entry, prompts, encode, jnp.dtype(dtype), batch_size)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"config.data.cache: cannot write {entry} ({reason}); choose another") from error
    arrays = {path.stem: np.load(path, mmap_mode="r") for path in sorted(entry.glob("*.npy"))}
    # numpy's format has no bfloat16: it comes back as two bytes without a meaning
    return {name: array.view(jnp.bfloat16) if array.dtype.kind == "V" else array for name, array in arrays.items()}


def _write(entry: Path, prompts, encode, dtype: np.dtype, batch_size: int) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{entry.name}.partial-", dir=entry.parent))
    arrays: Arrays = {}
    for start in range(0, len(prompts), batch_size):
        chunk = list(prompts[start : start + batch_size])
        for name, values in encode(chunk + [""] * (batch_size - len(chunk))).items():
            values = np.asarray(values)[: len(chunk)]
            kind = dtype if np.issubdtype(values.dtype, np.floating) else values.dtype
            if kind == np.float16 and np.abs(values).max() > np.finfo(np.float16).max:
                shutil.rmtree(partial)
                raise InputError(f"config.data.dtype: {name!r} has values beyond float16; choose bfloat16 or float32")
            if name not in arrays:
                shape = (len(prompts), *values.shape[1:])
                arrays[name] = np.lib.format.open_memmap(partial / f"{name}.npy", "w+", kind, shape)
            arrays[name][start : start + len(chunk)] = values
    for array in arrays.values():
        array.flush()
    try:
        os.replace(partial, entry)
    except OSError:
        if not entry.is_dir():  # another run has not been faster
            raise
        shutil.rmtree(partial)
