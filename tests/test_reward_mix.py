"""The weighted mix, held-out rewards, dropped samples, and users' own rewards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from didr_jax.rewards import RewardMix, RewardModel, finite_gradient, load, load_mix, readings
from didr_jax.text.tokens import from_utf8, utf8
from didr_jax.types import InputError, Weights

PROMPTS = ["red", "grün", "", "blue"]


def toy(name, function, **options):
    brightness = lambda images: images.mean(axis=(1, 2, 3))
    score = lambda params, pixels, tokens: function(pixels * params["w"])
    weights = Weights({"w": jax.ShapeDtypeStruct((), jnp.float32)}, lambda shapes, shardings: {"w": jnp.asarray(2.0)})
    return RewardModel(name, weights, brightness, score, utf8, **options)


def images():
    return jax.random.uniform(jax.random.key(0), (4, 3, 5, 3), minval=0.1, maxval=0.9)


def both(mix, x):
    """(score, gradient of the summed total), jitted."""
    tokens, params = mix.tokenize(PROMPTS), mix.params.load()

    def total(x):
        score = mix.apply(params, x, tokens)
        return score.total.sum(), score

    grad, score = jax.jit(jax.grad(total, has_aux=True))(x)
    return score, grad


def test_total_is_the_weighted_sum_of_normalised_scores():
    models = {"a": toy("a", jnp.square, centre=1.0, spread=4.0), "b": toy("b", jnp.sin)}
    mix = RewardMix(models, {"a": 3.0, "b": -0.5})
    score, grad = both(mix, images())
    m = images().mean(axis=(1, 2, 3))
    np.testing.assert_allclose(score.terms["a"], (2 * m) ** 2, rtol=1e-6)
    np.testing.assert_allclose(score.terms["b"], jnp.sin(2 * m), rtol=1e-6)
    np.testing.assert_allclose(score.total, 3 * ((2 * m) ** 2 - 1) / 4 - 0.5 * jnp.sin(2 * m), rtol=1e-5)
    want = (3 * 8 * m / 4 - 0.5 * 2 * jnp.cos(2 * m)) / 45
    np.testing.assert_allclose(grad, jnp.broadcast_to(want[:, None, None, None], grad.shape), rtol=1e-5)
    assert score.kept.all()


def test_the_parts_of_a_mix_add_up_to_it():
    mix = RewardMix(
        {"a": toy("a", jnp.square, spread=4.0), "b": toy("b", jnp.sin), "c": toy("c", jnp.cos)}, {"a": 3.0, "b": -0.5}
    )
    alone = [both(mix.only(name), images()) for name in mix.weights]
    score, grad = both(mix, images())
    np.testing.assert_allclose(sum(part.total for part, _ in alone), score.total, rtol=1e-6)
    np.testing.assert_allclose(sum(slope for _, slope in alone), grad, rtol=1e-5)


def test_held_out_reward_is_measured_without_a_gradient():
    trained = {"a": toy("a", jnp.square)}
    alone, grad_alone = both(RewardMix(trained, {"a": 1.0}), images())
    broken = toy("b", lambda m: jnp.where(m > 0, jnp.nan, m))
    score, grad = both(RewardMix({**trained, "b": broken}, {"a": 1.0}), images())
    np.testing.assert_array_equal(score.total, alone.total)
    np.testing.assert_array_equal(grad, grad_alone)
    assert score.kept.all() and np.isnan(score.terms["b"]).all()


BAD = {
    "the image": (lambda x: x.at[1, 0, 0, 0].set(jnp.nan), jnp.square),
    "one infinite pixel": (lambda x: x.at[1, 2, 4, 1].set(jnp.inf), jnp.tanh),
    "the score": (lambda x: x.at[1].set(-0.5), jnp.log),
    "an overflow": (lambda x: x.at[1].set(60.0), jnp.exp),
}


@pytest.mark.parametrize("case", BAD)
def test_non_finite_sample_is_dropped_and_no_other_changes(case):
    spoil, function = BAD[case]
    mix = RewardMix({"a": toy("a", function), "b": toy("b", jnp.square)}, {"a": 1.0, "b": 1.0})
    clean, clean_grad = both(mix, images())
    score, grad = both(mix, spoil(images()))
    others = np.array([0, 2, 3])
    assert score.kept.tolist() == [True, False, True, True]
    assert float(score.total[1]) == 0 and not np.any(grad[1])
    np.testing.assert_array_equal(score.total[others], clean.total[others])
    np.testing.assert_array_equal(grad[others], clean_grad[others])
    told, of_clean = readings(score), readings(clean)
    assert np.isnan(told["reward"][1]) and np.isnan(told["reward/a"][1])
    for name in ("reward", "reward/a", "reward/b"):
        np.testing.assert_array_equal(told[name][others], of_clean[name][others])


def test_non_finite_gradient_of_a_finite_score_is_zeroed():
    # sqrt(0) = 0 with an infinite slope.
    mix = RewardMix({"a": toy("a", jnp.sqrt)}, {"a": 1.0})
    score, grad = both(mix, images().at[2].set(0.0))
    assert score.kept.all() and not np.any(grad[2]) and np.isfinite(grad).all() and np.any(grad[0])


def test_nan_from_upstream_never_reaches_the_parameters():
    """A decoder whose second sample overflows: its parameters' gradient is that of the other samples alone."""
    mix = RewardMix({"a": toy("a", jnp.square)}, {"a": 1.0})
    tokens, params = mix.tokenize(PROMPTS), mix.params.load()

    def loss(w, latents, keep):
        x = jnp.exp(finite_gradient(w * latents))
        return (mix.apply(params, x, tokens).total * keep).sum()

    latents = jnp.full((4, 3, 5, 3), 0.1).at[1].set(200.0)
    grad = jax.grad(loss)(1.0, latents, 1.0)
    want = jax.grad(loss)(1.0, latents.at[1].set(0.1), jnp.array([1.0, 0.0, 1.0, 1.0]))
    np.testing.assert_allclose(grad, want, rtol=1e-6)


def test_everything_dropped_pulls_nowhere_and_is_not_known():
    score, grad = both(RewardMix({"a": toy("a", jnp.square)}, {"a": 1.0}), jnp.full((4, 3, 5, 3), jnp.nan))
    assert not score.kept.any() and not np.any(grad)
    assert np.isnan(list(readings(score).values())).all()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A user's file with rewards of both kinds."""
    (tmp_path / "my_rewards.py").write_text(
        "import numpy as np\n"
        "def length(images, prompts):\n"
        "    assert isinstance(images, np.ndarray) and images.dtype == np.float32\n"
        "    return [len(p) + x.mean() for x, p in zip(images, prompts, strict=True)]\n"
        "def bright(images, tokens):\n"
        "    return images.mean(axis=(1, 2, 3)) * tokens['n']\n"
        "bright.tokenize = lambda prompts: {'n': np.array([len(p) for p in prompts], np.float32)}\n"
        "def wrong(images, prompts):\n"
        "    return 1.0\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "my_rewards"


def test_black_box_traces_under_jit_and_vmap(module):
    reward = load("mine", {"kind": "custom", "path": f"{module}:length"})
    assert reward.name == "mine" and not reward.differentiable
    tokens, x = reward.tokenize(PROMPTS), images()
    want = np.array([3, 4, 0, 4]) + x.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(jax.jit(reward.apply)({}, x, tokens), want, rtol=1e-6)
    several = jax.jit(jax.vmap(reward.apply, in_axes=(None, 0, None)))({}, jnp.stack([x, -x]), tokens)
    np.testing.assert_allclose(several, np.stack([want, np.array([6, 8, 0, 8]) - want]), rtol=1e-6)


def test_black_box_has_no_gradient_and_says_so(module):
    black = load("mine", {"kind": "custom", "path": f"{module}:length"})
    mix = RewardMix({"a": toy("a", jnp.square), "mine": black}, {"a": 1.0, "mine": 1.0})
    assert not mix.differentiable
    with pytest.raises(InputError, match="'drp' differentiates the reward, but mine has no gradient"):
        mix.require_gradient("drp")
    with pytest.raises(InputError, match="black box and has no gradient"):
        both(mix, images())
    held_out = RewardMix(mix.models, {"a": 1.0})
    held_out.require_gradient("drp")
    score, grad = both(held_out, images())
    assert np.isfinite(score.terms["mine"]).all() and np.any(grad)


def test_differentiable_custom_reward(module):
    reward = load("custom", {"path": f"{module}:bright", "differentiable": True, "spread": 2})
    score, grad = both(RewardMix({"custom": reward}, {"custom": 1.0}), images())
    n = np.array([3, 4, 0, 4], np.float32)
    np.testing.assert_allclose(score.terms["custom"], n * images().mean(axis=(1, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(grad, np.broadcast_to((n / 90)[:, None, None, None], grad.shape), rtol=1e-6)


def test_wrong_number_of_scores_is_reported(module):
    reward = load("custom", {"path": f"{module}:wrong"})
    with pytest.raises(Exception, match=r"returned shape \(\) for 4 images"):
        jax.block_until_ready(reward.apply({}, images(), reward.tokenize(PROMPTS)))


@pytest.mark.parametrize(
    "path, message",
    [("nowhere_at_all:f", "cannot import"), ("my_rewards:absent", "has no absent"), ("my_rewards", "module:function"),
     ("my_rewards:number", "is not a function")],
)  # fmt: skip
def test_custom_path_errors(module, path, message):
    with pytest.raises(InputError, match=message):
        load("custom", {"path": path})


def test_config_errors(module):
    mine = {"kind": "custom", "path": f"{module}:bright", "differentiable": True}
    assert set(load_mix({"mine": 1.0}, [], {"mine": mine}).models) == {"mine"}
    for weights, held_out, options, message in (
        ({"hpsv3": 1.0}, [], {}, "reward 'hpsv3' is unknown .*did you mean hps"),
        ({"hps": 1.0}, [], {}, "hps.*weights"),
        ({"mine": 1.0}, [], {"mine": {**mine, "colour": 1}}, "colour"),
        ({"mine": 1.0}, ["mine"], {"mine": mine}, "both trained and held out"),
        ({"mine": 1.0}, [], {"mine": mine, "other": mine}, "neither trained nor held out"),
        ({"mine": 0.0}, [], {"mine": mine}, "weight 0 for mine"),
        ({"mine": 1.0}, [], {"mine": {**mine, "spread": 0}}, "spread must be positive"),
    ):
        with pytest.raises(InputError, match=message):
            load_mix(weights, held_out, options)
    with pytest.raises(InputError, match="not loaded"):
        RewardMix({}, {"a": 1.0})


def test_text_survives_as_bytes():
    for prompts in (PROMPTS, ["é" * 200], []):
        assert from_utf8(utf8(prompts)["utf8"]) == list(prompts)
