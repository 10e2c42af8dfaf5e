"""Saves: kept by policy, checked to the last bit, and never lost for a damaged one."""

import os
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest
from tiny_runs import tiny, train_tiny

from didr_jax.exits import CannotSave
from didr_jax.training import checkpoint
from didr_jax.training.checkpoint import Checkpoints
from didr_jax.training.digests import digests
from didr_jax.types import InputError


def state(value=1.0, rows=32):
    """What a save holds: the state, and one product."""
    params = {"w": np.full((rows, 8), value, np.float32), "half": jax.numpy.full(5, value, jax.numpy.bfloat16)}
    training = {"step": np.asarray(3, np.int32), "params": params, "opt": ({"mask": np.ones(3, bool)}, np.ones(2))}
    return jax.tree.map(jax.numpy.asarray, {"state": training, "ema": {"net": params}})


def shapes(rows=32):
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), state(rows=rows))


def saves(tmp_path, **policy):
    config = tiny(**{f"checkpoint__{k}": v for k, v in policy.items()})
    return Checkpoints(str(tmp_path / "stage"), config.checkpoint, {"code": "abc"})


def test_a_state_comes_back_bit_for_bit(tmp_path):
    box = saves(tmp_path)
    box.save(7, state(np.pi))
    box.close()
    step, restored = saves(tmp_path).restore_newest(shapes())
    assert step == 7
    jax.tree.map(np.testing.assert_array_equal, restored, state(np.pi))
    jax.tree.map(lambda a, b: a.dtype == b.dtype, restored, state())


def test_policy_keeps_the_newest_the_milestones_and_the_best(tmp_path):
    box = saves(tmp_path, keep=2, keep_every=40, best="reward", best_mode="max")
    rewards = {10: 0.1, 20: 0.9, 30: float("nan"), 40: 0.2, 50: 0.5, 60: 0.3, 70: 0.4}
    for step, reward in rewards.items():
        box.save(step, state(step), {"reward": reward})
        box.wait()
    assert box.steps() == [20, 40, 60, 70]
    box.close()
    low = saves(tmp_path / "low", keep=1, best="loss", best_mode="min")
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0)):
        low.save(step, state(step), {"loss": loss})
        low.wait()
    assert low.steps() == [2, 3]
    low.close()


def test_the_best_save_is_remembered_by_a_run_that_goes_on(tmp_path):
    for rewards in ({10: 0.9, 20: 0.2}, {30: 0.3, 40: 0.4, 50: 0.1}):
        box = saves(tmp_path, keep=1, best="reward")
        for step, reward in rewards.items():
            box.save(step, state(step), {"reward": reward})
            box.wait()
        box.close()
    assert box.steps() == [10, 50]
    other = saves(tmp_path, keep=1, best="loss", best_mode="min")  # a figure that no save so far has
    assert saves(tmp_path, best="reward").best() == 10 and other.best() is None
    other.save(60, state(60), {"loss": 3.0})
    other.close()
    assert other.steps() == [60] and saves(tmp_path, best="loss").best() == 60


@pytest.mark.parametrize("change", [lambda x: x.at[0, 0].add(1e-7), lambda x: x.at[3, 1].set(-x[3, 1]), lambda x: x[::-1]])
def test_the_digest_sees_any_change(change):
    x = jax.random.normal(jax.random.key(0), (16, 4))
    assert digests({"x": x}) == digests({"x": x + 0})
    assert digests({"x": x}) != digests({"x": change(x)})


def test_a_state_of_other_shape_is_refused_and_left_in_place(tmp_path):
    box = saves(tmp_path)
    box.save(7, state())
    box.wait()
    with pytest.raises(InputError, match=r"ema: net/w is float32\[32,8\] there and float32\[64,8\] here"):
        box.restore_newest(shapes(rows=64))
    assert box.steps() == [7]
    box.close()


def test_a_save_that_fails_names_the_last_good_one(tmp_path, monkeypatch):
    box = saves(tmp_path)
    box.save(7, state())
    box.wait()
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(CannotSave, match="could not write a checkpoint .*stage at step 8 .* last good one is of step 7"):
        box.save(8, state())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of one stage with its saves of steps 10 and 20, and its products."""
    workdir = tmp_path_factory.mktemp("run")
    return workdir, train_tiny(workdir, tiny(stages=("pretrain",)))


def data_files(save: pathlib.Path):
    return [file for file in save.rglob("*") if file.is_file() and "/d/" in str(file)]


def truncate(save):
    for data in data_files(save):
        os.truncate(data, data.stat().st_size // 2)


def flip(save):
    """One bit in the middle of every data file."""
    for data in data_files(save):
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 16
        data.write_bytes(content)


def lose(save):
    (save / "params" / "manifest.ocdbt").unlink()


def lose_meta(save):
    shutil.rmtree(save / "meta")


def told_otherwise(pattern, instead):
    """A save that says it is of something else: one that was copied from there."""

    def damage(save):
        path = save / "meta" / "metadata"
        text, n = re.subn(pattern, instead, path.read_text())
        assert n == 1
        path.write_text(text)

    return damage


of_another_step = told_otherwise('"step": 20', '"step": 15')
of_another_stage = told_otherwise('"stage": "pretrain"', '"stage": "distill"')
of_another_run = told_otherwise('"run": "[0-9a-f]{16}"', '"run": "0123456789abcdef"')


@pytest.mark.parametrize(
    "damage", [truncate, flip, lose, lose_meta, of_another_step, of_another_stage, of_another_run],
    ids=["truncate", "flip", "lose", "lose_meta", "step", "stage", "run"],
)  # fmt: skip
def test_a_damaged_save_is_named_and_the_one_before_it_used(damage, trained, tmp_path, capsys):
    workdir, products = trained
    shutil.copytree(workdir, tmp_path / "run")
    damage(tmp_path / "run" / "checkpoints" / "pretrain" / "20")
    again = train_tiny(tmp_path / "run", tiny(stages=("pretrain",)))
    told = capsys.readouterr().out
    assert "pretrain/20 is damaged" in told and "goes on from at step 10" in told
    assert len(list((tmp_path / "run" / "checkpoints" / "corrupt").iterdir())) == 1
    jax.tree.map(np.testing.assert_array_equal, again, products)


def test_of_a_finished_stage_only_what_it_leaves_is_read(trained, tmp_path, capsys):
    shutil.copytree(trained[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "pretrain" / "20" / "state")
    again = train_tiny(tmp_path / "run", tiny(stages=("pretrain",)))
    assert "finished at step 20" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, again, trained[1])


def test_when_no_save_is_whole_the_run_stops_instead_of_starting_over(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    for step in ("10", "20"):
        flip(tmp_path / "run" / "checkpoints" / "pretrain" / step)
    with pytest.raises(InputError, match="no checkpoint of .* can be read"):
        train_tiny(tmp_path / "run", tiny(stages=("pretrain",)))


def test_a_save_tells_its_origin(trained):
    meta = (trained[0] / "checkpoints" / "pretrain" / "20" / "meta" / "metadata").read_text()
    for word in ('"stage": "pretrain"', '"code"', '"jax"', '"seed": 0', '"digests"'):
        assert word in meta
