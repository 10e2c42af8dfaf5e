"""Few-step generators: what they sample, and which gradient a step is trained with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import didr_jax
from didr_jax.few_step import FewStep
from didr_jax.schedules import cosine, ddpm, rectified_flow

EVENT = (3, 2)
TIMES = (0.9, 0.6, 0.3)


def network(params, x_t, t):
    """Any smooth function of all of its arguments."""
    return jnp.tanh(x_t @ params["w"] + params["b"] * t.reshape(-1, 1, 1))


@pytest.fixture
def drawn():
    keys = jax.random.split(jax.random.key(3), 3)
    params = {"w": jax.random.normal(keys[0], (2, 2)), "b": jax.random.normal(keys[1], (2,))}
    return params, jax.random.normal(keys[2], (4, len(TIMES), *EVENT))


def by_hand(schedule, params, z, last, solver="renoise"):
    """x0_last with the steps before it written out."""
    x = z[:, 0]
    for i, t in enumerate(TIMES):
        x0 = network(params, x, jnp.full(len(z), t))
        if i == last:
            return x0
        α, σ, s = schedule.alpha(t), schedule.sigma(t), TIMES[i + 1]
        noise = z[:, i + 1] if solver == "renoise" else (x - α * x0) / σ
        x = jax.lax.stop_gradient(schedule.alpha(s) * x0 + schedule.sigma(s) * noise)


def test_a_one_step_generator_is_its_network(drawn):
    params, z = drawn
    steps = FewStep(cosine(), (0.9,))
    assert steps.noise_shape(EVENT) == EVENT
    want = network(params, z[:, 0], jnp.full(len(z), 0.9))
    np.testing.assert_array_equal(steps.sample(network, params, z[:, 0]), want)
    np.testing.assert_array_equal(steps.train(network, params, z[:, 0], jnp.asarray(0)), want)
    assert tuple(map(float, steps.segment(jnp.asarray(0), 0.25, 0.75))) == (0.25, 0.75)


@pytest.mark.parametrize("solver", ["renoise", "ode"])
def test_samples_follow_the_equation(drawn, solver):
    params, z = drawn
    got = FewStep(cosine(), TIMES, solver).sample(network, params, z)
    # The loop's program may fuse differently: a few float32 roundings.
    np.testing.assert_allclose(got, by_hand(cosine(), params, z, 2, solver), rtol=1e-5, atol=1e-6)


def test_ode_is_the_deterministic_sampler(drawn):
    params, z = drawn
    schedule = rectified_flow(shift=3.0)
    got = FewStep.even(schedule, 1.0, 3, "ode").sample(network, params, z)
    denoiser = lambda x_t, t: network(params, x_t, t)
    want = didr_jax.denoise(denoiser, schedule, z[:, 0], jnp.ones(len(z)), num_steps=3)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("solver", ["renoise", "ode"])
def test_training_differentiates_one_evaluation_at_its_own_input(drawn, solver):
    params, z = drawn
    steps, weight = FewStep(cosine(), TIMES, solver), jnp.sin(jnp.arange(4 * 6.0)).reshape(4, *EVENT)

    @jax.jit
    def outcome(p, i):
        x0, pullback = jax.vjp(lambda p: steps.train(network, p, z, i), p)
        return x0, pullback(weight)[0]

    for i in range(3):
        x0, gradient = outcome(params, i)
        want, pullback = jax.vjp(lambda p: by_hand(cosine(), p, z, i, solver), params)
        np.testing.assert_allclose(x0, want, rtol=1e-5, atol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradient, pullback(weight)[0])


def test_every_step_is_drawn_and_the_segments_tile_the_noise_levels():
    steps = FewStep(cosine(), TIMES)
    drawn = np.bincount([int(steps.draw(key)) for key in jax.random.split(jax.random.key(0), 300)], minlength=3)
    assert drawn.size == 3 and np.all(np.abs(drawn - 100) < 4 * (300 * 2 / 9) ** 0.5)  # four standard errors
    ends = lambda low, high: [tuple(map(float, steps.segment(jnp.asarray(i), low, high))) for i in range(3)]
    assert ends(0.0, 1.0) == [pytest.approx(end) for end in ((0.6, 1.0), (0.3, 0.6), (0.0, 0.3))]
    assert ends(0.1, 0.5) == [pytest.approx(end) for end in ((0.5, 0.5), (0.3, 0.5), (0.1, 0.3))]


def test_a_generator_that_draws_from_the_posterior_keeps_the_data_law():
    """x0 ~ N(m, 1) in the first entry; the second is 0, so that its x_t is the fresh noise of the draw.

    x_1 = z is x_t of the data only where α vanishes: τ_1 = 1.
    """
    schedule, m, n = cosine(), 1.5, 40_000

    def draw(params, x_t, t):
        signal, fresh = x_t[..., :1], x_t[..., 1:]
        α, σ = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        variance = σ**2 / (α**2 + σ**2)
        mean = m + variance * α / σ**2 * (signal - α * m)
        return jnp.concatenate([mean + jnp.sqrt(variance) * fresh / σ, jnp.zeros_like(fresh)], axis=-1)

    z = jax.random.normal(jax.random.key(5), (n, 3, 2))
    x0 = FewStep(schedule, (1.0, 0.6, 0.3)).sample(draw, {}, z)[:, 0]
    assert abs(float(x0.mean()) - m) < 4 / n**0.5  # four standard errors
    assert abs(float(x0.var()) - 1) < 4 * (2 / n) ** 0.5


@pytest.mark.parametrize(
    ("times", "solver", "says"),
    [
        ((), "renoise", "1 to 8 steps"),
        ((0.3, 0.6), "renoise", "must decrease"),
        ((0.9995,), "renoise", "ddpm schedule"),
        ((0.9,), "heun", "heun"),
    ],
)
def test_impossible_steps_are_refused(times, solver, says):
    with pytest.raises(ValueError, match=says):
        FewStep(ddpm(), times, solver)


def test_even_steps_follow_the_schedule():
    assert FewStep.even(rectified_flow(shift=3.0), 1.0, 4).times == pytest.approx((1, 0.9, 0.75, 0.5))
    for n in (0, 9):
        with pytest.raises(ValueError, match="1 to 8"):
            FewStep.even(cosine(), 0.9, n)
