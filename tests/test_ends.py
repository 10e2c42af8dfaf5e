"""How a whole command ends: its code, and one line for whatever is not a fault of the code."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
from limits import fill, small_disk
from tiny_runs import REPO, TINY

from didr_jax import cli
from didr_jax.exits import CannotSave, Hacked, NotFinite, Preempted, mute_echoes
from didr_jax.types import InputError

ENDINGS = [
    (InputError("x"), 2),
    (NotFinite("x"), 70),
    (CannotSave("x"), 74),
    (Preempted("x"), 75),
    (Hacked("x"), 76),
    (OSError(errno.ENOSPC, "No space left on device", "/x"), 74),
    (RuntimeError("while saving:\nNo space left on device (os error 28)"), 74),
]


@pytest.mark.parametrize("error, code", ENDINGS, ids=[type(error).__name__ for error, _ in ENDINGS])
def test_an_end_has_its_code_and_one_line(error, code, capsys):
    with pytest.raises(SystemExit) as ended, cli._ending():
        raise error
    told = capsys.readouterr().err
    assert ended.value.code == code and told.startswith("didr_jax: ") and told.count("\n") == 1 and "x" in told or code == 74


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(errno.ENOENT, "no such file"), KeyboardInterrupt()])
def test_what_nobody_expects_keeps_its_traceback(error):
    with pytest.raises(type(error)), cli._ending():
        raise error


def test_what_fails_because_its_work_has_ended_is_not_shown_and_all_else_is(monkeypatch):
    """Tensorstore calls a loop that orbax has closed: there is nobody to hear it, and it is no news."""
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)
    loop = asyncio.new_event_loop()
    loop.close()
    with warnings.catch_warnings():
        mute_echoes()
        with pytest.raises(RuntimeError, match="closed") as raised:
            loop.call_soon_threadsafe(print)
        for trace in (raised.tb.tb_next, raised.tb, None):  # as C++ called it, as a function of ours did, unknown
            sys.unraisablehook(SimpleNamespace(exc_traceback=trace))
    assert [each.exc_traceback for each in shown] == [raised.tb, None]


# ---------------------------------------------------------------------------------- whole commands


def command(workdir, *more):
    knobs = TINY | {"stages": "('pretrain','distill','align')", "align.steps": 5, "eval.samples": 200}
    flags = [f"--config.{key}={value}" for key, value in knobs.items()]
    return [sys.executable, "run.py", "--config=configs/mixture.py", f"--workdir={workdir}", *flags, *more]


def run(workdir, *more, **streams):
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.run(command(workdir, *more), cwd=REPO, text=True, timeout=900, **streams)


def until(process, text) -> str:
    """What a process says up to the line with this text."""
    said = ""
    for line in process.stdout:
        said += line
        if text in line:
            return said
    raise AssertionError(f"it ended before: {said}{process.stderr.read()}")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A whole run whose screen is a full disk."""
    workdir = tmp_path_factory.mktemp("run")
    with open("/dev/full", "w") as full:
        ended = run(workdir, stdout=full)
    assert ended.returncode == 0 and ended.stderr == ""
    return workdir


@pytest.mark.slow
def test_a_run_does_not_need_its_screen(trained):
    assert {"report.html", "summary.json", "samples.png", "curves_align.png"} <= set(os.listdir(trained))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_evaluation_that_is_asked_to_stop_ends_at_once_with_75_and_leaves_what_was_there(number, trained):
    before = (trained / "report.html").read_bytes()
    heard = lambda: signal.signal(number, signal.SIG_DFL)  # what is started in the background inherits a deaf ear for Ctrl-C
    process = subprocess.Popen(
        command(trained, "--mode=eval", "--step=latest"),
        cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard,
    )  # fmt: skip
    until(process, "align  at step 5 of 5")
    process.send_signal(number)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 75, told
    assert told == "didr_jax: was asked to stop while doing --mode=eval; the same command does the rest\n"
    assert (trained / "report.html").read_bytes() == before and not list(trained.glob("*.tmp"))


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_first_save_gives_way_to_another(tmp_path):
    """The second is another config, begins anew and, asked to stop, saves."""
    for seed, number in ((0, signal.SIGKILL), (1, signal.SIGTERM)):
        process = subprocess.Popen(
            command(tmp_path, "--config.pretrain.steps=1000000", "--config.checkpoint.every=1000000", f"--config.seed={seed}"),
            cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        said = until(process, "15/1000000")
        process.send_signal(number)
        _, told = process.communicate(timeout=300)
    assert (
        process.returncode == 75
        and f"begins anew: what an earlier start logged and did not save is in {tmp_path}/unsaved" in said
    )
    assert '"step": 10' in (tmp_path / "unsaved" / "metrics.jsonl").read_text()  # the line of 15 may have died with it
    assert (tmp_path / "metrics.jsonl").read_text().count('"step": 15,') == 1


@pytest.mark.slow
def test_a_disk_that_is_full_from_the_first_ends_with_74_and_one_line(tmp_path):
    with small_disk(tmp_path / "disk", "256k") as disk:
        fill(disk)
        ended = run(disk / "run")
        assert ended.returncode == 74 and ended.stderr.count("\n") == 1 and "No space left on device" in ended.stderr


@pytest.mark.slow
def test_a_disk_that_fills_up_in_mid_run_ends_with_74_and_one_line(tmp_path):
    with small_disk(tmp_path / "disk", "8m") as disk:
        process = subprocess.Popen(
            command(disk / "run", "--config.pretrain.steps=1000000", "--config.checkpoint.every=5"),
            cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        until(process, "20/1000000")
        fill(disk)
        _, told = process.communicate(timeout=300)
        assert process.returncode == 74 and told.count("\n") == 1 and told.startswith("didr_jax: could not write"), told


@pytest.mark.slow
def test_a_report_that_does_not_fit_ends_with_74_and_leaves_the_old_one(trained, tmp_path):
    with small_disk(tmp_path / "disk", "8m") as disk:
        subprocess.run(["cp", "-r", str(trained), str(disk / "run")], check=True)
        before = (disk / "run" / "report.html").read_bytes()
        fill(disk)
        ended = run(disk / "run", "--mode=eval")
        assert ended.returncode == 74 and ended.stderr.count("\n") == 1 and "could not write" in ended.stderr
        assert (disk / "run" / "report.html").read_bytes() == before and not list(disk.rglob("*.tmp"))
