"""A run that goes on: longer, changed on purpose, looked into before its end, with one word afterwards."""

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny_runs import REPO, tiny, train_tiny

from didr_jax.cli import check_words
from didr_jax.saved_config import defaults, get_config, with_saved
from didr_jax.training.metrics import RunLog, read_metrics
from didr_jax.training.parallel import make_mesh
from didr_jax.training.run import Run, saved_products
from didr_jax.types import InputError

ONE = {"stages": ("pretrain",), "checkpoint__every": 5, "network__width": 4}
TWO = {"distill__generator_optimizer__decay": False, "pretrain__steps": 4, "checkpoint__every": 4, "checkpoint__keep": 3,
       "checkpoint__best": "gap", "checkpoint__best_mode": "min", "log__every": 1}  # fmt: skip


def equal(products, others):
    assert products.keys() == others.keys()
    for path in products:
        np.testing.assert_array_equal(products[path], others[path], err_msg=path)


@pytest.fixture(scope="module")
def twenty(tmp_path_factory):
    """The products of twenty steps in one go."""
    return train_tiny(tmp_path_factory.mktemp("run"), tiny(**ONE))


def saves_of(workdir, stage="pretrain"):
    return sorted(int(path.name) for path in (workdir / "checkpoints" / stage).iterdir())


def history(workdir):
    return json.loads((workdir / "config.json").read_text())["didr_jax"]["history"]


@pytest.fixture(scope="module")
def ten(tmp_path_factory):
    """The workdir of ten steps, finished."""
    workdir = tmp_path_factory.mktemp("run")
    train_tiny(workdir, tiny(**ONE, pretrain__steps=10))
    return workdir


def test_a_finished_stage_that_is_given_more_steps_ends_where_the_long_run_does(ten, twenty, tmp_path, capsys):
    workdir = shutil.copytree(ten, tmp_path / "run")
    equal(train_tiny(workdir, tiny(**ONE)), twenty)
    told = capsys.readouterr().out
    assert "goes on from at step 10" in told and "config.pretrain.steps = 20 from step 10 of pretrain on (10 before)" in told
    assert history(workdir) == [{"stage": "pretrain", "step": 10, "key": "pretrain.steps", "then": 10, "now": 20}]


def test_a_rate_that_is_changed_on_purpose_holds_from_there_on(ten, twenty, tmp_path):
    workdir = shutil.copytree(ten, tmp_path / "run")
    faster = tiny(**ONE, pretrain__optimizer__lr=0.1)
    with pytest.raises(InputError, match="pretrain.optimizer.lr"):
        train_tiny(workdir, faster)
    assert saves_of(workdir) == [5, 10]
    changed = train_tiny(workdir, faster, allowed=("pretrain.optimizer.lr",))
    assert any(np.any(changed[path] != twenty[path]) for path in twenty)
    assert {(entry["key"], entry["step"]) for entry in history(workdir)} == {
        ("pretrain.optimizer.lr", 10),
        ("pretrain.steps", 10),
    }
    with pytest.raises(InputError, match=r"pretrain.optimizer.lr \(0.1 then, 0.001 now\)"):
        train_tiny(workdir, tiny(**ONE))


def test_a_run_that_is_refused_before_its_first_step_leaves_nothing_that_blocks_the_mended_one(ten, tmp_path):
    with pytest.raises(InputError, match="cannot be split into 3 micro-batches"):
        train_tiny(tmp_path / "new", tiny(**ONE, pretrain__micro_batches=3))
    assert not (tmp_path / "new" / "config.json").exists()
    workdir = shutil.copytree(ten, tmp_path / "run")
    before = (workdir / "config.json").read_bytes()
    with pytest.raises(InputError, match="cannot be split into 3 micro-batches"):  # nor does one that was to go on
        train_tiny(workdir, tiny(**ONE, pretrain__micro_batches=3))
    assert (workdir / "config.json").read_bytes() == before


# ------------------------------------------------------------------------------- looked into, and one word


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """The workdir of a run whose last stage, distill, has saves of the steps 4 and 8, of 12."""
    workdir = tmp_path_factory.mktemp("run")
    train_tiny(workdir, tiny(**TWO, distill__steps=8))
    edit(workdir, lambda raw: raw["distill"].update(steps=12))  # as if it had been stopped
    return workdir


def edit(workdir, change):
    raw = json.loads((workdir / "config.json").read_text())
    change(raw)
    (workdir / "config.json").write_text(json.dumps(raw))


def run_of(workdir, **overrides):
    config = get_config(str(workdir / "config.json"))
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in overrides.items()})
    return Run(config, str(workdir), make_mesh(config.mesh), RunLog(str(workdir)))


def test_any_save_of_an_unfinished_run_can_be_picked(unfinished, capsys):
    found = {}
    for step, number in (("4", 4), ("8", 8), ("latest", 8)):
        generator = saved_products(run_of(unfinished), step)["distill"]["generator"].load()
        assert f"distill  at step {number} of 12" in capsys.readouterr().out
        found[step] = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(generator)])
    assert np.any(found["4"] != found["8"])
    np.testing.assert_array_equal(found["8"], found["latest"])


def test_the_best_save_is_the_one_whose_figure_was_recorded_as_such(unfinished, capsys):
    gaps = {line["step"]: line["gap"] for line in read_metrics(str(unfinished)) if line["stage"] == "distill"}
    gaps = {step: gaps[step] for step in (4, 8)}
    for mode, choose in (("max", max), ("min", min)):
        saved_products(run_of(unfinished, checkpoint__best_mode=mode), "best")
        assert f"distill  at step {choose(gaps, key=gaps.get)} of 12" in capsys.readouterr().out


@pytest.mark.parametrize(
    "step, change, message",
    [
        ("", {}, "stage 'distill' is not finished .at step 8 of 12.; .* or see what it has with --step=latest"),
        ("7", {}, "--step=7: stage 'distill' has saves of the steps 8, 4; choose one of them, latest or best"),
        ("newest", {}, "--step=newest: give the step of a save, latest or best"),
        ("best", {"checkpoint__best": ""}, "--step=best: .* steps 8, 4, and config.checkpoint.best names no figure"),
        ("best", {"checkpoint__best": "eval/reward"}, "--step=best: .* none of them has a recorded 'eval/reward'"),
    ],
)
def test_a_step_that_is_not_there_is_answered_with_those_that_are(unfinished, step, change, message):
    with pytest.raises(InputError, match=message):
        saved_products(run_of(unfinished, **change), step)


def test_looking_changes_nothing_in_the_workdir(unfinished):
    before = sorted(str(path) for path in unfinished.rglob("*"))
    saved_products(run_of(unfinished), "latest")["distill"]["generator"].load()
    assert sorted(str(path) for path in unfinished.rglob("*")) == before


def started(*arguments):
    return subprocess.run([sys.executable, "run.py", *arguments], cwd=REPO, capture_output=True, text=True, timeout=120)


def test_the_workdir_and_the_mode_are_enough_and_overrides_hold(unfinished, tmp_path):
    workdir = shutil.copytree(unfinished, tmp_path / "run")
    shutil.copytree(workdir / "checkpoints" / "distill", workdir / "checkpoints" / "align")  # of the same networks
    for said in (workdir / "checkpoints" / "align").glob("*/meta/metadata"):  # a save is bound to its stage
        said.write_text(said.read_text().replace('"stage": "distill"', '"stage": "align"'))
    edit(workdir, lambda raw: raw.update(stages=["pretrain", "align"]))
    before = (workdir / "config.json").read_bytes()
    done = started(
        "--mode=sample", f"--workdir={workdir}", "--step=latest", "--config.sample.num=7", "--config.log.service=wandb"
    )
    assert done.returncode == 0 and done.stderr == ""
    assert "align  at step 8 of 1500" in done.stdout
    assert np.load(workdir / "samples.npy").shape == (7, 2) and not (workdir / "wandb").exists()
    assert (workdir / "config.json").read_bytes() == before


def test_a_saved_config_is_the_config_that_was_saved(unfinished):
    config = get_config(str(unfinished / "config.json"))
    assert config.to_dict() == tiny(**TWO, distill__steps=12).to_dict()
    assert config.align.get_type("trust_radius") is float  # so that --config.align.trust_radius=1 still parses


def test_of_recipes_with_the_same_networks_the_nearest_lends_its_defaults():
    from configs import sd15, sdxl

    for module in (sd15, sdxl):
        raw = json.loads(json.dumps(module.get_config().to_dict()))
        raw["align"].pop("guidance")
        raw["align"]["beta"] = 0.7
        assert defaults(raw)["align.guidance"] == module.get_config().align.guidance


def test_a_key_of_ones_own_stays_and_one_that_has_since_come_takes_todays_value(unfinished, tmp_path):
    raw = json.loads((unfinished / "config.json").read_text())
    del raw["align"]["huber"], raw["profile"]
    raw["mine"] = {"list": [[1, 2], [3]]}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    config = get_config(str(tmp_path / "config.json"))
    assert config.align.huber == tiny().align.huber and config.profile.to_dict() == tiny().profile.to_dict()
    assert config.mine.list == ((1, 2), (3,))
    raw["align"]["steps"] = "many"
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match="align.steps = 'many' is not of this recipe's kind") as refused:
        get_config(str(tmp_path / "config.json"))
    assert "\n" not in str(refused.value)


def test_only_modes_that_read_find_the_config_by_themselves(unfinished, tmp_path):
    path = unfinished / "config.json"
    found = ["run.py", f"--config={path}", "--mode", "eval", f"--workdir={unfinished}"]
    assert with_saved(["run.py", *found[2:]]) == found == with_saved(found)
    for mode in ([], ["--mode=train"]):
        with pytest.raises(InputError, match=f"--config is missing; .*; --config={path} goes on with the run there"):
            with_saved(["run.py", f"--workdir={unfinished}", *mode])
    with pytest.raises(InputError, match=f"--config is missing, and --workdir={tmp_path} has no config.json of an earlier run"):
        with_saved(["run.py", "--mode=sample", f"--workdir={tmp_path}"])
    with pytest.raises(InputError, match=f"--config={tmp_path}/config.json: no such file; give the config.json of a workdir"):
        get_config(str(tmp_path / "config.json"))


@pytest.mark.parametrize(
    "mode, words, message",
    [
        ("train", {"step": "4", "allow_change": []}, "--step is for --mode=sample|eval|benchmark|export|calibrate, not train"),
        ("eval", {"step": "best", "allow_change": ["seed"]}, "--allow_change is for --mode=train, not eval"),
    ],
)
def test_a_step_is_nothing_to_train_with_and_a_change_nothing_to_read_with(mode, words, message):
    with pytest.raises(InputError) as refused:
        check_words(mode, words)
    assert str(refused.value) == message
