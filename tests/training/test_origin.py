"""A run that begins from what another one left: `init_from=WORKDIR[@STEP]`."""

import json
import shutil

import jax
import numpy as np
import pytest
from tiny_runs import tiny, train_tiny

from didr_jax import recipes
from didr_jax.config import optimizer
from didr_jax.training import origin
from didr_jax.training.metrics import RunLog
from didr_jax.training.optim import OPTIMIZERS, begun_again, make_optimizer
from didr_jax.training.parallel import make_mesh, path_of
from didr_jax.training.run import Run, saved_products
from didr_jax.types import InputError

GAME = {"distill__generator_optimizer__decay": False, "pretrain__steps": 4, "distill__steps": 8, "checkpoint__every": 4}


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A workdir with the stages pretrain (4 steps) and distill (saves of 4 and 8)."""
    workdir = tmp_path_factory.mktemp("other")
    train_tiny(workdir, tiny(**GAME))
    return workdir


def stage_of(workdir, **overrides):
    """(the run, its stage distill, the shapes of its state with their places) in a workdir with `overrides`."""
    config = tiny(**GAME | overrides)
    origin.pin(config, str(workdir))
    run = Run(config, str(workdir), make_mesh(config.mesh), RunLog(str(workdir)))
    products = {"pretrain": origin.taken("pretrain", run) or run.saves("pretrain", read_only=True).products(4)}
    stage = recipes.build(config).distill(products)
    return run, stage, run.placed(stage.shapes)


def begun(workdir, **overrides):
    """The state that distill begins with."""
    run, stage, shapes = stage_of(workdir, **overrides)
    with jax.set_mesh(run.mesh):
        return origin.begun(stage, shapes, jax.tree.map(lambda a: a.sharding, shapes), run)


def saved(workdir, step):
    """The state in a save of distill."""
    run, stage, shapes = stage_of(workdir)
    return stage.join(run.saves("distill", read_only=True).restore(step, stage.split(shapes)))


def flat(tree):
    return {path_of(keys): np.asarray(leaf) for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("step", ["@4", "@8", ""])
def test_networks_averages_and_moments_are_the_others_and_nothing_is_done_yet(other, step, tmp_path, capsys):
    state, there = begun(tmp_path, init_from=f"{other}{step}"), saved(other, int(step[1:] or 8))
    told = f"begins from {other} at step {step[1:] or 8}, with its optimisers"
    assert told in capsys.readouterr().out
    ours, theirs = flat(state), flat(there)
    new = {"step", "skipped", "streak", "opt_generator/1/2/count", "opt_ta/1/2/count"}  # the last two: of the learning rate
    assert new <= ours.keys() == theirs.keys()
    for path in ours:
        if path in new:
            assert ours[path] == 0, path
        else:
            np.testing.assert_array_equal(ours[path], theirs[path], err_msg=path)
    assert ours["opt_generator/1/0/count"] == int(step[1:] or 8) and np.any(ours["opt_generator/1/0/nu/Dense_0/kernel"])


def test_where_the_optimisers_differ_the_averages_begin_with_fresh_ones(other, tmp_path, capsys):
    lion = {"distill__generator_optimizer__name": "lion", "distill__generator_optimizer__b2": 0.99}
    state = begun(tmp_path, **lion, init_from=f"{other}@8")
    assert "with fresh optimisers" in capsys.readouterr().out
    average = flat(saved_products(stage_of(other)[0])["distill"]["generator"].load())
    for network in (state.generator, state.ema):
        for path, leaf in flat(network).items():
            np.testing.assert_array_equal(leaf, average[path], err_msg=path)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves((state.opt_generator, state.opt_ta)))


def test_a_run_stands_alone_once_its_first_step_is_done(other, tmp_path, capsys):
    source = shutil.copytree(other, tmp_path / "source")
    config = tiny(**GAME | {"distill__steps": 2, "distill__guidance": 2.0}, init_from=str(source))
    before = sorted(str(path) for path in source.rglob("*"))
    products = train_tiny(tmp_path / "run", config)
    assert sorted(str(path) for path in source.rglob("*")) == before
    told = capsys.readouterr().out
    assert "pretrain  taken from" in told and "distill  begins from" in told
    assert json.loads((tmp_path / "run" / "config.json").read_text())["init_from"] == f"{source}@8"
    shutil.rmtree(source)
    again = train_tiny(tmp_path / "run", config)
    told = capsys.readouterr().out
    assert "pretrain (1/2)  finished at step 4" in told and "distill (2/2)  finished at step 2" in told
    assert again.keys() == products.keys() and all(np.array_equal(again[path], products[path]) for path in products)


def test_before_its_first_save_a_run_begins_again_where_it_began(other, tmp_path):
    """Even if the other one has gone on since."""
    config = tiny(**GAME, init_from=str(other))
    (tmp_path / "config.json").write_text(json.dumps({"didr_jax": {"layout": 2}, "init_from": f"{other}@4"}))
    origin.pin(config, str(tmp_path))
    assert config.init_from == f"{other}@4"


@pytest.mark.parametrize(
    "given, overrides, message",
    [
        ("{other}/nowhere", {}, "is not the workdir of a run .it has no config.json"),
        ("{here}", {}, "is this run's own workdir"),
        ("{other}@5", {}, "the saves of stage 'distill' there are of the steps 8, 4; choose one"),
        ("{other}", {"pretrain__steps": 6}, "'pretrain' is at step 4 there, and config.pretrain.steps = 6; set config.pretrain.steps=4"),
        ("{other}", {"stages": ("align",)}, "it has no save of align"),
    ],
)  # fmt: skip
def test_what_cannot_be_begun_from_is_refused_in_one_line(other, tmp_path, given, overrides, message):
    here = tmp_path / "here"
    shutil.copytree(other, here, ignore=shutil.ignore_patterns("checkpoints"))
    config = tiny(**GAME | overrides, init_from=given.format(other=other, here=here))
    with pytest.raises(InputError, match=message) as refused:
        origin.pin(config, str(here))
    assert "\n" not in str(refused.value) and str(refused.value).startswith("config.init_from = ")


def test_other_networks_are_refused_naming_a_leaf(other, tmp_path):
    with pytest.raises(InputError, match=r"its generator is of other networks: .*Dense_0/bias is \[16\] there and \[8\] here"):
        begun(tmp_path, network__width=8, init_from=f"{other}@8")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_rate_that_begins_again_is_that_of_a_fresh_optimiser_and_the_moments_stay(name):
    section = optimizer(1.0)
    section.update(name=name, warmup=0, decay=True, clip=1e9, weight_decay=0.5)
    section.b1 = 0.0 if name == "adafactor" else section.b1  # whose momentum is one of updates, rate and all
    tx, params = make_optimizer(section, 4), {"w": np.ones(3, np.float32)}
    state = tx.init(params)
    for _ in range(4):
        _, state = tx.update(params, state, params)
    spent, _ = tx.update(params, state, params)
    anew, _ = tx.update(params, begun_again(state), params)
    assert not np.any(spent["w"]), "the rate has decayed to nothing"
    assert np.all(anew["w"] < -0.5)
    kept = {path: leaf for path, leaf in flat(state).items() if leaf.ndim}
    assert all(np.array_equal(leaf, flat(begun_again(state))[path]) for path, leaf in kept.items())
