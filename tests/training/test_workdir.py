"""A workdir belongs to one config for good and to one live run at a time, and its files are whole."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import pytest
from limits import no_file_larger_than
from tiny_runs import REPO, tiny

from didr_jax.training.exits import CannotSave
from didr_jax.training.workdir import LAYOUT, claim_workdir, lock, make_workdir, write_json
from didr_jax.types import InputError

# ---------------------------------------------------------------------------------------------- claims


def test_a_claim_leaves_the_config_to_read_and_nothing_else(tmp_path):
    workdir, config = tmp_path / "deep" / "run", tiny(seed=3)
    make_workdir(str(workdir))
    claim_workdir(config, str(workdir))
    saved = json.loads((workdir / "config.json").read_text())
    assert saved["seed"] == 3 and saved["stages"] == list(config.stages) and saved["pretrain"]["optimizer"]["lr"] == 1e-3
    assert [path.name for path in workdir.iterdir()] == ["config.json"]


def test_the_same_config_is_welcome_again(tmp_path):
    claim_workdir(tiny(), str(tmp_path))
    before = (tmp_path / "config.json").read_bytes()
    make_workdir(str(tmp_path))
    claim_workdir(tiny(), str(tmp_path))
    assert (tmp_path / "config.json").read_bytes() == before


def test_another_config_is_refused_naming_every_key_with_both_values_and_changes_nothing(tmp_path):
    claim_workdir(tiny(), str(tmp_path))
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(InputError) as refused:
        claim_workdir(tiny(seed=3, align__beta=0.25, log__every=9), str(tmp_path))
    assert "align.beta (1.0 then, 0.25 now); seed (0 then, 3 now)." in str(refused.value)
    assert "log.every" not in str(refused.value) and "\n" not in str(refused.value)
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_knob_that_only_one_of_them_has_counts_as_another_value(tmp_path):
    claim_workdir(tiny(), str(tmp_path))
    config = tiny()
    with config.unlocked():
        config.novelty = 1
        del config.network.spread
    with pytest.raises(InputError, match=r"network\.spread \(2\.0 then, None now\); novelty \(None then, 1 now\)"):
        claim_workdir(config, str(tmp_path))


@pytest.mark.parametrize(
    "key, value",
    [
        ("log.every", 7),
        ("checkpoint.keep", 5),
        ("watch.patience", 2),
        ("profile.stage", "distill"),
        ("mesh.rules", ("kernel$=fsdp,-",)),
        ("distributed.coordinator", "host:1"),
        ("compile.topology", "v5e:4x4"),
        ("compiler.flags", "gpu"),
        ("distill.micro_batches", 4),
    ],
)
def test_what_does_not_touch_what_is_trained_may_change_and_is_saved(key, value, tmp_path):
    claim_workdir(tiny(), str(tmp_path))
    claim_workdir(tiny(**{key: value}), str(tmp_path))
    saved = json.loads((tmp_path / "config.json").read_text())
    for part in key.split("."):
        saved = saved[part]
    assert saved == (list(value) if isinstance(value, tuple) else value)


def test_a_recipe_frees_sections_of_its_own_and_no_others(tmp_path):
    claim_workdir(tiny(), str(tmp_path), free=("eval",))
    claim_workdir(tiny(eval__samples=100), str(tmp_path), free=("eval",))
    with pytest.raises(InputError, match=r"config: sample\.num \(1000 then, 3 now\)\."):
        claim_workdir(tiny(eval__samples=100, sample__num=3), str(tmp_path), free=("eval",))
    with pytest.raises(InputError, match=r"config: eval\.samples \(100 then, 4000 now\)\."):
        claim_workdir(tiny(), str(tmp_path))


@pytest.mark.parametrize("content", ["", '{"seed": 0', "[1, 2]", '{"didr_jax": 2}'])
def test_a_config_that_cannot_be_read_is_named_and_left_as_it_is(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match="config.json cannot be read .*; put back a good copy, or use a new workdir") as refused:
        claim_workdir(tiny(), str(tmp_path))
    assert "\n" not in str(refused.value) and (tmp_path / "config.json").read_text() == content


def test_a_workdir_of_a_newer_version_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"didr_jax": {"layout": LAYOUT + 1}}))
    with pytest.raises(InputError, match=f"belongs to a newer didr_jax .workdir layout {LAYOUT + 1}, this version's is {LAYOUT}"):
        claim_workdir(tiny(), str(tmp_path))


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
