"""Conversions between predictions, and guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from didr_jax import diffusion, schedules

SCHEDULES = [schedules.cosine(), schedules.ddpm(), schedules.rectified_flow(3.0)]


def draw(schedule):
    keys = jax.random.split(jax.random.key(1), 3)
    x0, noise = jax.random.normal(keys[0], (64, 3, 2)), jax.random.normal(keys[1], (64, 3, 2))
    t = jax.random.uniform(keys[2], (64,), minval=0.05, maxval=0.95)
    return x0, noise, t, diffusion.add_noise(schedule, x0, noise, t)


def truth(kind, schedule, x0, noise, t):
    """Each prediction by its definition, not by its table row."""
    α, σ = schedule.alpha(t)[:, None, None], schedule.sigma(t)[:, None, None]
    return {"x0": x0, "eps": noise, "v": α * noise - σ * x0, "velocity": noise - x0, "score": -noise / σ}[kind]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
@pytest.mark.parametrize("kind", diffusion.PREDICTIONS)
def test_predictions_mean_what_they_say(kind, schedule):
    """x0 -> prediction -> x0 on noisy samples; the tolerance is float32 divided by α(.95) ≈ .07."""
    x0, noise, t, x_t = draw(schedule)
    prediction = truth(kind, schedule, x0, noise, t)
    np.testing.assert_allclose(diffusion.to_x0(kind, prediction, x_t, t, schedule), x0, atol=2e-5)
    back = diffusion.from_x0(kind, x0, x_t, t, schedule)
    np.testing.assert_allclose(back, prediction, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["x0", "eps", "v", "velocity"])
def test_weight_turns_x0_errors_into_errors_of_the_prediction(kind):
    schedule = schedules.rectified_flow()
    x0, _, t, x_t = draw(schedule)
    wrong = x0 + 0.1
    error = diffusion.from_x0(kind, wrong, x_t, t, schedule) - diffusion.from_x0(kind, x0, x_t, t, schedule)
    expected = diffusion.prediction_weight(kind, schedule, t)[:, None, None] * 0.1**2
    np.testing.assert_allclose(error**2, jnp.broadcast_to(expected, error.shape), rtol=1e-3)


def test_unknown_prediction_is_named():
    with pytest.raises(ValueError, match="'flow'.*velocity"):
        diffusion.to_x0("flow", jnp.zeros((1, 1)), jnp.zeros((1, 1)), jnp.ones(1), schedules.cosine())


@pytest.mark.parametrize("kind", ["eps", "v", "velocity"])
def test_guidance_commutes_with_conversion(kind):
    schedule = schedules.cosine()
    a, b, t, x_t = draw(schedule)
    guided = diffusion.guide(diffusion.to_x0(kind, a, x_t, t, schedule), diffusion.to_x0(kind, b, x_t, t, schedule), 4.0)
    np.testing.assert_allclose(guided, diffusion.to_x0(kind, diffusion.guide(a, b, 4.0), x_t, t, schedule), rtol=1e-3, atol=1e-3)
