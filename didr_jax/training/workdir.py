"""The workdir of a run: its config, one live run at a time, whole files only."""

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator, Mapping
from typing import IO, Any

from didr_jax.json_files import read_object
from didr_jax.training.exits import CannotSave
from didr_jax.training.redact import redacted
from didr_jax.types import InputError

LAYOUT = 2  # of a workdir; 1, before didr_jax 0.2, kept the products inside the state
CONFIG = "config.json"
KEY = "didr_jax"  # of the entry in config.json that says who wrote it


def make_workdir(workdir: str) -> None:
    """Makes `workdir` if it is missing; raises InputError if nothing can be written to it."""
    try:
        os.makedirs(workdir, exist_ok=True)
        probe = os.path.join(workdir, ".writable")
        with open(probe, "w") as file:
            file.write("yes")
        os.remove(probe)
    except OSError as error:
        raise InputError(f"--workdir={workdir} cannot be written to ({error.strerror}); choose another") from None


def read_config(workdir: str) -> tuple[dict, dict] | None:
    """What `workdir/config.json` says: the config, and of itself: the `history` of its changes, how the run was begun; None
    if there is none.

    Raises:
      InputError: it cannot be read, or is of another version's layout.
    """
    path = os.path.join(workdir, CONFIG)
    if not os.path.exists(path):
        return None
    remedy = "put back a good copy, or use a new workdir"
    raw = read_object(path, remedy)
    about = raw.pop(KEY, {"layout": 1})
    layout = about.get("layout") if isinstance(about, dict) else None
    if type(layout) is not int or not isinstance(about.get("history", []), list):
        raise InputError(f"{path} cannot be read (it does not say its layout); {remedy}")
    if layout != LAYOUT:
        older = "an older" if layout < LAYOUT else "a newer"
        raise InputError(
            f"--workdir={workdir} belongs to {older} didr_jax (workdir layout {layout}, this version's is {LAYOUT}): "
            "go on with that version, or use a new workdir"
        )
    return raw, about


def write_config(workdir: str, config, about: Mapping[str, Any] | None = None) -> None:
    """The inverse of `read_config`; secrets are hidden (`redact`)."""
    content = {KEY: {**(about or {}), "layout": LAYOUT}, **redacted(config.to_dict())}
    write_json(os.path.join(workdir, CONFIG), content, sort_keys=True)


def saved_steps(workdir: str, stage: str) -> list[int]:
    """The steps of a stage's complete saves, in order, by the names of their folders."""
    try:
        return sorted(int(name) for name in os.listdir(os.path.join(workdir, "checkpoints", stage)) if name.isdecimal())
    except OSError:
        return []


def newest_step(workdir: str, stage: str) -> int | None:
    """The last of `saved_steps`; None if there is none."""
    return max(saved_steps(workdir, stage), default=None)


@contextlib.contextmanager
def whole_file(path: str, binary: bool = False) -> Iterator[IO]:
    """A file to write to that is there whole or not at all, whenever the process or the machine dies.

    Its folder is made.

    Raises:
      CannotSave: it could not be written; what stood there before still does.
    """
    temporary = f"{path}.tmp"
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with open(temporary, "wb") if binary else open(temporary, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        if isinstance(error, OSError):
            raise CannotSave(f"could not write {path} ({error.strerror or error}); make room and start again") from error
        raise


def write_json(path: str, content, sort_keys: bool = False) -> None:
    """A `whole_file` of JSON."""
    with whole_file(path) as file:
        json.dump(content, file, indent=2, sort_keys=sort_keys)


@contextlib.contextmanager
def lock(workdir: str):
    """Holds `workdir/.lock` while open.

    The lock belongs to the open file (flock), so a run that was killed holds nothing.  File systems
    without locks (some network mounts) let everyone in.

    Raises:
      InputError: another run holds it; it is named.
    """
    path = os.path.join(workdir, ".lock")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise InputError(f"--workdir={workdir}: {path} cannot be opened ({error.strerror}); remove it") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                holder = os.read(descriptor, 1000).decode(errors="replace").strip() or "unknown"
                raise InputError(
                    f"--workdir={workdir} is in use by a live run ({holder}); wait for it, stop it, or choose another"
                ) from None
        else:
            with contextlib.suppress(OSError):  # others are told who holds it, where there is room to tell
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        os.close(descriptor)
