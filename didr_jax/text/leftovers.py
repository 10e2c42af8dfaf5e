"""Pieces of the text cache that are being written, and what processes that were stopped have left of them.

A piece is a folder `ENTRY.partial-RANDOM` beside its entry.  The process that fills it holds a lock (flock) on
`ENTRY.partial-RANDOM.lock`: a piece whose lock is free is nobody's any more.  Whoever builds the same entry goes on with
it, if it is this user's; after a day, anybody who builds in the cache removes it.
"""

import contextlib
import fcntl
import glob
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from didr_jax.types import InputError

PARTIAL, LOCK = ".partial-", ".lock"
JOURNAL = ".progress"  # in a piece that can be gone on with: what is in it (`text.writer`)
FORGOTTEN = 24 * 3600  # seconds after which a piece that nobody fills is removed


@contextlib.contextmanager
def partial(entry: Path) -> Iterator[Path]:
    """A folder beside the entry, ours while open and gone afterwards, unless it was renamed; raises OSError."""
    folder, mark = _new(entry)
    try:
        yield folder
    finally:
        _remove(folder)
        os.close(mark)


@contextlib.contextmanager
def building(entry: Path) -> Iterator[Path]:
    """A folder beside the entry to build it in: one that was left, or a new one; raises OSError.

    It stays if the block is interrupted, by whatever but an `InputError`: that says what was in it is of no use.
    """
    folder, mark = _left(entry) or _new(entry)
    stays = False
    try:
        yield folder
    except InputError:
        raise
    except BaseException:
        stays = _can_go_on(folder)
        raise
    finally:
        if not stays:
            _remove(folder)
        os.close(mark)


def set_aside(entry: Path) -> None:
    """Removes an entry that is not what was written, so that a good one can take its name; raises OSError."""
    with partial(entry) as folder, contextlib.suppress(FileNotFoundError):  # another process did
        os.replace(entry, folder / entry.name)


def remove_leftovers(cache: Path) -> None:
    """Removes the pieces in a cache that nobody is filling any more, nor will."""
    with contextlib.suppress(OSError):
        for path in cache.glob(f"*{PARTIAL}*"):
            folder = path.with_name(path.name.removesuffix(LOCK))
            with _taken(folder) as free:
                if free or not os.path.lexists(f"{folder}{LOCK}") and _old(path):
                    _remove_unless_wanted(folder)


def _remove_unless_wanted(folder: Path) -> None:
    published = folder.with_name(folder.name.partition(PARTIAL)[0]).exists()
    if published or not _can_go_on(folder) or _old(folder / JOURNAL):
        _remove(folder)


def _new(entry: Path) -> tuple[Path, int]:
    """A new piece, and the open file that holds its lock."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    folder = entry.parent / f"{entry.name}{PARTIAL}{secrets.token_hex(8)}"
    folder.mkdir()  # open to whom the umask says, since others may share the cache
    young = f"{folder}.new"  # nobody sees a lock file that is not locked yet
    try:
        mark = os.open(young, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(young, f"{folder}{LOCK}")
    except OSError:
        _remove(folder)
        raise
    return folder, mark


def _left(entry: Path) -> tuple[Path, int] | None:
    """The piece of the entry, this user's and nobody's at the moment, in which there is most; None: there is none."""
    found = [path for path in entry.parent.glob(f"{glob.escape(entry.name)}{PARTIAL}*") if _can_go_on(path)]
    for folder in sorted(found, key=_length, reverse=True):
        with contextlib.suppress(OSError):
            stat = folder.lstat()
            if folder.is_symlink() or stat.st_uid != os.geteuid():
                continue
            mark = _lock_of(folder)
            if mark is not None:
                return folder, mark
    return None


def _can_go_on(folder: Path) -> bool:
    return _length(folder) > 0


def _length(folder: Path) -> int:
    try:
        return os.lstat(folder / JOURNAL).st_size
    except OSError:
        return 0


def _lock_of(folder: Path) -> int | None:
    """The open file that holds the lock of a piece, if it was free; raises OSError."""
    path = f"{folder}{LOCK}"
    mark = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(mark), os.stat(path)):  # not removed since it was opened
            return mark
    except OSError:
        pass
    os.close(mark)
    return None


@contextlib.contextmanager
def _taken(folder: Path) -> Iterator[bool]:
    """Whether the lock of a piece was free; it is held while open."""
    mark = None
    with contextlib.suppress(OSError):  # there is none, or it is another user's
        mark = _lock_of(folder)
    try:
        yield mark is not None
    finally:
        if mark is not None:
            os.close(mark)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for file in (folder, f"{folder}{LOCK}", f"{folder}.new"):
        with contextlib.suppress(OSError):
            os.remove(file)


def _old(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime > FORGOTTEN
    return False
