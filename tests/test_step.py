"""The training steps against the same updates written out by hand, on linear networks and plain SGD."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from didr_jax import closed_form, schedules
from didr_jax.diffusion import add_noise
from didr_jax.estimators import Estimate
from didr_jax.objectives import OBJECTIVES, Settings
from didr_jax.training.fit import make_fit_step
from didr_jax.training.flops import count
from didr_jax.training.state import init_fit, init_game
from didr_jax.training.step import Networks, draw_times, make_game_step, step_key

SCHEDULE = schedules.cosine()
REFERENCE = closed_form.GaussianMixture.of([[1.0, 1.0]], std=0.7).denoiser(SCHEDULE)
REWARD = closed_form.QuadraticReward(jnp.array([0.5, -0.5]), 0.3, jnp.array([1.0, 0.0]))
LR, N, N_TA, EMA = 0.05, 8, 3, 0.9


def linear(p, x, *_):
    return x @ p["w"] + p["b"]


def parameters(seed):
    return {"w": jax.random.normal(jax.random.key(seed), (2, 2)), "b": jnp.ones(2) * 0.1}


NETWORKS = Networks(
    schedule=SCHEDULE,
    event_shape=(2,),
    reference=lambda frozen, x, t, c: frozen["gain"] * REFERENCE(x, t),
    ta=lambda p, frozen, x, t, c: linear(p, x) + c["shift"][:, None],
    generator=lambda p, frozen, z, c, i: linear(p, z) + c["shift"][:, None],
    reward=lambda frozen, x0, c: REWARD(x0),
)


def game_step(tx=optax.sgd(LR), seed=0, objective="didr", **more):
    return make_game_step(
        NETWORKS, OBJECTIVES[objective], Settings(beta=2.0, estimate=Estimate("drp")), tx, tx,
        seed=seed, guidance=1.0, ta_weighting="v", ta_times=(0.1, 0.9), generator_times=(0.2, 0.8), ema_decay=EMA, **more,
    )  # fmt: skip


def start(tx=optax.sgd(LR)):
    return init_game(parameters(0), parameters(1), tx, tx)


FROZEN = {"gain": jnp.asarray(1.0)}
CONDITIONS = {"shift": jax.random.normal(jax.random.key(9), (N_TA + 1, N))}


def test_game_step_is_n_ta_denoising_updates_then_one_generator_update():
    state, metrics = jax.jit(game_step())(start(), FROZEN, CONDITIONS)
    generator, ta = parameters(0), parameters(1)
    keys = jax.random.split(step_key(0, jnp.asarray(0)), N_TA + 1)

    def drawn(key, times):
        time_key, noise_key = jax.random.split(key)
        return jax.random.normal(noise_key, (N, 2)), draw_times(SCHEDULE, time_key, N, *times)

    for i in range(N_TA):
        shift = CONDITIONS["shift"][i][:, None]
        make, diffuse = jax.random.split(keys[i])
        z = jax.random.normal(jax.random.split(make)[0], (N, 2))
        x0 = linear(generator, z) + shift
        noise, t = drawn(diffuse, (0.1, 0.9))
        x_t = add_noise(SCHEDULE, x0, noise, t)
        weight = 1 / SCHEDULE.sigma(t)[:, None] ** 2  # the v-loss of a variance-preserving schedule
        loss = lambda p: jnp.mean(weight * (linear(p, x_t) + shift - x0) ** 2)
        ta = jax.tree.map(lambda p, g: p - LR * g, ta, jax.grad(loss)(ta))

    make, diffuse, _ = jax.random.split(keys[-1], 3)
    z, shift = jax.random.normal(jax.random.split(make)[0], (N, 2)), CONDITIONS["shift"][-1][:, None]
    noise, t = drawn(diffuse, (0.2, 0.8))
    x0 = linear(generator, z) + shift
    x_t = add_noise(SCHEDULE, x0, noise, t)
    σ2_over_α = (SCHEDULE.sigma(t) ** 2 / SCHEDULE.alpha(t))[:, None]
    proxy = jax.grad(lambda x: jnp.sum(REWARD(REFERENCE(x, t))) / 2.0)(x_t)
    x_r = REFERENCE(x_t, t)
    direction = linear(ta, x_t) + shift - x_r - σ2_over_α * proxy
    direction = direction / jnp.mean(jnp.abs(x0 - x_r), axis=1, keepdims=True)
    loss = lambda p: jnp.mean(direction * (linear(p, z) + shift))
    expected = jax.tree.map(lambda p, g: p - LR * g, generator, jax.grad(loss)(generator))

    for got, want in ((state.ta, ta), (state.generator, expected)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)
    ema = jax.tree.map(lambda old, new: 0.1 * old + 0.9 * new, generator, expected)  # ramp: (1+0)/(10+0) = .1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.ema, ema)
    assert int(state.step) == 1 and int(state.skipped) == 0
    np.testing.assert_allclose(metrics["reward"], REWARD(x0).mean(), rtol=1e-5)


def test_steps_differ_by_step_and_seed_and_by_nothing_else():
    first = jax.jit(game_step())(start(), FROZEN, CONDITIONS)[0]
    again = jax.jit(game_step())(start(), FROZEN, CONDITIONS)[0]
    other = jax.jit(game_step(seed=1))(start(), FROZEN, CONDITIONS)[0]
    np.testing.assert_array_equal(first.generator["w"], again.generator["w"])
    assert not np.array_equal(first.generator["w"], other.generator["w"])


def ta_by_hand(ta, x0, shift, diffuse):
    """After one update on `x0` with the noise and times of a key."""
    time_key, noise_key = jax.random.split(diffuse)
    t = draw_times(SCHEDULE, time_key, N, 0.1, 0.9)
    x_t = add_noise(SCHEDULE, x0, jax.random.normal(noise_key, (N, 2)), t)
    weight = 1 / SCHEDULE.sigma(t)[:, None] ** 2
    gradient = jax.grad(lambda p: jnp.mean(weight * (linear(p, x_t) + shift - x0) ** 2))(ta)
    return jax.tree.map(lambda p, g: p - LR * g, ta, gradient)


@pytest.mark.parametrize("reuse, after, made_anew, parts", [(3, False, 1, 2), (2, True, 1, 1)])
def test_samples_that_are_reused_get_new_noise_and_times_and_are_not_made_again(reuse, after, made_anew, parts):
    step = game_step(ta_reuse=reuse, ta_after=after, micro_batches=parts)
    state, _ = jax.jit(step)(start(), FROZEN, CONDITIONS)
    keys, ta = jax.random.split(step_key(0, jnp.asarray(0)), N_TA + 1), parameters(1)
    make = [jax.random.split(key, 3)[0] for key in keys[-1:]]  # of the generator's update
    of_row = lambda row, key: (linear(parameters(0), jax.random.normal(jax.random.split(key)[0], (N, 2))) + shift_of(row), row)
    shift_of = lambda row: CONDITIONS["shift"][row][:, None]
    for i in range(N_TA):
        first = i - i % reuse
        last = after and i == N_TA - 1
        x0, row = of_row(N_TA, make[0]) if last else of_row(first, jax.random.split(keys[first])[0])
        ta = ta_by_hand(ta, x0, shift_of(row), jax.random.split(keys[i])[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.ta, ta)
    generation = 2 * N * 2 * 2
    saved = count(game_step(), start(), FROZEN, CONDITIONS) - count(step, start(), FROZEN, CONDITIONS)
    assert saved == (N_TA - made_anew) * generation


def test_a_non_finite_gradient_leaves_everything_but_the_count_as_it_was():
    tx = optax.adam(LR)
    before = start(tx)
    after, _ = jax.jit(game_step(tx))(before, {"gain": jnp.asarray(jnp.nan)}, CONDITIONS)
    jax.tree.map(np.testing.assert_array_equal, after.generator, before.generator)
    jax.tree.map(np.testing.assert_array_equal, after.opt_generator, before.opt_generator)
    assert int(after.skipped) == 1 and not np.array_equal(after.ta["w"], before.ta["w"])


def test_fit_step_descends_the_mean_of_the_per_sample_losses():
    loss = lambda p, frozen, batch, key: (jnp.sum((linear(p, batch["x"]) - batch["y"]) ** 2, -1), {})
    tx = optax.sgd(LR)
    batch = {"x": jax.random.normal(jax.random.key(3), (N, 2)), "y": jnp.ones((N, 2))}
    state, _ = jax.jit(make_fit_step(loss, tx, seed=0, ema_decay=EMA))(init_fit(parameters(0), tx), None, batch)
    gradient = jax.grad(lambda p: jnp.mean(loss(p, None, batch, None)[0]))(parameters(0))
    expected = jax.tree.map(lambda p, g: p - LR * g, parameters(0), gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), state.params, expected)


@pytest.mark.parametrize("schedule", [schedules.ddpm(), schedules.rectified_flow(3.0)], ids=lambda s: s.name)
def test_times_are_drawn_in_range_on_the_grid_and_with_the_shift(schedule):
    t = np.asarray(draw_times(schedule, jax.random.key(0), 20000, 0.02, 0.98))
    assert t.min() >= 0.02 - 1e-6 and t.max() <= 0.98 + 1e-6
    if schedule.num_timesteps:
        np.testing.assert_allclose(t * 1000, np.round(t * 1000), atol=1e-3)
    else:
        u = schedule.unwarp(jnp.array([0.02, 0.98]))
        np.testing.assert_allclose(np.median(t), schedule.warp(u.mean()), atol=0.02)
