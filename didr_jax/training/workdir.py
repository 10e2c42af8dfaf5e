"""The workdir of a run: one config for good, one live run at a time, whole files only."""

import contextlib
import errno
import fcntl
import json
import os
import socket

from didr_jax.config import flatten
from didr_jax.types import InputError

# What may change between a run and its resumption: these do not touch what is trained.
RESUMABLE = (
    "log", "checkpoint", "eval", "sample", "export", "score", "watch", "profile", "mesh", "distributed", "compile", "compiler",
)  # fmt: skip


def _resumable(key: str) -> bool:
    return key.split(".")[0] in RESUMABLE or key.endswith(".micro_batches")


def claim_workdir(config, workdir: str) -> None:
    """Makes `workdir`, refuses it if it belongs to another config, and saves the resolved config in it.

    Raises:
      InputError: not writable, or trained with values that contradict `config` (all are named).
    """
    path = os.path.join(workdir, "config.json")
    try:
        os.makedirs(workdir, exist_ok=True)
        probe = os.path.join(workdir, ".writable")
        with open(probe, "w") as file:
            file.write("yes")
        os.remove(probe)
    except OSError as error:
        raise InputError(f"--workdir={workdir} cannot be written to ({error.strerror}); choose another") from None
    now = flatten(config)
    if os.path.exists(path):
        with open(path) as file:
            then = flatten(json.load(file))
        differing = [
            f"{key} ({then.get(key)!r} then, {now.get(key)!r} now)"
            for key in sorted(then.keys() | now.keys())
            if then.get(key) != now.get(key) and not _resumable(key)
        ]
        if differing:
            raise InputError(
                f"--workdir={workdir} was trained with another config: {'; '.join(differing)}. "
                "Use a new workdir, or the same values"
            )
    write_json(path, config.to_dict(), sort_keys=True)


def write_json(path: str, content, sort_keys: bool = False) -> None:
    """Writes all of a file or nothing of it, whenever the process or the machine dies."""
    temporary = path + ".tmp"
    with open(temporary, "w") as file:
        json.dump(content, file, indent=2, sort_keys=sort_keys)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


@contextlib.contextmanager
def lock(workdir: str):
    """Holds `workdir/.lock` while open.

    The lock belongs to the open file (flock), so a run that was killed holds nothing.  File systems
    without locks (some network mounts) let everyone in.

    Raises:
      InputError: another run holds it; it is named.
    """
    path = os.path.join(workdir, ".lock")
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                yield
                return
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise InputError(
                f"--workdir={workdir} is in use by a live run ({holder}); wait for it, stop it, or choose another"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
