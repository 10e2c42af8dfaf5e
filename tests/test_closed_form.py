"""The closed-form mixture against quadrature, autodiff and its own definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from didr_jax import schedules
from didr_jax.closed_form import GaussianMixture, QuadraticReward, exact_diffused_reward_score

LINE = GaussianMixture(jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.array([[-1.5], [0.4], [2.0]]), jnp.array([0.1, 0.3, 0.05]))
PLANE = GaussianMixture.of([[2, 2], [2, -2], [-2, 2], [-2, -2]], 0.35, weights=[0.1, 0.2, 0.3, 0.4])
GRID = jnp.linspace(-8, 8, 8001)[:, None]
REWARDS = {
    "linear": QuadraticReward(jnp.array([0.7])),
    "concave": QuadraticReward(jnp.array([0.7]), 0.5, jnp.array([1.0])),
    "convex": QuadraticReward(jnp.array([0.7]), -0.2, jnp.array([1.0])),
}


def integrate(values):
    return jnp.trapezoid(values, GRID[:, 0], axis=-1)


@pytest.mark.parametrize("curvature", [0.0, 0.4, -0.1])
def test_tilted_density_is_the_reference_times_exp_reward(curvature):
    reward = QuadraticReward(jnp.array([1.0, 0.5]), curvature, jnp.array([1.5, 2.5]))
    x = 3 * jax.random.normal(jax.random.key(0), (50, 2))
    log_ratio = PLANE.tilt(reward, 0.8).log_prob(x) - PLANE.log_prob(x) - reward(x) / 0.8
    np.testing.assert_allclose(log_ratio, log_ratio[0], atol=2e-4)


@pytest.mark.parametrize("name", REWARDS)
def test_tilt_by_quadrature(name):
    reward, beta = REWARDS[name], 0.7
    density = jnp.exp(LINE.log_prob(GRID) + reward(GRID) / beta)
    tilted = LINE.tilt(reward, beta)
    np.testing.assert_allclose(jnp.exp(tilted.log_prob(GRID)), density / integrate(density), atol=1e-5)
    np.testing.assert_allclose(integrate(jnp.exp(tilted.log_prob(GRID))), 1, rtol=1e-5)


def test_denoiser_is_tweedie_of_the_diffused_density():
    schedule = schedules.rectified_flow()
    x_t = 2 * jax.random.normal(jax.random.key(1), (40, 2))
    t = jnp.linspace(0.05, 0.98, 40)
    score = jax.grad(lambda x: jnp.sum(PLANE.log_prob_t(schedule, x, t)))(x_t)
    α, σ = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    np.testing.assert_allclose(PLANE.denoiser(schedule)(x_t, t), (x_t + σ**2 * score) / α, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("t", [0.15, 0.5, 0.9])
def test_posterior_mean_and_drs_by_quadrature(name, t):
    reward, beta, schedule = REWARDS[name], 0.7, schedules.cosine()
    α, σ = schedule.alpha(jnp.float32(t)), schedule.sigma(jnp.float32(t))
    x_t, times = jnp.array([[-1.0], [0.3], [1.2]]), jnp.full(3, t)

    log_posterior = LINE.log_prob(GRID) - 0.5 * (x_t - α * GRID[:, 0]) ** 2 / σ**2  # [3, grid]
    posterior = jnp.exp(log_posterior - log_posterior.max(-1, keepdims=True))
    tilted = posterior * jnp.exp(reward(GRID) / beta - 3)
    mean, tilted_mean = (integrate(p * GRID[:, 0]) / integrate(p) for p in (posterior, tilted))

    np.testing.assert_allclose(LINE.denoiser(schedule)(x_t, times)[:, 0], mean, atol=1e-4)
    drs = exact_diffused_reward_score(LINE, reward, schedule, x_t, times, beta=beta)
    np.testing.assert_allclose(drs[:, 0] * σ**2 / α, tilted_mean - mean, atol=2e-4)


def test_samples_have_the_mixture_moments():
    x = PLANE.sample(jax.random.key(2), 40_000)
    mean = jnp.exp(PLANE.log_weights) @ PLANE.means
    np.testing.assert_allclose(x.mean(0), mean, atol=0.05)
    np.testing.assert_allclose(x.var(0), 4 + 0.35**2 - mean**2, atol=0.05)
