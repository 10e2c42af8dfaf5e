"""The recipes end to end through run.py, small; and at full size in the slow tests."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from didr_jax.json_files import read_object
from didr_jax.rankings import kendall_tau
from didr_jax.recipes.digits import data as digits_data
from didr_jax.reporting.contents import read_workdir
from didr_jax.training.metrics import read_metrics

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def run(config, workdir, *arguments, timeout=300, **environment):
    command = [sys.executable, "run.py", f"--config=configs/{config}.py", f"--workdir={workdir}", *arguments]
    result = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=timeout, env=os.environ | environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def summary(workdir):
    with open(os.path.join(workdir, "summary.json")) as file:
        return json.load(file)


SHORT = {
    "digits": ["pretrain", "reward", "judge", "distill", "align"],
    "mixture": ["pretrain", "distill", "align"],
}


@pytest.mark.parametrize("name", SHORT)
def test_a_short_run_trains_reports_and_is_not_redone(name, tmp_path, tmp_path_factory):
    few = [f"--config.{stage}.steps=6" for stage in SHORT[name]]
    few += ["--config.eval.samples=200", "--config.log.every=3", "--config.checkpoint.every=4"]
    few += ["--config.log.peak_tflops=0.05"]
    # a few steps of each program: compiled in haste, and once for all runs
    haste = {"XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    haste |= {"JAX_ENABLE_COMPILATION_CACHE": "1", "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled"))}
    first = run(name, tmp_path, *few, **haste)
    assert "ETA" in first and "img/s" in first and "% of peak" in first
    rows = summary(tmp_path)
    assert len({tuple(row) for row in rows.values()}) == 1, "every model has every figure"
    assert np.isfinite([list(row.values()) for row in rows.values()]).all()
    for stage in SHORT[name]:
        steps = [line["step"] for line in read_metrics(tmp_path) if line["stage"] == stage and "images_seen" in line]
        assert steps == [1, 3, 6]
        shares = [line["utilisation"] for line in read_metrics(tmp_path) if line["stage"] == stage and line["step"] > 1]
        assert all(0 < share < 20 for share in shares)  # whatever this machine's real peak is
        assert os.path.exists(tmp_path / f"curves_{stage}.png")
    with open(tmp_path / "report.html", encoding="utf-8") as file:
        page = file.read()
    for label, row in rows.items():
        assert label in page and all(f"{value:.4g}" in page for value in row.values())
    assert f"--workdir={tmp_path}" in page and "--mode=sample" in page and "The reward of single samples" in page
    assert (
        page.count(", before (number")
        == (0 if name == "mixture" else page.count(", after (number"))
        == page.count('class="pair small"')
    )

    if name == "digits":
        assert {"tau", "low", "high"} <= read_object(tmp_path / "tac.json")[
            "reward"
        ].keys() and "order pictures as it should" in page
    again = run(name, tmp_path, *few, **haste)
    assert "img/s" not in again and again.count("finished at step 6") == len(SHORT[name])
    assert summary(tmp_path) == rows
    run(name, tmp_path, "--mode=sample", *few, **haste)


def test_digit_splits_are_apart_stratified_and_whole():
    train, held_out = digits_data.load()
    assert len(train.labels) + len(held_out.labels) == 1797
    both = np.concatenate([train.images, held_out.images]).reshape(1797, -1)
    assert len(np.unique(both, axis=0)) == 1797
    np.testing.assert_allclose(np.bincount(held_out.labels) / np.bincount(train.labels), 0.5, atol=0.02)
    assert train.images.min() == -1 and train.images.max() == 1


def test_the_annotator_prefers_ink_and_dislikes_the_wrong_digit():
    train, _ = digits_data.load()
    batch = digits_data.Annotator(train).compare(np.random.default_rng(0), 4000)
    ink = digits_data.ink
    assert ink(batch["better"]).mean() > ink(batch["worse"]).mean() + 0.02
    again = digits_data.Annotator(train).compare(np.random.default_rng(0), 4000)
    np.testing.assert_array_equal(batch["better"], again["better"])


def test_pictures_are_ranked_by_the_rule_on_digits_that_no_reward_was_trained_on():
    train, held_out = digits_data.load()
    labels, images, utility = digits_data.Annotator(train, held_out).rank(np.random.default_rng(0), 200, 6)
    assert images.shape == (200, 6, 8, 8, 1) and utility.shape == (200, 6) and len(np.unique(labels)) == 10
    flat = images.reshape(-1, 64)
    known = {each.tobytes() for each in held_out.images.reshape(-1, 64)}
    shown = np.array([each.tobytes() in known for each in flat])
    assert 0.5 < shown.mean() < 0.7, "three fifths are undamaged, and of the held-out split"
    ink = [kendall_tau(u, digits_data.ink(x)) for u, x in zip(utility, images, strict=True)]
    assert 0.3 < np.mean(ink) < 0.9, "ink is a part of the rule, and not all of it"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_alignment_raises_the_reward_and_approaches_the_tilted_data(seed, tmp_path):
    """The claim of the digits run; margins are a third of what the default seed shows."""
    run("digits", tmp_path, f"--config.seed={seed}", timeout=1500)
    rows = summary(tmp_path)
    before, after = rows["one step, initial"], rows["one step, didr"]
    assert after["reward"] > before["reward"] + 0.3
    assert after["to_tilted_data"] < before["to_tilted_data"] - 0.3
    assert after["accuracy"] > 0.85 and after["diversity"] > 0.85 * before["diversity"]


@pytest.mark.slow
def test_plain_reward_ascent_raises_the_alarm_for_hacking_and_didr_does_not(tmp_path):
    """`refl` on digits collapses within a hundred steps: its judge no longer reads what was asked for."""
    short = {"pretrain": 1200, "reward": 500, "judge": 600, "distill": 300, "align": 120}
    few = [f"--config.{stage}.steps={steps}" for stage, steps in short.items()]
    few += ["--config.eval.samples=1000", "--config.eval.every=20", "--config.checkpoint.every=300"]
    healthy = run("digits", tmp_path / "didr", *few, timeout=1500)
    shutil.copytree(tmp_path / "didr", tmp_path / "refl", ignore=lambda _, names: {"align", "metrics.jsonl"} & {*names})
    another = ["--config.align.objective=refl", "--allow_change=align.objective"]  # from the same start
    hacked = run("digits", tmp_path / "refl", *few, *another, timeout=1500)
    assert "hacked" not in healthy and "the reward may be hacked: accuracy fell" in hacked
    marks = {who: [line.get("hacking/accuracy") for line in read_metrics(tmp_path / who)] for who in ("didr", "refl")}
    assert 1.0 not in marks["didr"] and marks["refl"][-1] == 1.0
    verdicts = {who: read_workdir(str(tmp_path / who)).verdict() for who in ("didr", "refl")}
    assert verdicts["didr"].level == "good" and verdicts["refl"].level == "bad"
