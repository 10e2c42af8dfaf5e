"""Whole runs whose reward is not finite: refused where the file says so, stopped with 70 where only the run shows it."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from didr_jax.training.metrics import read_metrics
from didr_jax.weights.files import read_tensors, write_safetensors
from tests.text_to_image import runs
from tests.text_to_image import tiny_sdxl as tiny


def unknown(images, tokens):
    """A user's reward that has lost its mind."""
    return tiny.redness(images, tokens) * np.nan


@pytest.mark.slow
def test_a_reward_or_a_vae_with_weights_that_are_not_finite_is_refused_by_the_tensors_name(tmp_path):
    _, settings = tiny.settings(tmp_path)
    for part, name in (("hps", "visual_projection.weight"), ("base/vae", "decoder.conv_out.bias")):
        file = next((tmp_path / part).glob("*.safetensors"))
        tensors = {key: np.array(value) for key, value in read_tensors(file).items()}
        sound = tensors[name].copy()
        tensors[name].reshape(-1)[0] = np.nan
        write_safetensors(file, tensors)
        result = runs.start_run("sdxl", settings, tmp_path / "run")
        assert result.returncode == 2 and f"weights: {name} has values that are not finite" in result.stderr, result.stderr
        assert "Traceback" not in result.stderr
        write_safetensors(file, tensors | {name: sound})


@pytest.mark.slow
def test_a_reward_that_is_never_finite_ends_with_70_even_in_a_run_shorter_than_patience(tmp_path):
    _, settings = tiny.settings(tmp_path)
    mine = "tests.text_to_image.test_not_finite_runs:unknown"
    settings |= {"rewards.hps": "", "rewards.pickscore": "", "rewards.custom": mine, "rewards.held_out": "()", "eval.every": 0}
    result = runs.start_run("sdxl", settings, tmp_path / "run")
    assert result.returncode == 70, result.stderr
    assert "3 steps in a row were not finite; first of all the reward" in result.stderr
    lines = read_metrics(str(tmp_path / "run"))
    assert [line["skipped"] for line in lines] == [1, 2, 3] and np.isnan([line["reward"] for line in lines]).all()
