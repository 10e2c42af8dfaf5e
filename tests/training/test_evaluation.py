"""Evaluators: when they run, what becomes of what they find, and that they change nothing that is trained."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny_runs import REPO, tiny, train_tiny

from didr_jax.recipes.mixture import Mixture
from didr_jax.training.evaluation import Evaluator, Evaluators, Verdict, over_rows
from didr_jax.training.metrics import read_metrics
from didr_jax.training.parallel import held

WHOLE = {"stages": ("pretrain", "distill", "align"), "align__steps": 20, "eval__samples": 64}


def told(workdir, stage="align"):
    """{step: names of the figures that evaluators found} of a stage."""
    lines = [line for line in read_metrics(str(workdir)) if line["stage"] == stage]
    found = {line["step"]: sorted(name for name in line if name.startswith("eval/")) for line in lines}
    return {step: names for step, names in found.items() if names}


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """(workdir, products) of a run that is evaluated every 8 steps."""
    workdir = tmp_path_factory.mktemp("judged")
    return workdir, train_tiny(workdir, tiny(**WHOLE | {"eval__every": 8}))


def test_they_run_before_the_first_step_at_their_period_and_at_the_end(judged):
    assert list(told(judged[0])) == [0, 8, 16, 20]
    assert told(judged[0])[8] == ["eval/energy_to_beta_1", "eval/energy_to_beta_4", "eval/kl_to_reference", "eval/reward"]


def test_with_or_without_them_a_run_is_the_same_to_the_last_bit(judged, tmp_path):
    plain = train_tiny(tmp_path, tiny(**WHOLE))
    assert told(tmp_path) == {}
    assert plain.keys() == judged[1].keys()
    for path in plain:
        np.testing.assert_array_equal(plain[path], judged[1][path], err_msg=path)


def test_figures_stand_beside_the_step_that_they_are_of(judged):
    (line,) = [line for line in read_metrics(str(judged[0])) if line["stage"] == "align" and line["step"] == 20]
    assert {"eval/reward", "reward", "ta_loss", "images_seen"} <= line.keys()


class Pictured(Mixture):
    """The mixture with one more evaluator, of another period, which draws."""

    def align(self, products):
        stage = super().align(products)
        draw = lambda products, frozen: Verdict({"bias": float(frozen["shift"])}, {"dot": np.full((4, 6), 200, np.uint8)})
        stage.evals["drawn"] = Evaluator(15, draw, {"shift": held(jnp.asarray(2.5))})
        return stage


def test_each_has_its_own_period_parameters_and_pictures(tmp_path):
    config = tiny(**WHOLE | {"eval__every": 8, "log__tensorboard": True})
    train_tiny(tmp_path, config, Pictured(config))
    found = told(tmp_path)
    assert [step for step, names in found.items() if "eval/bias" in names] == [0, 15, 20]
    assert [step for step, names in found.items() if "eval/reward" in names] == [0, 8, 16, 20]
    pictures = sorted(path.name for path in (tmp_path / "progress" / "align").iterdir())
    assert pictures == ["000000_dot.png", "000015_dot.png", "000020_dot.png"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "progress" / "align" / pictures[0])), np.full((4, 6), 200))


def test_a_resumed_run_evaluates_where_the_whole_one_would_have(judged, tmp_path):
    config = tiny(**WHOLE | {"eval__every": 8, "align__steps": 20})
    short = tiny(**WHOLE | {"eval__every": 8, "align__steps": 20})
    first = Mixture(short)
    stop_at(first, 10)
    with pytest.raises(KeyboardInterrupt):
        train_tiny(tmp_path, short, first)
    again = train_tiny(tmp_path, config)
    assert list(told(tmp_path)) == [0, 8, 16, 20]
    for path in again:
        np.testing.assert_array_equal(again[path], judged[1][path], err_msg=path)


def stop_at(recipe, step):
    """The align stage of the recipe dies when it asks for the batch of `step`."""
    build = recipe.align

    def dying(products):
        stage = build(products)

        def batch(n, *rows):
            if n == step:
                raise KeyboardInterrupt
            return stage.batch(n, *rows)

        return type(stage)(**{**vars(stage), "batch": batch})

    recipe.stages["align"] = dying


def test_the_best_save_can_be_that_of_a_judged_figure(tmp_path):
    best = {"checkpoint__every": 4, "checkpoint__keep": 1, "checkpoint__best": "eval/reward", "eval__every": 4}
    train_tiny(tmp_path, tiny(**WHOLE | best))
    rewards = {line["step"]: line["eval/reward"] for line in read_metrics(str(tmp_path)) if "eval/reward" in line}
    del rewards[0]  # nothing is saved before the first step
    kept = {int(path.name) for path in (tmp_path / "checkpoints" / "align").iterdir() if path.name.isdigit()}
    assert kept == {20, max(rewards, key=rewards.get)}


def test_one_that_is_off_loads_and_runs_nothing():
    def never(*_):
        raise AssertionError("it is off")

    off = Evaluators({"off": Evaluator(0, never, {"big": held(jnp.zeros(3))})}, 10, {}, never)
    assert [off.due(step) for step in (0, 5, 10)] == [[], [], []]


def test_rows_come_back_in_order_whatever_their_number_and_the_batch():
    double = jax.jit(lambda params, rows: {"twice": params * rows["x"], "norm": jnp.sum(rows["x"], -1)})
    x = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    for size in (None, 1, 3, 100):
        out = over_rows(double, jnp.asarray(2.0), {"x": x}, size)
        np.testing.assert_array_equal(out["twice"], 2 * x)
        assert out["norm"].shape == (7,)


PROGRAM = """
    import jax, numpy as np, sys
    from didr_jax import recipes
    from didr_jax.training.parallel import make_mesh, put_batch
    from didr_jax.training.evaluation import over_rows
    from tiny_runs import tiny
    mesh = make_mesh(tiny().mesh)
    x = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    with jax.set_mesh(mesh):
        seen = []
        def rows(params, rows):
            jax.debug.inspect_array_sharding(rows["x"], callback=lambda s: seen.append(s.shard_shape((8, 3))))
            return rows["x"] + params
        out = over_rows(jax.jit(rows), np.float32(1), {"x": x})
    np.testing.assert_array_equal(out, x + 1)
    assert seen == [(2, 3)], seen
"""


def test_rows_are_spread_over_the_mesh():
    environment = os.environ | {"PYTHONPATH": f"{REPO}:{REPO}/tests", "JAX_NUM_CPU_DEVICES": "4"}
    import textwrap

    done = subprocess.run([sys.executable, "-c", textwrap.dedent(PROGRAM)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
