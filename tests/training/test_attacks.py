"""What can happen to a run that is going: it ends with its code and one line, and the same command goes on to the same end.

The stage is a sum, so that the loop around it is all that takes time.
"""

import contextlib
import dataclasses
import gc
import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from limits import fill, read_only, small_disk
from tiny_runs import tiny, train_tiny

from didr_jax.builders import make_schedule
from didr_jax.exits import CannotSave, Preempted
from didr_jax.objectives import OBJECTIVES
from didr_jax.training.evaluation import Evaluator, Verdict
from didr_jax.training.metrics import RunLog, read_metrics
from didr_jax.training.parallel import made
from didr_jax.training.recipe import Recipe
from didr_jax.training.stages import Stage, game_stage
from didr_jax.training.state import FitState, init_fit
from didr_jax.training.step import Networks

STEPS = 20


def nothing(step):
    pass


def counting(during=nothing, judged=nothing, steps=STEPS, every=8) -> Recipe:
    """A recipe whose parameters are a sum over the batches; `during(step)` is called for a batch, `judged(step)` for an
    evaluation."""
    begin = lambda: init_fit({"w": jnp.zeros(3)}, optax.sgd(0.1))

    def step(state: FitState, frozen, batch):
        w = state.ema["w"] * 0.9 + jnp.mean(batch["x"])
        metrics = {"loss": jnp.sum(w), "skipped": state.skipped, "streak": state.streak}
        return dataclasses.replace(state, step=state.step + 1, params={"w": w}, ema={"w": 1.0 * w}), metrics

    def batch(n, rows=slice(None)):
        during(n)
        return {"x": np.full(4, n, np.float32)[rows]}

    def judge(products, frozen):
        total = float(np.asarray(products["params"]["w"]).sum())
        judged(total)
        return Verdict({"total": total})

    stage = Stage(
        name="pretrain", steps=steps, batch_size=4, shapes=jax.eval_shape(begin), step=step, frozen={}, batch=batch,
        init=lambda places, products=None: jax.jit(begin, out_shardings=places)(), batch_axis=0,
        products={"params": "ema"}, evals={"total": Evaluator(every, judge)},
    )  # fmt: skip
    recipe = Recipe()
    recipe.stages = {"pretrain": lambda products: stage}
    return recipe


def config_of(**more):
    return tiny(**{"stages": ("pretrain",), "pretrain__steps": STEPS} | more)


def train(workdir, config=None, **how) -> np.ndarray:
    return train_tiny(workdir, config or config_of(), counting(**how))["pretrain/params/w"]


@pytest.fixture(scope="module")
def want(tmp_path_factory):
    return train(tmp_path_factory.mktemp("whole"))


def goes_on(workdir, want, at, capsys):
    capsys.readouterr()
    np.testing.assert_array_equal(train(workdir), want)
    assert f"goes on from at step {at}" in capsys.readouterr().out


def at(monkeypatch, wanted, act):
    """Calls `act` before the figures of step `wanted` are written."""
    write = RunLog.write

    def watched(self, stage, step, values):
        if step == wanted:
            act()
        write(self, stage, step, values)

    monkeypatch.setattr(RunLog, "write", watched)


# ------------------------------------------------------------------------------------------- disks


def test_a_disk_that_becomes_read_only_ends_with_74_and_the_run_goes_on_later(monkeypatch, tmp_path, want, capsys):
    (workdir := tmp_path / "run").mkdir()

    def remount():
        while not (workdir / "checkpoints" / "pretrain" / "10").exists():  # the save before is complete
            time.sleep(0.01)
        mounted.enter_context(read_only(workdir))

    with contextlib.ExitStack() as mounted, monkeypatch.context() as patch:
        at(patch, 15, remount)
        with pytest.raises(CannotSave, match="Read-only file system.*last good one is of step 10") as stopped:
            train(workdir)
        assert stopped.value.code == 74 and "\n" not in str(stopped.value)
    goes_on(workdir, want, 10, capsys)


def test_a_disk_that_is_full_exactly_at_the_metrics_ends_with_74(monkeypatch, tmp_path, want, capsys):
    with small_disk(tmp_path / "disk", "64k") as disk:
        os.symlink(disk / "metrics.jsonl", tmp_path / "metrics.jsonl")

        def no_room():
            os.truncate(disk / "metrics.jsonl", 4096)  # its page is full as well
            fill(disk)

        with monkeypatch.context() as patch:
            at(patch, 15, no_room)
            with pytest.raises(CannotSave, match="could not write .*metrics.jsonl .No space left on device"):
                train(tmp_path)
        (disk / "filler").unlink()
        goes_on(tmp_path, want, 10, capsys)
        assert [record["step"] for record in read_metrics(str(tmp_path))][-1] == STEPS


# ------------------------------------------------------------------------------------------ clocks


def test_a_clock_that_jumps_changes_nothing(monkeypatch, tmp_path, want):
    """A day ahead, and two back.  (Ahead by more than ten minutes inside a save, orbax takes it for hung: code 74.)"""
    true, shift = time.time, [0]
    monkeypatch.setattr(time, "time", lambda: true() + sum(shift))
    at(monkeypatch, 5, lambda: shift.append(86_400))
    at(monkeypatch, 15, lambda: shift.append(-2 * 86_400))
    np.testing.assert_array_equal(train(tmp_path), want)
    assert len(shift) == 3
    records = read_metrics(str(tmp_path))
    seconds = [record["seconds"] for record in records if "seconds" in record]
    assert seconds == sorted(seconds) and 0 <= seconds[0] and seconds[-1] < 3600
    assert all(record["images_per_second"] >= 0 for record in records if "images_per_second" in record)


# ----------------------------------------------------------------------------------------- signals


def asks_at(total):
    """An evaluation in which the run is asked to stop, when the parameters' sum is this."""

    def judged(found):
        if total(found):
            signal.raise_signal(signal.SIGTERM)

    return judged


def test_sigterm_in_an_evaluation_saves_the_step_and_judges_it_again_later(tmp_path, want, capsys):
    calls = []
    with pytest.raises(Preempted, match="saved at step 8") as stopped:
        train(tmp_path, judged=asks_at(lambda total: calls.append(total) or len(calls) == 2))
    assert stopped.value.code == 75
    told = lambda: [record["step"] for record in read_metrics(str(tmp_path)) if "eval/total" in record]
    assert told() == [0]
    goes_on(tmp_path, want, 8, capsys)
    assert told() == [0, 8, 16, 20]


def test_sigterm_before_the_first_step_ends_at_once_and_leaves_nothing(tmp_path):
    with pytest.raises(Preempted, match="was asked to stop while pretrain .1/1. was judged at step 0"):
        train(tmp_path, judged=asks_at(lambda total: True))
    with pytest.raises(Preempted, match="was asked to stop while pretrain .1/1. began"):
        train(tmp_path, during=lambda step: signal.raise_signal(signal.SIGTERM))  # as while it embeds prompts
    assert sorted(os.listdir(tmp_path)) == ["checkpoints", "metrics.jsonl"]
    assert not list((tmp_path / "checkpoints" / "pretrain").glob("[0-9]*"))


def test_a_run_killed_before_its_first_save_is_in_nobodys_way(tmp_path, want):
    def killed(step):
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, config_of(seed=3), during=killed)
    assert (tmp_path / "config.json").exists()
    np.testing.assert_array_equal(train(tmp_path), want)


# -------------------------------------------------------------------------------------- not finite


def test_text_that_is_not_finite_costs_one_update_and_no_parameter(tmp_path):
    """One prompt of one batch: the update that it is in is dropped and counted, those before and after are not."""
    config = tiny(stages=("align",), align__steps=6, align__batch_size=8, align__estimator="drp", log__every=1)
    batches = iter(range(10**6))

    def conditions(rng, n):
        text = np.ones((n, 1), np.float32)
        text[0] = np.nan if next(batches) == 4 else 1
        return {"text": text}

    networks = Networks(
        schedule=make_schedule(config), event_shape=(2,),
        reference=lambda frozen, x_t, t, c: 0.5 * x_t * c["text"],
        ta=lambda p, frozen, x_t, t, c: (x_t @ p["w"]) * c["text"],
        generator=lambda p, frozen, z, c, i: (z @ p["w"]) * c["text"],
        reward=lambda frozen, x0, c: jnp.sum(x0, -1),
    )  # fmt: skip
    start = made(lambda: {"w": jnp.eye(2)})
    recipe = Recipe()
    recipe.stages = {
        "align": lambda products: game_stage(
            "align", config, networks=networks, generator=start, ta=start, conditions=conditions, objective=OBJECTIVES["didr"]
        )
    }
    products = train_tiny(tmp_path, config, recipe)
    skipped = [record["skipped"] for record in read_metrics(str(tmp_path))]
    assert skipped == [0, 0, 0, 1, 1, 1]
    assert all(np.isfinite(values).all() for values in products.values())


# ------------------------------------------------------------------------------------------ memory


def resident() -> float:
    """MiB of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
def test_memory_stays_flat_over_thousands_of_steps(tmp_path):
    steps, sizes = 4000, []

    def judged(_):
        gc.collect()
        sizes.append(resident())

    config = config_of(pretrain__steps=steps, checkpoint__every=500, log__every=10, log__quiet=True)
    train(tmp_path, config, judged=judged, steps=steps, every=500)
    assert len(sizes) == 9
    assert sizes[-1] - sizes[2] < 6, [f"{size:.1f}" for size in sizes]  # MiB from step 1,000 to 4,000
