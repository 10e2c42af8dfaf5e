"""Files that are there whole or not at all, whenever the process or the machine dies, and whatever the disk does.

Everything that is written as a whole is written here: beside its name first, brought to the disk, then renamed.
"""

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from typing import IO

from didr_jax.exits import CannotSave

# Kinds of OSError that say nothing against the place.
DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


def cannot_save(path: str | os.PathLike, error: OSError) -> CannotSave:
    """One line for a write that the system refused."""
    return CannotSave(f"could not write {path} ({error.strerror or error}); make room and start again")


@contextlib.contextmanager
def saving(where: str | os.PathLike) -> Iterator[None]:
    """What the system refuses to write becomes `cannot_save`, with `where` unless the error names a file."""
    try:
        yield
    except OSError as error:
        raise cannot_save(error.filename or where, error) from error


def of_the_disk(error: BaseException | None) -> bool:
    """Whether an exception, or one behind it, tells of a full or failing disk, in whatever words."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        if isinstance(error, OSError) and error.errno in DISK or os.strerror(errno.ENOSPC) in str(error):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def whole_file(path: str | os.PathLike, binary: bool = False, newline: str | None = None) -> Iterator[IO]:
    """A file to write to, in UTF-8 unless it is binary, that takes its name when it is whole; its folder is made.

    Raises:
      CannotSave: it could not be written; what stood there before still does.
    """
    path = os.fspath(path)
    temporary = f"{path}.{secrets.token_hex(4)}.tmp"  # another process may be writing it too
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with open(temporary, "wb") if binary else open(temporary, "w", encoding="utf-8", newline=newline) as file:
            yield file
            to_disk(file)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        if isinstance(error, OSError):
            raise cannot_save(path, error) from error
        raise


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Removes what killed processes left of whole files below a folder; for whoever alone may write there."""
    for root, _, names in os.walk(os.fspath(folder)):
        for name in names:
            if re.search(r".\.[0-9a-f]{8}\.tmp$", name):
                os.remove(os.path.join(root, name))


def write_json(path: str | os.PathLike, content, sort_keys: bool = False) -> None:
    """A `whole_file` of JSON."""
    with whole_file(path) as file:
        json.dump(content, file, indent=2, sort_keys=sort_keys)


def to_disk(file: IO) -> None:
    """All that was written to an open file; raises OSError."""
    file.flush()
    os.fsync(file.fileno())


def names_to_disk(folder: str | os.PathLike) -> None:
    """The names in a folder, which are not those of its files."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems cannot
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def probe(path: str, size: int = 2**16) -> None:
    """Writes a file of some bytes and removes it; raises OSError."""
    try:
        with open(path, "wb") as file:
            file.write(bytes(size))
    finally:
        with contextlib.suppress(OSError):
            os.remove(path)


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike) -> Iterator[str]:
    """A folder to fill whose files take their places in `path` when all of them are whole.

    What else lies in `path` stays.

    Raises:
      CannotSave: it could not be filled; what stood there before still does.
    """
    path = os.fspath(path)
    temporary = f"{path}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
        os.makedirs(temporary)
        yield temporary
        _into_place(temporary, path)
    except OSError as error:
        raise cannot_save(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _into_place(folder: str, path: str) -> None:
    if not os.path.lexists(path):
        return os.replace(folder, path)
    for root, _, names in os.walk(folder):
        place = os.path.normpath(os.path.join(path, os.path.relpath(root, folder)))
        os.makedirs(place, exist_ok=True)
        for name in names:
            os.replace(os.path.join(root, name), os.path.join(place, name))
