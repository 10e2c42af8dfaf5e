"""Estimators of the diffused reward score against closed forms, quadrature and their own limits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from didr_jax import schedules
from didr_jax.closed_form import GaussianMixture, QuadraticReward, exact_diffused_reward_score
from didr_jax.conjugate import tilted_point, tilted_time, time_of_precision
from didr_jax.diffused_reward import ESTIMATORS, clip_tilt, diffused_reward_score
from didr_jax.estimators import Estimate
from didr_jax.training import flops

SCHEDULES = {"cosine": schedules.cosine(), "flow": schedules.rectified_flow(3.0), "ddpm": schedules.ddpm()}
TIMES = jnp.array([0.1, 0.3, 0.5, 0.7, 0.9])
MIXTURE = GaussianMixture.of([[2, 2], [2, -2], [-2, 2], [-2, -2]], 0.35)
SLOPE, CENTER = jnp.array([1.0, 0.5]), jnp.array([1.5, 2.5])
KEY = jax.random.key(0)


def mixture_points(schedule, per_time=16):
    t = jnp.repeat(TIMES, per_time)
    x0 = MIXTURE.sample(jax.random.key(1), t.size)
    noise = jax.random.normal(jax.random.key(2), x0.shape)
    return schedule.alpha(t)[:, None] * x0 + schedule.sigma(t)[:, None] * noise, t


def relative_error(estimate, truth):
    return float(jnp.sqrt(jnp.sum((estimate - truth) ** 2) / jnp.sum(truth**2)))


# ---- linear-Gaussian: reference N(μ, Σ), r/β = a·x − ½ xᵀBx --------------------------------------------


class Gaussian:
    """Reference N(μ, Σ) in three dimensions with its DRS, method §5."""

    a = jnp.array([0.8, -0.5, 0.3])
    mean = jnp.array([0.5, -1.0, 0.2])

    def __init__(self, covariance, curvature, schedule):
        self.covariance, self.B, self.schedule = covariance, curvature, schedule

    def denoiser(self, x_t, t):
        α, σ = self.schedule.alpha(t), self.schedule.sigma(t)
        marginal = α[:, None, None] ** 2 * self.covariance + σ[:, None, None] ** 2 * jnp.eye(3)
        innovation = x_t - α[:, None] * self.mean
        return self.mean + α[:, None] * jnp.linalg.solve(marginal, innovation[..., None])[..., 0] @ self.covariance

    def reward(self, x0):
        return x0 @ self.a - 0.5 * jnp.sum(x0 @ self.B * x0, -1)

    def exact(self, x_t, t):
        α, σ = (np.float64(f(t))[:, None, None] for f in (self.schedule.alpha, self.schedule.sigma))
        inverse = np.linalg.inv(np.float64(self.covariance))
        C = np.linalg.inv(inverse + (α / σ) ** 2 * np.eye(3))
        mean = C @ (inverse @ np.float64(self.mean)[:, None] + α / σ**2 * np.float64(x_t)[..., None])
        pull = np.float64(self.a)[:, None] - np.float64(self.B) @ mean
        return (α / σ**2 * np.linalg.solve(np.linalg.inv(C) + np.float64(self.B), pull))[..., 0]


FULL = jnp.array([[1.0, 0.4, -0.2], [0.4, 0.7, 0.1], [-0.2, 0.1, 0.5]])
DIAGONAL = jnp.diag(jnp.array([0.3, 1.0, 2.0]))
NONE, ROUND, SKEW = jnp.zeros((3, 3)), 0.6 * jnp.eye(3), jnp.array([[0.9, 0.2, 0.0], [0.2, 0.3, 0.1], [0.0, 0.1, 0.0]])
EXACT = [("drp", NONE), ("drp_mc", NONE), ("stein", NONE), ("implicit", NONE), ("shifted", NONE), ("conjugate", NONE)]
EXACT += [("own", NONE)]
EXACT += [("implicit", ROUND), ("implicit", SKEW), ("conjugate", ROUND), ("conjugate", -0.05 * jnp.eye(3))]


@pytest.mark.parametrize("name, curvature", EXACT, ids=lambda v: v if isinstance(v, str) else f"B{v[0, 0]:.2f}")
@pytest.mark.parametrize("covariance, schedule", [(DIAGONAL, "cosine"), (FULL, "flow")], ids=["diagonal", "full"])
def test_exact_for_a_gaussian_reference(name, curvature, covariance, schedule):
    problem = Gaussian(covariance, curvature, SCHEDULES[schedule])
    t = jnp.array([0.1, 0.3, 0.5, 0.7])
    x_t = jax.random.normal(KEY, (4, 3))
    drs = diffused_reward_score(
        problem.reward, problem.denoiser, problem.schedule, x_t, t, beta=1.0, estimate=Estimate(name, max_shift=None), key=KEY,
        x0=x_t,
    )  # fmt: skip
    exact = problem.exact(x_t, t)
    np.testing.assert_allclose(drs, exact, atol=1e-4 * np.abs(exact).max())


def test_drp_overshoots_curvature_by_one_plus_CB():
    problem = Gaussian(0.5 * jnp.eye(3), ROUND, SCHEDULES["cosine"])
    x_t, t = jax.random.normal(KEY, (1, 3)), jnp.array([0.5])
    drs = diffused_reward_score(problem.reward, problem.denoiser, problem.schedule, x_t, t, beta=1.0, estimate=Estimate("drp"))
    C = 1 / (1 / 0.5 + 1)  # α = σ at t = ½
    np.testing.assert_allclose(drs, problem.exact(x_t, t) * (1 + 0.6 * C), rtol=1e-4)


# ---- the mixture: what the conjugate family knows, and limits --------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("curvature", [0.0, 0.18, 0.5])
def test_conjugate_is_exact_for_isotropic_quadratics_whatever_the_reference(schedule, curvature):
    schedule = SCHEDULES[schedule]
    reward = QuadraticReward(SLOPE, curvature, CENTER)
    x_t, t = mixture_points(schedule)
    for beta in (4.0, 0.5):
        truth = exact_diffused_reward_score(MIXTURE, reward, schedule, x_t, t, beta=beta)
        drs = diffused_reward_score(
            reward, MIXTURE.denoiser(schedule), schedule, x_t, t, beta=beta, estimate=Estimate("conjugate", max_shift=None)
        )
        # a discrete schedule has no exact t': its κ is rounded to the nearest timestep's
        assert relative_error(drs, truth) < (0.02 if schedule.num_timesteps and curvature else 2e-4)


def test_shifted_has_the_proxy_as_its_derivative():
    schedule = SCHEDULES["cosine"]
    x_t, t = mixture_points(schedule)
    reward = QuadraticReward(SLOPE)
    ask = functools.partial(diffused_reward_score, reward, MIXTURE.denoiser(schedule), schedule, x_t, t)
    shifted, proxy = Estimate("shifted", max_shift=None), Estimate("drp")
    assert relative_error(ask(beta=2000.0, estimate=shifted), ask(beta=2000.0, estimate=proxy)) < 0.01
    assert relative_error(ask(beta=0.5, estimate=shifted), ask(beta=0.5, estimate=proxy)) > 0.3


def anisotropic(x):
    """A reward whose curvature is all in one direction."""
    return x @ SLOPE - 0.3 * ((x - CENTER) @ jnp.array([0.8, 0.6])) ** 2


def exact_for(reward, schedule, x_t, t, beta):
    """DRS by two-dimensional quadrature over the mixture."""
    axis = jnp.linspace(-4.5, 4.5, 161)
    grid = jnp.stack(jnp.meshgrid(axis, axis), -1).reshape(-1, 2)
    α, σ = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    square = jnp.sum((x_t[:, None] - α[..., None] * grid) ** 2, -1)
    log_posterior = MIXTURE.log_prob(grid) - 0.5 * square / σ**2
    means = [jax.nn.softmax(log_posterior + extra, -1) @ grid for extra in (0.0, reward(grid) / beta)]
    return α / σ**2 * (means[1] - means[0])


CONSISTENT = {  # estimator -> bound on the relative error at K = 32, N = 2048
    "covariance": 0.15,
    "covariance_cv": 0.15,
    "conjugate": 0.08,
}


@pytest.mark.parametrize("name", CONSISTENT)
def test_consistent_as_samples_and_steps_grow(name):
    schedule, beta = SCHEDULES["cosine"], 2.0
    t = jnp.array([0.4, 0.6, 0.8, 0.9])
    x_t = jnp.array([[0.9, -0.5], [0.2, 0.4], [-0.3, 0.6], [0.8, -0.9]])
    truth = exact_for(anisotropic, schedule, x_t, t, beta)

    def error(num_steps, num_samples):
        ask = jax.jit(lambda key: diffused_reward_score(
            anisotropic, MIXTURE.denoiser(schedule), schedule, x_t, t, beta=beta,
            estimate=Estimate(name, num_steps, num_samples, remat=False), key=key))  # fmt: skip
        return relative_error(ask(KEY), truth)

    fine = error(32, 2048)
    assert fine < CONSISTENT[name]
    assert fine < error(3, 16)


def test_drp_mc_is_consistent():
    """In one dimension with one mode, where the gradient of its chains does not explode."""
    schedule, beta = SCHEDULES["cosine"], 1.0
    single = GaussianMixture.of([[0.5]], 0.8)
    reward = QuadraticReward(jnp.array([1.0]), 0.5, jnp.array([1.0]))
    x_t, t = jnp.array([[0.3], [-0.8]]), jnp.array([0.4, 0.7])
    truth = exact_diffused_reward_score(single, reward, schedule, x_t, t, beta=beta)
    errors = [
        relative_error(diffused_reward_score(
            reward, single.denoiser(schedule), schedule, x_t, t, beta=beta, estimate=Estimate("drp_mc", k, n), key=KEY), truth)
        for k, n in ((1, 1), (32, 2048))
    ]  # fmt: skip
    assert errors[1] < 0.03 < errors[0]


@pytest.mark.parametrize("name, bound", [("conjugate", 0.05), ("covariance", 0.15)])
def test_non_quadratic_reward_against_quadrature(name, bound):
    """DRS as the finite difference of log E[exp(r/β) | x_t], by quadrature in one dimension."""
    schedule, beta, h = SCHEDULES["cosine"], 0.5, 1e-3
    line = GaussianMixture.of([[-1.2], [1.0]], 0.4, weights=[0.6, 0.4])
    reward = lambda x: jnp.tanh(2 * x[:, 0] - 0.5) + 0.3 * jnp.sin(3 * x[:, 0])
    t, x_t = jnp.array([0.2, 0.4, 0.6, 0.8]), jnp.array([[0.4], [-0.1], [0.3], [-0.5]])
    α, σ = np.float64(schedule.alpha(t)), np.float64(schedule.sigma(t))
    grid = np.linspace(-5, 5, 20001)
    log_prior, exponent = np.float64(line.log_prob(grid[:, None])), np.float64(reward(jnp.array(grid)[:, None])) / beta

    def log_expectation(x):
        likelihood = log_prior - 0.5 * ((x - α[:, None] * grid) / σ[:, None]) ** 2
        return np.log(np.exp(likelihood + exponent).sum(-1) / np.exp(likelihood).sum(-1))

    x = np.float64(x_t)
    truth = (log_expectation(x + h) - log_expectation(x - h))[:, None] / (2 * h)
    drs = diffused_reward_score(
        reward, line.denoiser(schedule), schedule, x_t, t, beta=beta, estimate=Estimate(name, 32, 4096, remat=False), key=KEY,
    )  # fmt: skip
    assert relative_error(drs, jnp.asarray(truth)) < bound


def oscillating(x):
    """A reward of which a slope at one point tells nothing of a wide posterior."""
    return jnp.sin(6 * x[..., 0]) + jnp.sin(5 * x[..., 1])


def test_a_claim_that_the_reward_does_not_make_good_is_shortened():
    """Equation (7) of `conjugate` at K = 1; and at K > 1 the bridge is nearer to the truth than nothing."""
    schedule, beta = SCHEDULES["cosine"], 1.0
    x_t, t = mixture_points(schedule)
    truth = exact_for(oscillating, schedule, x_t, t, beta)
    ask = lambda **knobs: relative_error(
        diffused_reward_score(
            oscillating, MIXTURE.denoiser(schedule), schedule, x_t, t, beta=beta, key=KEY,
            estimate=Estimate("conjugate", max_shift=None, **knobs),
        ), truth,
    )  # fmt: skip
    unguarded, guarded, bridged = ask(guard=False), ask(), ask(num_steps=4, num_samples=64)
    assert guarded < 1.0 and guarded < 0.5 * unguarded
    assert bridged < 0.8


@pytest.mark.parametrize("name", ["conjugate", "covariance", "covariance_cv", "stein"])
def test_compiled_equals_eager_with_many_samples(name):
    """At this size jaxlib 0.10.2 miscompiled sums of products for the CPU (jax issue 39103)."""
    schedule, reward = SCHEDULES["cosine"], QuadraticReward(SLOPE)
    x_t, t = mixture_points(schedule, per_time=256)
    ask = lambda x: diffused_reward_score(
        reward, MIXTURE.denoiser(schedule), schedule, x, t, beta=1.0, key=KEY,
        estimate=Estimate(name, 2, 48, max_shift=None, remat=False))  # fmt: skip
    compiled, eager = jax.jit(ask)(x_t), ask(x_t)
    assert relative_error(compiled, eager) < 1e-3
    if name == "conjugate":
        truth = exact_diffused_reward_score(MIXTURE, reward, schedule, x_t, t, beta=1.0)
        assert relative_error(compiled, truth) < 1e-3


# ---- the contract with the caller -------------------------------------------------------------------------


KNOBS = {field.name for field in dataclasses.fields(Estimate)}


def ask_mixture(estimator="drp", reward=QuadraticReward(SLOPE, 0.18, CENTER), denoiser=None, **options):
    schedule = SCHEDULES["cosine"]
    x_t, t = mixture_points(schedule, per_time=2)
    options = {"beta": 1.0, "key": KEY, "estimator": estimator, "num_samples": 3} | options
    estimate = Estimate(**{knob: options.pop(knob) for knob in KNOBS & set(options)})
    denoiser = denoiser or MIXTURE.denoiser(schedule)
    options = {"x0": x_t} | options
    return diffused_reward_score(reward, denoiser, schedule, x_t, t, estimate=estimate, **options)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("num_steps", [1, 3])
def test_evaluations_are_counted_right_and_the_callers_prediction_is_used(name, num_steps):
    schedule = SCHEDULES["cosine"]
    x_t, t = mixture_points(schedule, per_time=2)
    exact, calls = MIXTURE.denoiser(schedule), []

    def counting(x, t):
        calls.append(x.shape)
        return exact(x, t)

    x_hat, vjp = jax.vjp(lambda x: exact(x, t), x_t)
    known = {"x_hat": x_hat, "pullback": lambda v: vjp(v)[0]}
    with jax.disable_jit():  # every call of the denoiser is then a call of `counting`; vmap counts N as one
        shared = ask_mixture(name, denoiser=counting, num_steps=num_steps, num_samples=1, remat=False, **known)
        forwards, _ = ESTIMATORS[name].evaluations(num_steps, 1)
        assert len(calls) == forwards - 1
        alone = ask_mixture(name, num_steps=num_steps, num_samples=1, remat=False)
    np.testing.assert_allclose(shared, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("num_steps", [1, 3])
def test_evaluations_of_the_reward_are_counted_right(name, num_steps):
    calls, known = [], QuadraticReward(SLOPE, 0.18, CENTER)
    with jax.disable_jit():
        ask_mixture(name, reward=lambda x: (calls.append(1), known(x))[1], num_steps=num_steps, num_samples=1, remat=False)
    gradients, values = ESTIMATORS[name].rewards(num_steps, 1)
    assert len(calls) == gradients + values

    # A product with the samples, which a backward pass computes again: 3 for a gradient, 1 for a value.
    wide, schedule = jnp.ones((2, 10_000)), SCHEDULES["cosine"]
    x_t, t = mixture_points(schedule, per_time=1)
    ask = lambda x_t: diffused_reward_score(
        jax.checkpoint(lambda x: jnp.tanh(x @ wide).mean(-1)), lambda x, t: 0.5 * x, schedule, x_t, t, beta=1.0, key=KEY,
        estimate=Estimate(name, num_steps, remat=False), x0=x_t)  # fmt: skip
    assert round(flops.count(ask, x_t) / (2 * x_t.size * 10_000)) == 3 * gradients + values


@pytest.mark.parametrize("name", [n for n, e in ESTIMATORS.items() if not e.differentiates_denoiser])
def test_denoiser_may_be_a_black_box(name):
    exact = jax.jit(MIXTURE.denoiser(SCHEDULES["cosine"]))

    def black_box(x, t):
        call = lambda x, t: np.asarray(exact(x, t))
        return jax.pure_callback(call, jax.ShapeDtypeStruct(x.shape, x.dtype), x, t, vmap_method="sequential")

    options = {"num_steps": 3, "max_shift": None}
    np.testing.assert_allclose(
        ask_mixture(name, denoiser=black_box, **options), ask_mixture(name, **options), rtol=1e-4, atol=1e-4
    )


def test_reward_may_be_a_black_box():
    smooth = QuadraticReward(SLOPE, 0.18, CENTER)

    def black_box(x):
        call = lambda x: np.asarray(x @ SLOPE - 0.09 * np.sum((x - CENTER) ** 2, -1), np.float32)
        return jax.pure_callback(call, jax.ShapeDtypeStruct(x.shape[:1], x.dtype), x, vmap_method="sequential")

    drs = ask_mixture("covariance", reward=black_box, num_steps=3)
    np.testing.assert_allclose(drs, ask_mixture("covariance", reward=smooth, num_steps=3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_image_shapes_and_jit(name):
    schedule = SCHEDULES["flow"]
    x_t, t = jax.random.normal(KEY, (2, 4, 4, 3)), jnp.array([0.3, 0.8])
    denoiser = lambda x, t: jnp.tanh(x) * (1 - t[:, None, None, None])
    reward = lambda x: jnp.mean(jnp.sin(x), (1, 2, 3))
    ask = jax.jit(lambda x: diffused_reward_score(
        reward, denoiser, schedule, x, t, beta=0.1, estimate=Estimate(name, 2, 2), key=KEY, x0=0.9 * x_t))  # fmt: skip
    drs = ask(x_t)
    assert drs.shape == x_t.shape and drs.dtype == x_t.dtype and jnp.all(jnp.isfinite(drs))


@pytest.mark.parametrize("name", ["drp", "conjugate"])
def test_trust_radius_shortens_and_keeps_the_direction(name):
    schedule = SCHEDULES["cosine"]
    _, t = mixture_points(schedule, per_time=2)
    free, clipped = ask_mixture(name), ask_mixture(name, trust_radius=0.5)
    length = lambda drs: np.asarray(jnp.linalg.norm(drs, axis=-1) * schedule.sigma(t) ** 2 / schedule.alpha(t))
    np.testing.assert_allclose(length(clipped), np.minimum(length(free), 0.5), rtol=1e-4)
    cosine = jnp.sum(free * clipped, -1) / jnp.linalg.norm(free, axis=-1) / jnp.linalg.norm(clipped, axis=-1)
    np.testing.assert_allclose(cosine, 1, atol=1e-5)
    assert jnp.all(clip_tilt(jnp.zeros((2, 2)), schedule, t[:2], 1.0) == 0)


@pytest.mark.parametrize("name", ["implicit", "conjugate"])
@pytest.mark.parametrize("curvature", [0.0, 0.5])
def test_solvers_survive_a_jacobian_that_is_no_covariance(name, curvature):
    """A network's Jacobian need be neither symmetric nor positive; the tilt must stay of the proxy's order."""
    indefinite = jax.random.normal(jax.random.key(4), (2, 2)) @ jnp.diag(jnp.array([1.0, -0.3]))
    options = {"denoiser": lambda x, t: jnp.tanh(x @ indefinite), "reward": QuadraticReward(SLOPE, curvature, CENTER)}
    drs, proxy = ask_mixture(name, **options), ask_mixture("drp", **options)
    length = lambda drs: jnp.linalg.norm(drs, axis=-1)
    assert jnp.all(length(drs) <= 4 * length(proxy))


def test_max_shift_bounds_how_far_the_denoiser_is_asked():
    schedule = SCHEDULES["cosine"]
    x_t, t = mixture_points(schedule, per_time=2)
    asked = []

    def spy(x, t):
        asked.append(x)
        return MIXTURE.denoiser(schedule)(x, t)

    ask_mixture("shifted", denoiser=spy, beta=0.01, max_shift=0.7)
    distance = jnp.linalg.norm(asked[-1] - x_t, axis=-1) / schedule.sigma(t)
    assert float(distance.max()) <= 0.7 * 2**0.5 * 1.001


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_tilted_posterior_has_the_asked_precision(schedule):
    schedule = SCHEDULES[schedule]
    t = jnp.array([0.05, 0.3, 0.6, 0.9])
    precision = (schedule.alpha(t) / schedule.sigma(t)) ** 2
    np.testing.assert_allclose(time_of_precision(schedule, precision), t, atol=1e-3 if schedule.num_timesteps else 1e-5)
    same, κ = tilted_time(schedule, t, jnp.zeros(4))
    assert jnp.all(same == t) and jnp.all(κ == 0)
    cleaner, κ = tilted_time(schedule, t, 0.5 * precision)
    np.testing.assert_allclose(κ, 0.5 * precision, rtol=0.15 if schedule.num_timesteps else 1e-3)
    x = jnp.ones((4, 2))
    np.testing.assert_allclose(tilted_point(schedule, x, t, t, jnp.zeros((4, 2))), x, rtol=1e-5)
    assert jnp.all(cleaner < t) and jnp.all(tilted_time(schedule, t, -precision)[1] > -0.6 * precision)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"estimator": "drpp"}, "unknown estimator 'drpp'; known: drp"),
        ({"beta": 0.0}, "beta must be positive"),
        ({"beta": -1.0}, "beta must be positive"),
        ({"num_steps": 0}, "num_steps = 0: K must be at least 1"),
        ({"num_samples": 0}, "num_samples = 0: N must be at least 1"),
        ({"stochasticity": 1.5}, "stochasticity = 1.5: must lie in"),
        ({"trust_radius": 0.0}, "trust_radius = 0.0: must be positive, or None"),
        ({"estimator": "covariance", "key": None}, "needs a key"),
        ({"estimator": "conjugate", "num_steps": 2, "key": None}, "needs a key"),
        ({"max_shift": 0.0}, "max_shift = 0.0: must be positive, or None"),
        ({"reward": lambda x: x}, "one number per sample"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        ask_mixture(**options)


def test_conjugate_without_samples_needs_no_key():
    assert jnp.all(ask_mixture("conjugate", key=None) == ask_mixture("conjugate"))
