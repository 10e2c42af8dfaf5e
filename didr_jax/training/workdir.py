"""The workdir of a run: one config for good, one live run at a time, whole files only."""

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from didr_jax.config import flatten
from didr_jax.json_files import read_object
from didr_jax.training.exits import CannotSave
from didr_jax.training.redact import redacted
from didr_jax.types import InputError

LAYOUT = 2  # of a workdir; 1, before didr_jax 0.2, kept the products inside the state
KEY = "didr_jax"  # of the entry in config.json that says who wrote it

# What may change between a run and its resumption: these do not touch what is trained.  Recipes add their own.
FREE = ("log", "checkpoint", "watch", "profile", "mesh", "distributed", "compile", "compiler")


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


def claim_workdir(config, workdir: str, free: Sequence[str] = (), start: Mapping[str, Any] | None = None) -> None:
    """Refuses `workdir` if it belongs to another config, and saves the resolved config in it.

    To be called by the holder of its `lock`, so that of two runs that start at once only one writes.

    Args:
      config: of the run.
      workdir: of `make_workdir`.
      free: sections of the config, besides `FREE`, that may differ from those of an earlier start.
      start: how a run was begun, as `report.html` tells it: its `program`, its `flags`, the `modes` that it has; None: keep
        what an earlier start said.

    Raises:
      InputError: trained with values that contradict `config` (all are named), or by another version.
    """
    path = os.path.join(workdir, "config.json")
    about: Mapping[str, Any] = {}
    if os.path.exists(path):
        raw, about = _read(path, workdir)
        _require_same(config, raw, workdir, (*FREE, *free))
    write_json(path, {KEY: {**(start or about), "layout": LAYOUT}, **redacted(config.to_dict())}, sort_keys=True)


def _read(path: str, workdir: str) -> tuple[dict, dict]:
    """The config, and what is said of who wrote it."""
    remedy = "put back a good copy, or use a new workdir"
    raw = read_object(path, remedy)
    about = raw.pop(KEY, {"layout": 1})
    layout = about.get("layout") if isinstance(about, dict) else None
    if type(layout) is not int:
        raise InputError(f"{path} cannot be read (it does not say its layout); {remedy}")
    if layout != LAYOUT:
        older = "an older" if layout < LAYOUT else "a newer"
        raise InputError(
            f"--workdir={workdir} belongs to {older} didr_jax (workdir layout {layout}, this version's is {LAYOUT}): "
            "go on with that version, or use a new workdir"
        )
    return raw, about


def _require_same(config, raw: dict, workdir: str, free: Sequence[str]) -> None:
    now, then = flatten(redacted(config.to_dict())), flatten(redacted(raw))
    fixed = lambda key: key.split(".")[0] not in free and not key.endswith(".micro_batches")
    differing = [
        f"{key} ({then.get(key)!r} then, {now.get(key)!r} now)"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key) and fixed(key)
    ]
    if differing:
        raise InputError(
            f"--workdir={workdir} was trained with another config: {'; '.join(differing)}. Use a new workdir, or the same values"
        )


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
