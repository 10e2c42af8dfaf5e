"""--mode=calibrate: the β that it proposes, when it is trained with, gives the wanted ratio."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny_runs import REPO, claim_workdir, tiny, train_tiny

from didr_jax import recipes
from didr_jax.training.calibration import calibrate, solve, told
from didr_jax.training.metrics import RunLog, read_metrics
from didr_jax.training.parallel import held, make_mesh
from didr_jax.training.run import Run
from didr_jax.types import InputError

STAGES = ("pretrain", "distill", "align")
AT = {"stages": STAGES, "align__steps": 8, "align__generator_optimizer__lr": 1e-9, "align__batch_size": 256, "log__every": 1}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A workdir whose stages are saved as they began, each at the step that its config calls its last."""
    workdir, config = tmp_path_factory.mktemp("run"), tiny(**AT | {"align__steps": 1})
    recipe = recipes.build(config)
    run = Run(config, str(workdir), make_mesh(config.mesh), RunLog(str(workdir)))
    products = {}
    with jax.set_mesh(run.mesh):
        for name in config.stages:
            stage, saves = recipe.stages[name](products), run.saves(name)
            state = stage.init(run.places(stage.shapes))
            saves.save(stage.steps, stage.split(state))
            saves.close()
            products[name] = {product: held(arrays) for product, arrays in stage.made_of(state).items()}
    run.log.close()
    claim_workdir(config, str(workdir))
    return workdir


def calibrated(workdir, scratch, step="", **overrides):
    config = tiny(**AT | overrides)
    run = Run(config, str(workdir), make_mesh(config.mesh), RunLog(str(scratch)))
    with jax.set_mesh(run.mesh):
        return calibrate(recipes.build(config), run, step), config


def everything_in(folder):
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(folder.rglob("*"))}


def test_a_run_with_the_proposed_beta_logs_the_wanted_ratio(begun, tmp_path):
    before = everything_in(begun)
    knobs = {"align__beta": 10.0, "calibrate__ratio": 0.3}
    found, config = calibrated(begun, tmp_path, **knobs)
    assert everything_in(begun) == before, "nothing is kept"
    assert abs(found.whole.ratio / 0.3 - 1) > 0.3, "the config's own does not give it"
    assert f"--config.align.beta={found.whole.beta:.3g}" in told(found, config)

    train_tiny(tmp_path / "run", tiny(**AT | {"align__beta": found.whole.beta, "init_from": f"{begun}@1", "align__steps": 18}))
    lines = [line for line in read_metrics(str(tmp_path / "run")) if line["stage"] == "align"][9:]
    logged = np.sum([line["pull"] for line in lines]) / np.sum([line["divergence"] for line in lines])
    assert logged == pytest.approx(0.3, rel=0.1)


def test_levels_are_all_samples_in_order_of_noise(begun, tmp_path):
    found, config = calibrated(begun, tmp_path, calibrate__levels=4, calibrate__batches=2, step="latest", align__objective="dipp")
    assert found.whole.beta == pytest.approx(found.whole.ratio / 0.3 * config.align.beta, rel=0.01), "it goes like 1/β here"
    assert found.step == 1 and found.samples == 512 and len(found.levels) == 4
    assert config.align.generator_t_min <= found.levels[0].low and found.levels[-1].high <= config.align.generator_t_max
    assert all(one.high <= two.low for one, two in zip(found.levels, found.levels[1:], strict=False))
    sums = [np.mean([level[i] for level in found.levels]) for i in (2, 3)]
    assert sums[0] / sums[1] == pytest.approx(found.whole.ratio, rel=1e-5)


@pytest.mark.parametrize(
    "ratio, beta",
    [
        (lambda beta: 2 / beta, 4.0),
        (lambda beta: 1 / (1 + beta), 1.0),
        (lambda beta: 1e-3 / beta, 2e-3),
        (lambda beta: min(1 / beta, 0.3), None),
    ],
)
def test_beta_is_found_where_there_is_one(ratio, beta):
    found, largest = solve(ratio, 1.0, 0.5)
    assert found is None if beta is None else found == pytest.approx(beta, rel=0.02)
    assert largest >= ratio(1.0)


@pytest.mark.parametrize(
    "knobs, words",
    [
        ({"align__objective": "dmd2"}, "no reward pulls"),
        ({"align__objective": "refl"}, "there is no divergence"),
        ({"distill__steps": 40}, "stage 'distill' is not finished .* train the stages before 'align' first"),
    ],
)
def test_what_has_no_ratio_is_refused(knobs, words, begun, tmp_path):
    with pytest.raises(InputError, match=words) as refused:
        calibrated(begun, tmp_path, **knobs)
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_the_command_needs_the_workdirs_name_alone_and_leaves_it_as_it_was(begun):
    before = everything_in(begun)
    command = [sys.executable, "run.py", "--mode=calibrate", f"--workdir={begun}", "--config.calibrate.batches=1"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "align at step 0, after 10 steps of its TA" in done.stdout and "--config.align.beta=" in done.stdout
    assert everything_in(begun) == before
