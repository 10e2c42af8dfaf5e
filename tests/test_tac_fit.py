"""Weights of a mix fitted to people: they find what people go by, and are worth what they are worth elsewhere."""

import json

import numpy as np
import pytest
from PIL import Image

from configs import sdxl
from didr_jax import recipes
from didr_jax.cli import check, check_words
from didr_jax.rewards import RewardMix, RewardModel
from didr_jax.rewards.fit import fit_weights
from didr_jax.rewards.people import Ranked
from didr_jax.rewards.tac import Scored
from didr_jax.text.tokens import utf8
from didr_jax.training.metrics import RunLog
from didr_jax.training.parallel import make_mesh
from didr_jax.training.run import Run
from didr_jax.types import InputError, Weights

NONE = Weights.join({})


def model(name, centre=0.0, spread=1.0):
    return RewardModel(name, NONE, lambda x: x, lambda p, x, t: x[:, 0, 0, 0], utf8, centre=centre, spread=spread)


MIX = RewardMix({"a": model("a", 3.0, 2.0), "b": model("b", -1.0, 10.0), "c": model("c")}, {"a": 1.0, "b": 1.0, "c": 1.0})


def answers(true, n=120, noise=0.05, seed=0):
    """People who go by Σ true_k z_k with some noise, of prompts with three to five pictures."""
    rng = np.random.default_rng(seed)
    sizes = 3 + np.arange(n) % 3
    z = [rng.normal(size=(size, 3)) for size in sizes]
    people = [each @ true + noise * rng.normal(size=len(each)) for each in z]
    scores = {"a": [3 + 2 * each[:, 0] for each in z], "b": [-1 + 10 * each[:, 1] for each in z], "c": [each[:, 2] for each in z]}
    return Scored([Ranked("", ("",) * len(p), np.round(p, 1)) for p in people], scores)


def test_the_fit_finds_the_weights_that_people_go_by_in_the_units_of_the_mix():
    fit = fit_weights(answers(np.array([2.0, 0.7, 0.3])), MIX)
    assert [fit.weights[name] for name in "abc"] == pytest.approx([2.0, 0.7, 0.3], abs=0.12)
    assert sum(fit.weights.values()) == pytest.approx(3), "the sum that they had: β means what it did"
    assert fit.after.tau > 0.9 > fit.before.tau + 0.1
    assert fit.crossed.tau == pytest.approx(fit.after.tau, abs=0.02)


def test_where_people_go_by_nothing_the_cross_fitted_figure_says_so():
    fit = fit_weights(answers(np.zeros(3), noise=1.0), MIX)
    assert fit.after.tau > fit.before.tau and fit.crossed.low < 0.05 and fit.crossed.tau < fit.after.tau


def test_it_is_printed_as_config_lines():
    line, worth = fit_weights(answers(np.array([1.0, 1.0, 1.0])), MIX).lines()
    words = dict(word.removeprefix("--config.rewards.weights.").split("=") for word in line.split())
    assert [float(words[name]) for name in "abc"] == pytest.approx([1, 1, 1], abs=0.1)
    assert "as configured" in worth and "did not choose them" in worth


@pytest.mark.parametrize("mix, n, words", [
    (RewardMix({"a": model("a")}, {"a": 1.0}), 9, "nothing to fit in a mix of one reward"),
    (RewardMix({"a": model("a"), "b": model("b")}, {"a": 1.0, "b": -1.0}), 9, "fitted weights are positive"),
    (MIX, 3, "3 prompts are too few"),
])  # fmt: skip
def test_what_cannot_be_fitted_is_one_line(mix, n, words):
    with pytest.raises(InputError, match=words) as refused:
        fit_weights(answers(np.ones(3), n), mix)
    assert "\n" not in str(refused.value)


def blueness(images, prompts):
    return images[..., 2].mean((1, 2))


def test_the_mode_writes_and_prints_it_and_asks_for_two_rewards(tmp_path, capsys):
    config = sdxl.get_config()
    config.rewards.custom, config.tac.rankings, config.tac.fit = "tests.test_tac_fit:blueness", "x", True
    with pytest.raises(InputError, match="--fit weighs two or more rewards"):
        check(recipes.build(config), config, "tac")
    with pytest.raises(InputError, match="--fit is for --mode=tac, not score"):
        check_words("score", {"step": "", "allow_change": [], "fit": True})
    rows = []
    for p in range(6):
        for i in range(3):
            Image.new("RGB", (4, 4), (60 * i, 9 * p, 80 * (i == p % 3))).save(tmp_path / f"{p}{i}.png")
        rows.append({"prompt": "a", "image_path": [f"{p}{i}.png" for i in range(3)], "rank": [3, 2, 1]})
    (tmp_path / "test.json").write_text(json.dumps(rows))
    config.tac.rankings, config.tac.images = str(tmp_path / "test.json"), str(tmp_path)
    recipe = recipes.build(config)
    red = RewardModel("hps", NONE, lambda x: x.mean((1, 2)), lambda p, x, t: x[:, 0], utf8)
    recipe.task.mix = RewardMix({"hps": red, **recipe.task.mix.models}, {"hps": 1.0, "custom": 1.0})
    run = Run(config, str(tmp_path), make_mesh(config.mesh), RunLog(str(tmp_path)))
    recipe.modes["tac"]({}, run)
    written = json.loads((tmp_path / "tac_fit.json").read_text())
    assert written["weights"]["hps"] > 1 > written["weights"]["custom"] and written["after"]["tau"] == 1.0
    told = capsys.readouterr().out
    assert "by HPSv2" in told and f"--config.rewards.weights.hps={written['weights']['hps']:.4g}" in told
    assert json.loads((tmp_path / "tac.json").read_text())["hps"]["published"] == {"HPSv2": 1.0}
