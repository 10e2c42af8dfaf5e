"""Whether what a config's paths name is still the same, wherever it lies now.

A digest is of the names and contents of all files; of a file above `WHOLE` bytes, of its size and of `BLOCKS` pieces spread
over it: any training changes nearly all of the bytes of weights, and nobody waits for terabytes to be read.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WHOLE = 32 * 2**20
BLOCKS, BLOCK = 1024, 4096


def digest_at(path: str | os.PathLike) -> str | None:
    """Of a file or a folder; None if nothing is there, or it cannot be read."""
    root, total = Path(path).expanduser(), hashlib.blake2b(digest_size=16)
    try:
        files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else []
        for file in files:
            name = "" if file == root else file.relative_to(root).as_posix()
            total.update(f"{name}\0{file.stat().st_size}\0".encode(errors="surrogateescape"))
            _add(total, file)
    except OSError:
        return None
    return total.hexdigest() if files else None


def _add(total: Any, path: Path) -> None:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= WHOLE:
            total.update(file.read())
            return
        for i in range(BLOCKS):
            file.seek(i * (size - BLOCK) // (BLOCKS - 1))
            total.update(file.read(BLOCK))


def digests_of(flat: Mapping[str, Any]) -> dict[str, str]:
    """`{key: digest}` of the values of a flat config that name a file or a folder."""
    paths = {
        key: value
        for key, value in flat.items()
        if isinstance(value, str) and value and os.path.exists(os.path.expanduser(value))
    }
    found = ((key, digest_at(value)) for key, value in paths.items())
    return {key: digest for key, digest in found if digest}
