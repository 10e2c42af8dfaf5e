"""A workdir belongs to one live run at a time, and its files are whole."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import pytest
from limits import no_file_larger_than
from tiny_runs import REPO

from didr_jax.exits import CannotSave
from didr_jax.training.workdir import lock, make_workdir
from didr_jax.types import InputError
from didr_jax.whole_files import remove_leftovers, write_json


def test_a_place_that_cannot_be_written_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--workdir=.*/file/run cannot be written to .*; choose another") as refused:
        make_workdir(str(tmp_path / "file" / "run"))
    assert "\n" not in str(refused.value)


# ----------------------------------------------------------------------------------------- whole files


def test_a_file_that_cannot_be_written_whole_leaves_the_old_one(tmp_path):
    path = str(tmp_path / "table.json")
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):  # after the first entry is in the temporary file
        write_json(path, {"new": 2, "unspeakable": object()})
    with no_file_larger_than(4096), pytest.raises(CannotSave, match="table.json .File too large.; make room"):
        write_json(path, {"new": list(range(10_000))})
    assert json.loads((tmp_path / "table.json").read_text()) == {"old": 1}
    write_json(path, {"new": 3})  # what was left of the attempts is in nobody's way
    assert json.loads((tmp_path / "table.json").read_text()) == {"new": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]


def test_keys_are_sorted_if_asked(tmp_path):
    for wanted in (False, True):
        write_json(str(tmp_path / "table.json"), {"b": 1, "a": 2}, sort_keys=wanted)
        assert list(json.loads((tmp_path / "table.json").read_text())) == (["a", "b"] if wanted else ["b", "a"])


# ----------------------------------------------------------------------------------------------- locks


def test_a_second_live_run_is_refused_naming_the_first_and_a_killed_one_is_not_in_the_way(tmp_path):
    program = """if True:
        import sys, time
        from didr_jax.training.workdir import lock
        with lock(sys.argv[1]):
            print("held", flush=True)
            time.sleep(120)
    """
    command = [sys.executable, "-c", program, str(tmp_path)]
    holder = subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        refusal = f"in use by a live run \\(process {holder.pid} on {os.uname().nodename}\\)"
        for _ in range(2):  # the refused one leaves the holder's name as it is
            with pytest.raises(InputError, match=refusal), lock(str(tmp_path)):
                raise AssertionError("two runs in one workdir")
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with lock(str(tmp_path)):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")


@pytest.mark.parametrize("error", [None, ValueError])
def test_a_lock_is_free_again_when_its_run_ends_well_or_badly(tmp_path, error):
    with contextlib.suppress(ValueError), lock(str(tmp_path)):
        with pytest.raises(InputError, match=f"process {os.getpid()}"), lock(str(tmp_path)):
            pass
        if error:
            raise error
    with lock(str(tmp_path)):
        pass


def test_leftovers_of_whole_files_are_known_by_their_names(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("a.png.0123abcd.tmp", "deep/b.json.ffffffff.tmp", "mine.tmp", "deep/c.png", ".01234567.tmp"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*"))
    assert left == [".01234567.tmp", "deep/c.png", "mine.tmp"]
