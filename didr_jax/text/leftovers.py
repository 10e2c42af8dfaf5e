"""Pieces of the text cache that are being written, and what processes that were killed have left of them.

A piece is a folder `ENTRY.partial-RANDOM` beside its entry.  The process that fills it holds a lock (flock) on
`ENTRY.partial-RANDOM.lock`: a piece whose lock is free is nobody's any more.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

PARTIAL, LOCK = ".partial-", ".lock"
FORGOTTEN = 24 * 3600  # seconds after which a piece without a lock file is nobody's


@contextlib.contextmanager
def partial(entry: Path) -> Iterator[Path]:
    """A folder beside the entry, ours while open and gone afterwards, unless it was renamed; raises OSError."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    folder = entry.parent / f"{entry.name}{PARTIAL}{secrets.token_hex(8)}"
    folder.mkdir()  # open to whom the umask says, since others may share the cache
    try:
        with _locked(folder):
            yield folder
    finally:
        _remove(folder)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    young = f"{folder}.new"  # nobody sees a lock file that is not locked yet
    mark = os.open(young, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(young, f"{folder}{LOCK}")
        yield
    finally:
        os.close(mark)


def set_aside(entry: Path) -> None:
    """Removes an entry that is not what was written, so that a good one can take its name; raises OSError."""
    with partial(entry) as folder, contextlib.suppress(FileNotFoundError):  # another process did
        os.replace(entry, folder / entry.name)


def remove_leftovers(cache: Path) -> None:
    """Removes the pieces in a cache that nobody is filling any more."""
    with contextlib.suppress(OSError):
        for path in cache.glob(f"*{PARTIAL}*"):
            if not path.name.endswith(LOCK) and _forgotten(path):
                _remove(path)
        for mark in cache.glob(f"*{PARTIAL}*{LOCK}"):
            if not mark.with_name(mark.name.removesuffix(LOCK)).exists() and _forgotten(mark):
                mark.unlink()


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    for file in (path, f"{path}{LOCK}"):
        with contextlib.suppress(OSError):
            os.remove(file)


def _forgotten(path: Path) -> bool:
    """Whether nobody holds the lock of a piece, or, of one without, whether it is old."""
    mark = path if path.name.endswith(LOCK) else Path(f"{path}{LOCK}")
    try:
        descriptor = os.open(mark, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        with contextlib.suppress(OSError):
            return time.time() - path.stat().st_mtime > FORGOTTEN
        return False
    except OSError:  # another user's
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
