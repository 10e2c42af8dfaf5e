"""--help: every mode, and every key of every recipe with its meaning."""

import runpy

import pytest

from didr_jax import cli
from didr_jax.meanings import meanings
from didr_jax.named_configs import named_configs


@pytest.mark.parametrize("name", named_configs())
def test_every_key_of_a_shipped_config_has_a_meaning(name):
    path = named_configs()[name]
    said = meanings(runpy.run_path(path)["get_config"](), path)
    assert [key for key, meaning in said.items() if not meaning] == []


def test_meanings_are_the_comments_beside_the_knobs():
    path = named_configs()["sdxl"]
    said = meanings(runpy.run_path(path)["get_config"](), path)
    assert said["align.beta"].startswith("temperature of the tilt") and said["align.steps"] == "generator updates"
    assert said["align.ta_optimizer.lr"].startswith("peak learning rate") and said["log.every"].startswith("steps between lines")
    assert said["align.estimator"].startswith("auto: conjugate; own where"), "of the lines above"
    assert said["align.guidance"].startswith("classifier-free guidance"), "not the source of the recipe's number"
    assert said["rewards.hps"].startswith("HPSv2.1") and said["rewards.weights.hps"] == "in the mix"


def test_help_lists_modes_and_with_a_config_its_keys(capsys):
    for argv, words in (
        (["run.py", "--help"], ["--allow_change", "calibrate", "--help --config=NAME"]),
        (["run.py", "--config=digits", "--help"], ["compile", "align.beta = 1.0", "temperature of the tilt"]),
    ):
        with pytest.raises(SystemExit) as end:
            cli._parse(argv)
        told = capsys.readouterr().out
        assert end.value.code == 0 and all(word in told for word in words)
