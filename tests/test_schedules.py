"""Schedules: levels, time grids, timesteps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from didr_jax import schedules


@pytest.mark.parametrize("schedule", [schedules.cosine(), schedules.ddpm()], ids=lambda s: s.name)
def test_variance_preserving(schedule):
    t = jnp.linspace(schedule.t_min, schedule.t_max, 257)
    np.testing.assert_allclose(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, 1, atol=1e-6)


@pytest.mark.parametrize("schedule", [schedules.cosine(), schedules.ddpm(), schedules.rectified_flow(3.0)], ids=lambda s: s.name)
def test_signal_falls_and_noise_rises(schedule):
    t = jnp.linspace(schedule.t_min, schedule.t_max, 1000)
    assert (jnp.diff(schedule.alpha(t)) < 0).all() and (jnp.diff(schedule.sigma(t)) > 0).all()


def test_ddpm_is_sdxls():
    """ᾱ as published for SDXL's schedule; five printed digits."""
    schedule = schedules.ddpm()
    t = jnp.array([20, 249, 399, 800, 980]) / 1000
    np.testing.assert_allclose(schedule.alpha(t) ** 2, [0.98131, 0.67543, 0.42609, 0.03687, 0.00584], atol=6e-6)
    np.testing.assert_array_equal(schedule.timestep(t), [20, 249, 399, 800, 980])
    np.testing.assert_allclose(schedule.snap(jnp.array([0.3994])), [0.399])


def test_ddpm_times_survive_the_round_trip():
    schedule = schedules.ddpm()
    steps = jnp.arange(1000)
    np.testing.assert_array_equal(schedule.timestep(steps / 1000), steps)


def test_continuous_time_has_no_timesteps():
    with pytest.raises(TypeError, match="continuous"):
        schedules.cosine().timestep(jnp.array([0.5]))


def test_shifted_flow_grid_is_z_images():
    """4 steps from pure noise with shift 3 visit 1, .9, .75, .5 (ZImagePipeline)."""
    schedule = schedules.rectified_flow(shift=3.0)
    np.testing.assert_allclose(schedule.grid(jnp.array([1.0]), 4)[:, 0], [1, 0.9, 0.75, 0.5], atol=1e-6)
    u = jax.random.uniform(jax.random.key(0), (100,))
    np.testing.assert_allclose(schedule.unwarp(schedule.warp(u)), u, atol=1e-6)


def test_grid_starts_at_t_and_keeps_each_samples_own_time():
    t = jnp.array([0.3, 0.9])
    grid = schedules.cosine().grid(t, 3)
    np.testing.assert_allclose(grid, [[0.3, 0.9], [0.2, 0.6], [0.1, 0.3]], atol=1e-6)
