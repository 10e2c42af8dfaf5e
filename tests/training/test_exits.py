"""Codes of ways to end, and the request to stop."""

import signal
import subprocess
import sys

import jax
import pytest
from jax.experimental import multihost_utils
from tiny_runs import REPO

from didr_jax import exits
from didr_jax.exits import CannotSave, Hacked, NotFinite, Preempted, RunStopped, StopRequest

ASKING = (signal.SIGTERM, signal.SIGINT)


def test_every_way_to_stop_has_a_code_of_its_own_that_the_table_tells():
    codes = {NotFinite: 70, CannotSave: 74, Preempted: 75, Hacked: 76}
    assert {kind: kind.code for kind in RunStopped.__subclasses__()} == codes
    for kind, code in codes.items():
        assert f"\n    {code} " in exits.__doc__ and f"`{kind.__name__}`" in exits.__doc__


def test_only_a_failed_write_ends_one_process_without_the_others():
    assert {kind for kind in RunStopped.__subclasses__() if not kind.everywhere} == {CannotSave}


# ------------------------------------------------------------------------------------- request to stop


@pytest.fixture
def heard_outside():
    """Signals that reach the handlers which were there before."""
    heard = []
    before = {number: signal.signal(number, lambda number, frame: heard.append(number)) for number in ASKING}
    yield heard
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ASKING)
def test_one_signal_asks_and_goes_no_further(number, heard_outside):
    with StopRequest() as stop:
        assert not stop.poll()
        signal.raise_signal(number)
        assert stop.poll() and stop.poll(), "it is not forgotten"
    assert heard_outside == []


@pytest.mark.parametrize("second", ASKING)
@pytest.mark.parametrize("first", ASKING)
def test_the_second_signal_goes_to_whoever_listened_before(first, second, heard_outside):
    with StopRequest():
        signal.raise_signal(first)
        signal.raise_signal(second)
    assert heard_outside == [second]


@pytest.mark.parametrize("ending", ["quiet", "asked", "error"])
def test_handlers_are_as_before_when_it_closes(ending, heard_outside):
    before = [signal.getsignal(number) for number in ASKING]
    try:
        with StopRequest():
            assert [signal.getsignal(number) for number in ASKING] != before
            if ending == "asked":
                signal.raise_signal(signal.SIGTERM)
            if ending == "error":
                raise KeyError
    except KeyError:
        pass
    assert [signal.getsignal(number) for number in ASKING] == before


def test_a_second_sigterm_ends_the_process_at_once():
    program = """if True:
        import os, signal
        from didr_jax.exits import StopRequest
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            print("asked", stop.poll(), flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            print("still here", flush=True)
    """
    ended = subprocess.run([sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True, timeout=120)
    assert ended.stdout == "asked True\n" and ended.returncode == -signal.SIGTERM, ended.stderr


@pytest.mark.parametrize("number", ASKING)
def test_what_needs_no_save_ends_at_once_and_says_what_it_was(number, heard_outside):
    done = []
    with StopRequest() as stop:
        with pytest.raises(Preempted, match="was asked to stop while it slept; the same command") as stopped:
            with stop.at_once("it slept"):
                done.append("before")
                signal.raise_signal(number)
                done.append("after")
        assert stop.poll() and done == ["before"] and stopped.value.code == 75
        with pytest.raises(Preempted, match="while it went on"), stop.at_once("it went on"):
            done.append("afterwards")
        signal.raise_signal(signal.SIGTERM)
    assert done == ["before"] and heard_outside == [signal.SIGTERM]


def test_a_request_is_not_taken_for_a_failure_that_can_be_forgiven():
    with StopRequest() as stop, pytest.raises(Preempted), stop.at_once("it tried"):
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception:
            pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_request_that_python_swallows_is_heard_when_the_work_is_done():
    class Careless:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)  # what a finaliser raises is printed and forgotten

    done = []
    with StopRequest() as stop, pytest.raises(Preempted), stop.at_once("it cleaned up"):
        Careless()
        done.append("after")


def test_the_loop_is_not_ended_in_the_middle_of_a_step(heard_outside):
    with StopRequest() as stop:
        with stop.at_once("it began"):
            pass
        signal.raise_signal(signal.SIGTERM)
        assert stop.poll()


def test_of_several_processes_the_coordination_service_is_asked_with_numbers_that_grow(monkeypatch, heard_outside):
    """The service itself runs in tests/multiprocess; here, that no signal is taken from it and that no number comes twice."""
    polls = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda n: polls.append(n) or n == 3)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert [stop.poll() for _ in range(4)] == [False, False, True, False]
        with stop.at_once("all of them judge"):
            signal.raise_signal(signal.SIGTERM)
    assert polls == [1, 2, 3, 4] and heard_outside == [signal.SIGTERM] * 2
