"""Bad input: one clear line and exit code 2, before any work."""

import os
import subprocess
import sys

import pytest

from configs import digits
from didr_jax import recipes
from didr_jax.checks import listed
from didr_jax.cli import check
from didr_jax.training.validate import validate
from didr_jax.types import InputError

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def run(*arguments, workdir):
    command = [sys.executable, "run.py", f"--workdir={workdir}", *arguments]
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=120)


def refuses(result, *fragments):
    lines = result.stderr.strip().splitlines()
    assert result.returncode == 2, result.stderr
    assert len(lines) == 1 and lines[0].startswith("didr_jax: "), result.stderr
    for fragment in fragments:
        assert fragment in lines[0]


DIGITS = "--config=configs/digits.py"


@pytest.mark.parametrize(
    "key, value, fragments",
    [
        ("align.objective", "didrr", ["'didrr'", "did you mean", "didr"]),
        ("align.estimator", "dpr", ["did you mean drp"]),
        ("align.beta", 0.0, ["positive"]),
        ("align.num_steps", 0, ["config.align.num_steps = 0", "at least 1"]),
        ("align.stochasticity", 2.0, ["config.align.stochasticity = 2.0", "[0, 1]"]),
        ("align.generator_t_max", 1.5, ["cosine", "1.0"]),
        ("align.ta_reuse", 2, ["config.align.ta_reuse = 2", "3 TA updates", "multiple"]),
        ("align.ta_t_min", 0.0, ["no noise"]),
        ("align.ta_optimizer.name", "adam", ["adamw"]),
        ("schedule.name", "cosin", ["did you mean cosine"]),
        ("recipe", "digit", ["did you mean digits"]),
        ("stages", ("pretrain", "aling"), ["aling"]),
    ],
)
def test_values_that_cannot_work_are_named_with_what_would(key, value, fragments):
    config = digits.get_config()
    with config.unlocked():
        config.update_from_flattened_dict({key: value})
    with pytest.raises(InputError) as refused:
        validate(config)
        recipes.build(config)
    assert "\n" not in str(refused.value)
    for fragment in [key.split(".")[0], *fragments]:
        assert fragment in str(refused.value)


@pytest.mark.parametrize(
    "argument, fragments",
    [
        ("--config.align.objectve=didr", ["--config.align.objectve", "did you mean align.objective"]),
        ("--config.align.beta=0", ["config.align.beta", "positive"]),
        ("--config.align.steps=many", ["align.steps"]),
        ("--mode=trian", ["--mode=trian", "did you mean train"]),
    ],
)
def test_the_command_line_refuses_before_it_touches_the_workdir(argument, fragments, tmp_path):
    refuses(run(DIGITS, argument, workdir=tmp_path / "run"), *fragments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("objective", ["didr", "dipp"])
def test_an_objective_that_needs_a_reward_is_refused_in_a_stage_without_one(objective):
    """It would train as the divergence alone, without a word."""
    config = digits.get_config()
    config.distill.objective = objective
    recipe = recipes.build(config)
    with pytest.raises(
        InputError, match=f"config.distill.objective = '{objective}' needs a reward, and stage 'distill' has none"
    ):
        check(recipe, config, "train")


def test_a_refusal_names_five_and_counts_the_rest():
    names = [f"image{i}" for i in range(8)]
    assert listed(names[:5]) == "image0, image1, image2, image3, image4"
    assert listed(names) == "image0, image1, image2, image3, image4 and 3 more (--verbose lists all)"


def test_verbose_lists_all_that_a_refusal_counted(tmp_path):
    (tmp_path / "base").mkdir()
    sdxl = ["--config=sdxl", f"--config.weights.base={tmp_path / 'base'}"]
    score = ["--mode=score", f"--config.score.images={tmp_path}", f"--config.score.prompts={tmp_path / 'p.csv'}"]
    (tmp_path / "p.csv").write_text("image,prompt\n" + "".join(f"{i}.png,a\n" for i in range(8)))
    score += ["--config.rewards.custom=os.path:join"]
    told = run(*sdxl, *score, "--verbose", workdir=tmp_path / "run")
    first = told.stderr.splitlines()[0]
    assert (
        told.returncode == 2
        and "score: 8 images are not in" in first
        and first.endswith("4.png and 3 more (--verbose lists all)")
    )
    assert [line.strip() for line in told.stderr.splitlines()[1:]] == [f"{i}.png" for i in range(8)]
    assert not (tmp_path / "run").exists()


def test_missing_config_and_missing_config_file(tmp_path):
    refuses(run(workdir=tmp_path), "--config")
    refuses(run("--config=configs/nowhere.py", workdir=tmp_path), "nowhere.py")


def test_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    refuses(run(DIGITS, workdir=tmp_path / "file" / "run"), "--workdir", "choose another")


def test_sampling_an_unfinished_run_says_so(tmp_path):
    refuses(run(DIGITS, "--mode=sample", workdir=tmp_path), "pretrain", "not finished", "--mode=train")
