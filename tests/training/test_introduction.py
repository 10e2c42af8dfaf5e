"""Before its first step a stage says where it runs and what it is; while nothing is to be seen, that it lives."""

import time
from contextlib import redirect_stdout
from io import StringIO

import pytest
from tiny_runs import tiny, train_tiny

from didr_jax import recipes
from didr_jax.training.introduction import heartbeat
from didr_jax.training.metrics import read_metrics
from didr_jax.training.stages import Stage


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """(workdir, lines of the screen without their clock) of a stage of two steps."""
    workdir, screen = tmp_path_factory.mktemp("run"), StringIO()
    config = tiny(stages=("pretrain",), pretrain__steps=2, log__every=1, pretrain__optimizer__warmup=4)
    with redirect_stdout(screen):
        train_tiny(workdir, config)
    lines = [line.partition("] ")[2] for line in screen.getvalue().splitlines()]
    return workdir, [line for line in lines if "no step is done yet" not in line]  # of a slow machine


def test_devices_networks_and_memory_are_told_before_the_first_step(told):
    where, trains, holds, first, _ = told[1]
    assert where == "pretrain (1/1)  1 × cpu (one device), 1 process"
    assert trains.startswith("pretrain (1/1)  trains params ") and trains.endswith(" parameters")
    assert holds.startswith("pretrain (1/1)  holds ") and holds.endswith(" GB a device; compiling (the first time: minutes)")
    assert first.startswith("pretrain (1/1)      1/2  64 img  compiled  ")


def test_the_log_knows_the_rate_of_each_update_and_the_time(told):
    lines = read_metrics(str(told[0]))
    assert [line["lr"] for line in lines] == pytest.approx([0.25e-3, 0.4375e-3])  # warm-up from a quarter over four updates
    assert 0 < lines[0]["seconds"] <= lines[1]["seconds"]


def stage_of(name, products, **overrides) -> Stage:
    return recipes.build(tiny(**overrides)).stages[name](products)


def test_a_game_says_its_objective_and_numbers_and_both_rates():
    config = {"align__guidance": 2.0, "align__beta": 0.5, "align__ta_optimizer__warmup": 0, "align__ta_optimizer__decay": True}
    before = recipes.build(tiny()).fresh(1)
    stage = stage_of("align", {"distill": {"generator": before, "ta": before}}, **config, align__steps=8)
    assert stage.about() == ("objective didr, estimator conjugate, beta 0.5, guidance 2, 2 TA updates a step",)
    assert stage.rates["lr_ta"](0) == pytest.approx(1e-3) and stage.rates["lr_ta"](4) == pytest.approx(0.5e-3)
    plain = stage_of("distill", {"pretrain": {"params": before}})
    assert plain.about() == ("objective dmd2, guidance 1, 2 TA updates a step",)


def test_a_heart_beats_until_the_first_step_and_not_after():
    lines: list[str] = []
    with heartbeat(lines.append, "compiling", every=0.01) as over:
        while len(lines) < 2:
            time.sleep(0.005)
        over.set()
        time.sleep(0.05)
        heard = len(lines)
        time.sleep(0.05)
        assert len(lines) == heard
    assert lines[0] == "compiling (0 s)"
    with pytest.raises(KeyError), heartbeat(lines.append, "compiling", every=0.01):
        raise KeyError
    heard = len(lines)
    time.sleep(0.05)
    assert len(lines) == heard, "it ends with its block, however that ends"
