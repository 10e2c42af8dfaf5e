"""One live run a workdir: a lock that its holder's death releases, whatever killed it."""

import contextlib
import errno
import fcntl
import os
import socket

from didr_jax.types import InputError


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
