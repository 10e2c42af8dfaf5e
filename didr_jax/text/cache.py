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

import jax
import jax.numpy as jnp
import numpy as np

from didr_jax.models.rows import alone
from didr_jax.text.encoder import TextEncoder
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
      InputError: the cache cannot be written, a value is beyond the range of float16, or the encoder cannot be read.
    """
    entry = Path(cache).expanduser() / f"{key}-{dtype}"
    if not entry.is_dir():
        say(f"embedding {len(prompts):,} prompts into {entry}")
        partial = _begin(entry)
        try:
            _write(partial, prompts, make_encoder(), jnp.dtype(dtype), batch_size)
            _publish(partial, entry)
        finally:
            shutil.rmtree(partial, ignore_errors=True)  # not there any more if all went well
    arrays = {path.stem: np.load(path, mmap_mode="r") for path in sorted(entry.glob("*.npy"))}
    # numpy's format has no bfloat16: it comes back as two bytes without a meaning
    return {name: array.view(jnp.bfloat16) if array.dtype.kind == "V" else array for name, array in arrays.items()}


def _begin(entry: Path) -> Path:
    """A folder of another name beside the entry, to be filled."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f"{entry.name}.partial-", dir=entry.parent))
    except OSError as error:
        raise InputError(f"config.data.cache: cannot write {entry} ({error.strerror or error}); choose another") from error


@alone()  # every process embeds all prompts
def _write(folder: Path, prompts: Sequence[str], encoder: TextEncoder, dtype: np.dtype, batch_size: int) -> None:
    params, encode = encoder.weights.load(), jax.jit(encoder.encode)
    arrays: dict[str, np.memmap] = {}
    for start in range(0, len(prompts), batch_size):
        chunk = list(prompts[start : start + batch_size])
        filled = chunk + [""] * (batch_size - len(chunk))
        for name, values in encode(params, encoder.tokenize(filled)).items():
            values = np.asarray(values)[: len(chunk)]
            kind = dtype if jnp.issubdtype(values.dtype, jnp.floating) else values.dtype
            if kind == np.float16 and np.abs(values).max() > np.finfo(np.float16).max:
                raise InputError(f"config.data.dtype: {name!r} has values beyond float16; choose bfloat16 or float32")
            if name not in arrays:
                arrays[name] = _array(folder / f"{name}.npy", kind, (len(prompts), *values.shape[1:]))
            arrays[name][start : start + len(chunk)] = values
    for array in arrays.values():
        array.flush()


def _array(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
    try:
        return np.lib.format.open_memmap(path, "w+", dtype, shape)
    except OSError as error:
        raise InputError(f"config.data.cache: cannot write {path} ({error.strerror or error}); choose another") from error


def _publish(partial: Path, entry: Path) -> None:
    try:
        os.replace(partial, entry)
    except OSError:
        if not entry.is_dir():  # another run has not been faster
            raise
