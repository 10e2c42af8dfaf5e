"""How a run ends, and what its exit code tells whoever started it.

    0    finished
    2    the input cannot be used (`types.InputError`): mend it and start again
    70   N updates in a row were not finite (`NotFinite`): saved, and `stopped.json` says what went bad
    74   a checkpoint or a log could not be written (`CannotSave`): the last good save is intact
    75   asked to stop (`Preempted`): saved, or nothing to save; the same command goes on
    76   the reward was being hacked, and `watch.hacking=stop` (`Hacked`): saved, and so is the best state before
    134  JAX aborted, because another process of the run died: start all again, they go on (a process that
         is talking to the dead one at that moment can end with 1 and a traceback instead)

Codes 74 and 75 are those of sysexits.h (I/O error, temporary failure).
"""

import contextlib
import signal
import sys
import warnings
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils


class RunStopped(Exception):
    """A run that ends before it is finished, for a reason that one line tells.

    `everywhere`: all processes of the run raise it, at the same step.
    """

    code = 1
    everywhere = True


class NotFinite(RunStopped):
    code = 70


class CannotSave(RunStopped):
    code = 74
    everywhere = False


class Preempted(RunStopped):
    code = 75


class Hacked(RunStopped):
    code = 76


def mute_echoes() -> None:
    """From now on the process does not show what fails in a library because the work that it was for has ended.

    Orbax closes its loop when a disk is full, and every write still under way would print a traceback beside our line; what
    it was reading when it is told to stop, Python would complain of as it exits.
    """
    report = sys.unraisablehook  # of what is raised where nobody can hear it: callbacks of C++, objects that are let go

    def reported(unraisable):
        trace = unraisable.exc_traceback
        begins = "" if trace is None else trace.tb_frame.f_code.co_qualname
        if begins not in ("BaseEventLoop.call_soon_threadsafe", "BaseEventLoop.__del__"):
            report(unraisable)

    sys.unraisablehook = reported
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited", category=RuntimeWarning)


class _Asked(KeyboardInterrupt):
    """No Exception: whoever forgives failures shall not forgive this."""


class StopRequest:
    """Listens for SIGTERM and Ctrl-C while it is open; a second signal ends the process at once.

    A training loop asks at every step whether there was one.  All else ends where it is (`at_once`): files are whole or not
    there, so that nothing is lost.

    With several processes the coordination service listens instead (for SIGTERM, and on TPU VMs for the
    notice of preemption) and picks one step at which all of them stop; what is done at once is done to its end.
    """

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self._asked = self._at_once = False
        self._polls = 0  # the service wants a number that grows over all stages
        self._before = {}

    def __enter__(self) -> "StopRequest":
        if jax.process_count() == 1:
            self._before = {number: signal.signal(number, self._heard) for number in self._SIGNALS}
        return self

    def _heard(self, number, _frame) -> None:
        self._asked = True
        self._restore()
        if self._at_once:
            raise _Asked

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    @contextlib.contextmanager
    def at_once(self, doing: str) -> Iterator[None]:
        """While open, a request ends what is being done, named in a word or two; raises Preempted."""
        before, self._at_once = self._at_once, True
        try:
            self._end_if_asked()
            yield
            self._end_if_asked()  # some callbacks of Python swallow what is raised in them
        except _Asked:
            raise Preempted(f"was asked to stop while {doing}; the same command does the rest") from None
        finally:
            self._at_once = before

    def _end_if_asked(self) -> None:
        if self._asked:
            raise _Asked

    def poll(self) -> bool:
        """Whether to stop now.  Every process must ask equally often."""
        self._polls += 1
        if jax.process_count() == 1:
            return self._asked
        return multihost_utils.reached_preemption_sync_point(self._polls)

    def __exit__(self, *_exception) -> None:
        self._restore()
