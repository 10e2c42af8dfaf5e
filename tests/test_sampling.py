"""Short denoising against closed forms, and the memory of its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from didr_jax import closed_form, denoise, schedules
from didr_jax.diffusion import from_x0

LAW = closed_form.GaussianMixture.of([[1.0, -0.5]], std=0.6)


def start(schedule, n=8, t=0.8, seed=0):
    return jax.random.normal(jax.random.key(seed), (n, 2)), jnp.full(n, t)


def test_one_step_is_tweedie():
    schedule = schedules.cosine()
    x_t, t = start(schedule)
    denoiser = LAW.denoiser(schedule)
    np.testing.assert_array_equal(denoise(denoiser, schedule, x_t, t, num_steps=1), denoiser(x_t, t))


@pytest.mark.parametrize("schedule", [schedules.cosine(), schedules.rectified_flow(3.0)], ids=lambda s: s.name)
def test_deterministic_solver_converges_to_the_flow_map(schedule):
    """For N(μ, s²) the ODE carries x_t to μ + s (x_t − αμ)/√(α²s² + σ²); first order: error ~ 1/K."""
    x_t, t = start(schedule)
    α, σ = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    mean, s = LAW.means[0], 0.6
    exact = mean + s * (x_t - α * mean) / jnp.sqrt(α**2 * s**2 + σ**2)
    error = lambda k: float(jnp.abs(denoise(LAW.denoiser(schedule), schedule, x_t, t, num_steps=k) - exact).max())
    assert error(256) < 1e-2
    assert 1.7 < error(32) / error(64) < 2.3


def test_flow_step_is_eulers():
    schedule = schedules.rectified_flow()
    x_t, t = start(schedule)
    denoiser = LAW.denoiser(schedule)
    velocity = lambda x, t: from_x0("velocity", denoiser(x, t), x, t, schedule)
    x, times = x_t, [0.8, 0.6, 0.4, 0.2, 0.0]
    for now, after in zip(times, times[1:], strict=False):
        x = x + (after - now) * velocity(x, jnp.full(8, now))
    np.testing.assert_allclose(denoise(denoiser, schedule, x_t, t, num_steps=4), x, atol=2e-6)


def test_ancestral_samples_follow_the_posterior():
    """From one x_t, η = 1 draws from N(m, C): m, C within 4 standard errors plus O(1/K) bias."""
    schedule, n = schedules.cosine(), 20000
    x_t, t = jnp.tile(jnp.array([[0.4, -1.0]]), (n, 1)), jnp.full(n, 0.6)
    x0 = denoise(LAW.denoiser(schedule), schedule, x_t, t, num_steps=100, key=jax.random.key(3), stochasticity=1.0)
    α, σ = float(schedule.alpha(t)[0]), float(schedule.sigma(t)[0])
    variance = 1 / (1 / 0.36 + α**2 / σ**2)
    mean = variance * (LAW.means[0] / 0.36 + α / σ**2 * x_t[0])
    np.testing.assert_allclose(x0.mean(0), mean, atol=0.03)
    np.testing.assert_allclose(x0.var(0), variance, rtol=0.06)


@pytest.mark.parametrize("stochasticity", [0.0, 1.0])
def test_gradient_is_that_of_finite_differences(stochasticity):
    schedule = schedules.cosine()
    x_t, t = start(schedule, n=1)
    key, direction = jax.random.key(5), jnp.array([[0.6, 0.8]])
    f = jax.jit(
        lambda x: denoise(LAW.denoiser(schedule), schedule, x, t, num_steps=5, key=key, stochasticity=stochasticity).sum()
    )
    numeric = (f(x_t + 1e-2 * direction) - f(x_t - 1e-2 * direction)) / 2e-2
    np.testing.assert_allclose(jnp.sum(jax.grad(f)(x_t) * direction), numeric, rtol=2e-3)


def test_loop_unrolled_and_rematerialised_agree():
    schedule = schedules.cosine()
    x_t, t = start(schedule)

    def gradient(**how):
        f = lambda x: jnp.sum(denoise(LAW.denoiser(schedule), schedule, x, t, num_steps=4, **how) ** 2)
        return jax.grad(f)(x_t)

    for how in ({"unroll": True}, {"remat": False}, {"unroll": True, "remat": False}):
        np.testing.assert_allclose(gradient(**how), gradient(), rtol=1e-5)


def test_known_first_prediction_saves_an_evaluation():
    schedule, calls = schedules.cosine(), []
    x_t, t = start(schedule)

    def denoiser(x, t):
        calls.append(1)
        return LAW.denoiser(schedule)(x, t)

    x_hat = LAW.denoiser(schedule)(x_t, t)
    assert denoise(denoiser, schedule, x_t, t, num_steps=1, x0_hat=x_hat) is x_hat and not calls


def test_gradient_memory_is_nearly_flat_in_the_number_of_steps():
    """From K = 4 to 16 only copies of x_t are added; without remat memory grows several-fold."""
    schedule = schedules.cosine()
    w1 = jax.random.normal(jax.random.key(0), (16, 1024)) / 4
    w2 = jax.random.normal(jax.random.key(1), (1024, 16)) / 32
    x_t, t = jnp.ones((256, 16)), jnp.full(256, 0.9)

    def denoiser(x, t):
        return jnp.tanh(jnp.sin(x @ w1) @ w2)

    def temporaries(k, remat=True):
        f = lambda x: jnp.sum(denoise(denoiser, schedule, x, t, num_steps=k, remat=remat))
        return jax.jit(jax.grad(f)).lower(x_t).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(4) < 2 * temporaries(1)  # the loop holds one hidden layer more than a bare step
    assert temporaries(16) < temporaries(4) + 3 * 12 * x_t.nbytes  # x_t and x̂0 of each further step
    assert temporaries(16, remat=False) > 4 * temporaries(16)


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"num_steps": 0}, "num_steps"),
        ({"num_steps": 2, "stochasticity": 1.0}, "key"),
        ({"num_steps": 1, "stochasticity": -1.0}, "stochasticity"),
    ],
)
def test_bad_arguments_are_named(bad, message):
    schedule = schedules.cosine()
    x_t, t = start(schedule)
    with pytest.raises(ValueError, match=message):
        denoise(LAW.denoiser(schedule), schedule, x_t, t, **bad)
