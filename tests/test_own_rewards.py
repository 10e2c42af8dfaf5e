"""Rewards of one's own: several, with units, shapes and prefixes, as docs/rewards.md shows them."""

import re
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from didr_jax.recipes.text_to_image import knobs
from didr_jax.recipes.text_to_image.rewards import open_mix
from didr_jax.rewards.custom import try_out
from didr_jax.types import InputError

PAGE = Path(__file__).resolve().parent.parent / "docs" / "rewards.md"


@pytest.fixture
def my_rewards(tmp_path, monkeypatch):
    """The worked example, as the module that it says it is."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    (tmp_path / "my_rewards.py").write_text(code + PROMPTED)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    return "my_rewards"


PROMPTED = """
def letters(images, prompts):
    return [len(prompt) for prompt in prompts]
"""


def images(n=3):
    return jax.random.uniform(jax.random.key(0), (n, 16, 24, 3), minval=-1.0, maxval=1.0)


def section(**values):
    config = knobs.rewards()
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in values.items()})
    return config


def test_the_worked_example_works(my_rewards):
    """Both functions at once: the sum of their shaped values, and the gradient of the one that has one."""
    config = section(
        custom="my_rewards:warmth", custom_differentiable=True, spread__custom=0.2, shape__custom="hinge:0.1", weights__custom=0.5,
        custom2="my_rewards:detail", centre__custom2=2.0, spread__custom2=0.5,
    )  # fmt: skip
    mix, x = open_mix(config, None), images()
    try_out("my_rewards:warmth", True, (16, 24), ["a", "b"])
    try_out("my_rewards:detail", False, (16, 24), ["a", "b"], "custom2")
    score = jax.jit(mix.apply)(mix.params.load(), x, mix.tokenize(["a"] * 3))
    warmth = np.mean(x[..., 0] - x[..., 2], axis=(1, 2))
    np.testing.assert_allclose(score.terms["custom"], warmth, rtol=1e-5, atol=1e-7)
    assert np.all(np.asarray(score.terms["custom2"]) > 0.5), "kilobytes"
    total = 0.5 * np.minimum(warmth / 0.2, 0.1) + (np.asarray(score.terms["custom2"]) - 2) / 0.5
    np.testing.assert_allclose(score.total, total, rtol=1e-5)
    assert mix.black_boxes == ["custom2"]


@pytest.mark.parametrize("shape, low, high", [("", -9, 9), ("hinge:0.5", -9, 0.5), ("clip:-0.5,0.5", -0.5, 0.5)])
def test_beyond_the_bounds_of_a_shape_nothing_pulls(my_rewards, shape, low, high):
    mix = open_mix(section(custom="my_rewards:warmth", custom_differentiable=True, shape__custom=shape), None)
    shades = jnp.array([-0.9, -0.25, 0.25, 0.9])  # of red; of blue, none
    x = jnp.stack([jnp.broadcast_to(shades[:, None, None], (4, 4, 4)), jnp.zeros((4, 4, 4)), jnp.zeros((4, 4, 4))], -1)
    total = lambda x: mix.apply({"custom": {}}, x, mix.tokenize(["a"] * 4)).total
    np.testing.assert_allclose(total(x), np.clip(shades, low, high), rtol=1e-5)
    pulls = np.abs(jax.grad(lambda x: total(x).sum())(x)).sum(axis=(1, 2, 3)) > 0
    assert pulls.tolist() == [low < shade < high for shade in shades.tolist()]


def test_a_prefix_is_read_by_its_reward_alone(my_rewards):
    config = section(custom="my_rewards:letters", custom2="my_rewards:letters", prefix__custom2="a photo of ")
    mix = open_mix(config, None)
    score = mix.apply({"custom": {}, "custom2": {}}, images(2), mix.tokenize(["cat", "kitten"]))
    assert score.terms["custom"].tolist() == [3, 6] and score.terms["custom2"].tolist() == [14, 17]


def test_a_reward_of_ones_own_that_fails_is_named_by_its_key(my_rewards):
    with pytest.raises(InputError, match="config.rewards.custom3: 'my_rewards:nowhere'|custom reward 'my_rewards:nowhere'"):
        try_out("my_rewards:nowhere", False, (4, 4), ["a"], "custom3")
    with pytest.raises(InputError, match="config.rewards.custom3: 'my_rewards:warmth' fails on images"):
        try_out("my_rewards:warmth", False, (4,), ["a"], "custom3")


@pytest.mark.parametrize("scores", [["1", "2"], [1j, 2], [None, 1.0]])
def test_a_black_box_that_returns_no_real_numbers_is_refused_before_the_run(scores, monkeypatch):
    monkeypatch.setitem(sys.modules, "odd_reward", types.SimpleNamespace(of=lambda images, prompts: scores))
    with pytest.raises(InputError, match="config.rewards.custom: 'odd_reward:of' returned .*, not real numbers"):
        try_out("odd_reward:of", False, (4, 4), ["a", "b"])
