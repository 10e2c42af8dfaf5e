"""The workdir of a run: its config, one live run at a time."""

import contextlib
import errno
import fcntl
import os
import shutil
import socket
from collections.abc import Mapping
from typing import Any

from didr_jax.exits import CannotSave
from didr_jax.json_files import read_object
from didr_jax.training.redact import redacted
from didr_jax.types import InputError
from didr_jax.whole_files import DISK, cannot_save, probe, saving, write_json

LAYOUT = 2  # of a workdir; 1, before didr_jax 0.2, kept the products inside the state
CONFIG = "config.json"
KEY = "didr_jax"  # of the entry in config.json that says who wrote it
CORRUPT = "corrupt"  # folder of saves that could not be read back
UNSAVED = "unsaved"  # folder of what the last start left that saved nothing:
TOLD = ("metrics.jsonl", "progress", "stopped.json", "tensorboard")


def make_workdir(workdir: str) -> None:
    """Makes `workdir` if it is missing.

    Raises:
      InputError: nothing can be written to it.
      CannotSave: its disk is full.
    """
    try:
        os.makedirs(workdir, exist_ok=True)
        probe(os.path.join(workdir, ".writable"))
    except OSError as error:
        raise _unusable(workdir, error, f"cannot be written to ({error.strerror}); choose another") from None


def _unusable(workdir: str, error: OSError, why: str) -> InputError | CannotSave:
    return cannot_save(workdir, error) if error.errno in DISK else InputError(f"--workdir={workdir} {why}")


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


def has_saves(workdir: str) -> bool:
    """Whether there is anything in a workdir that was trained: a save, or a damaged one that was set aside."""
    try:
        stages = os.listdir(os.path.join(workdir, "checkpoints"))
    except OSError:
        return False
    damaged = os.path.join(workdir, "checkpoints", CORRUPT)
    return any(saved_steps(workdir, stage) for stage in stages) or (os.path.isdir(damaged) and bool(os.listdir(damaged)))


def begin_anew(workdir: str) -> str:
    """Puts what a start logged that saved nothing into `workdir/unsaved`, so that it does not mix with the next one's.

    Returns:
      The folder; empty: there was nothing.

    Raises:
      CannotSave: it cannot be moved.
    """
    there = [name for name in TOLD if os.path.lexists(os.path.join(workdir, name))]
    aside = os.path.join(workdir, UNSAVED)
    if not there:
        return ""
    with saving(aside):
        shutil.rmtree(aside, ignore_errors=True)
        os.makedirs(aside)
        for name in there:
            os.replace(os.path.join(workdir, name), os.path.join(aside, name))
    return aside


@contextlib.contextmanager
def lock(workdir: str):
    """Holds `workdir/.lock` while open.

    The lock belongs to the open file (flock), so a run that was killed holds nothing.  File systems
    without locks (some network mounts) let everyone in.

    Raises:
      InputError: another run holds it; it is named.
      CannotSave: there is no room for it.
    """
    path = os.path.join(workdir, ".lock")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise _unusable(workdir, error, f"has a lock {path} that cannot be opened ({error.strerror}); remove it") from None
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
