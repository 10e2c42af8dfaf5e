"""Every objective against the gradient of what it claims to minimise, on Gaussians.

Generator g(z) = μ + s z on the line, so p_θ,t = N(αμ, v_θ) with v_θ = α²s² + σ², and the TA is exact.
Expectations over (z, ε) are Gauss–Hermite sums, exact for the polynomials that occur; tolerances are
float32's.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from didr_jax import closed_form, diffusion, schedules
from didr_jax.estimators import Estimate
from didr_jax.objectives import OBJECTIVES, WEIGHTINGS, Bound, Settings, denoising_loss, surrogate_loss

SCHEDULE = schedules.cosine()
REFERENCE = closed_form.GaussianMixture.of([[0.3]], std=0.8)
REWARD = closed_form.QuadraticReward(jnp.array([0.7]))
BETA, T = 1.7, 0.45
ALPHA, SIGMA = float(SCHEDULE.alpha(T)), float(SCHEDULE.sigma(T))
MU, STD = -0.4, 1.3
KEY = jax.random.key(0)


def nets(**changes) -> Bound:
    ta = closed_form.GaussianMixture.of([[MU]], std=STD).denoiser(SCHEDULE)
    return dataclasses.replace(Bound(SCHEDULE, ta, REFERENCE.denoiser(SCHEDULE), reward=REWARD), **changes)


def quadrature(num=40):
    """z, ε `[num², 1]` and weights `[num²]` of a product Gauss–Hermite rule for N(0, 1)²."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num)
    z, noise = np.meshgrid(nodes, nodes, indexing="ij")
    w = np.outer(weights, weights) / weights.sum() ** 2
    return jnp.asarray(z.reshape(-1, 1)), jnp.asarray(noise.reshape(-1, 1)), jnp.asarray(w.reshape(-1))


def parameter_gradient(name: str, nets: Bound, settings: Settings) -> np.ndarray:
    """E[G ∂g/∂(μ, s)] of an objective, `[2]`."""
    z, noise, w = quadrature()
    gradient, _ = OBJECTIVES[name](MU + STD * z, noise, jnp.full(len(z), T), KEY, nets, settings)
    return np.array([w @ gradient[:, 0], w @ (gradient * z)[:, 0]])


def kl_gradient(target_mean: float, target_variance: float) -> np.ndarray:
    """∂/∂(μ, s) of KL(N(αμ, α²s² + σ²) ‖ N(target))."""
    kl = lambda p: (
        0.5
        * (
            (ALPHA**2 * p[1] ** 2 + SIGMA**2 + (ALPHA * p[0] - target_mean) ** 2) / target_variance
            - jnp.log(ALPHA**2 * p[1] ** 2 + SIGMA**2)
        )
    )
    return np.asarray(jax.grad(kl)(jnp.array([MU, STD])))


def diffused(law: closed_form.GaussianMixture) -> tuple[float, float]:
    return ALPHA * float(law.means[0, 0]), ALPHA**2 * float(law.variances[0]) + SIGMA**2


IKL = Settings(weighting="ikl", beta=BETA)


def test_di_is_the_gradient_of_the_diffused_kl():
    expected = kl_gradient(*diffused(REFERENCE))
    np.testing.assert_allclose(parameter_gradient("di", nets(), IKL), expected, rtol=1e-4)


def test_didr_is_the_gradient_of_the_kl_to_the_tilted_law():
    """K = 1 is exact here: a Gaussian posterior and a linear reward."""
    expected = kl_gradient(*diffused(REFERENCE.tilt(REWARD, BETA)))
    np.testing.assert_allclose(parameter_gradient("didr", nets(), IKL), expected, rtol=1e-4)


def test_dipp_is_the_kl_gradient_less_the_reward_gradient():
    """E r(g(z))/β = 0.7 μ/β + const, so only μ feels the reward."""
    expected = kl_gradient(*diffused(REFERENCE)) - np.array([0.7 / BETA, 0.0])
    np.testing.assert_allclose(parameter_gradient("dipp", nets(), IKL), expected, rtol=1e-4, atol=1e-5)


def sim_divergence_gradient(huber: float | None) -> np.ndarray:
    """∂/∂(μ, s) of E_{x ~ π} d(y_θ(x)), π = p_θ,t held fixed, by central differences of quadratures.

    y_θ = (σ²/α)(s_θ,t − s_ref,t) and d(y) = √(‖y‖² + c²) − c, or ½‖y‖² without c.
    """
    mean_r, var_r = diffused(REFERENCE)
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    x = ALPHA * MU + np.sqrt(ALPHA**2 * STD**2 + SIGMA**2) * nodes

    def divergence(mu, std):
        score = -(x - ALPHA * mu) / (ALPHA**2 * std**2 + SIGMA**2)
        y = SIGMA**2 / ALPHA * (score + (x - mean_r) / var_r)
        distance = y**2 / 2 if huber is None else np.sqrt(y**2 + huber**2) - huber
        return weights @ distance / weights.sum()

    h = 1e-4
    return np.array(
        [
            (divergence(MU + h, STD) - divergence(MU - h, STD)) / (2 * h),
            (divergence(MU, STD + h) - divergence(MU, STD - h)) / (2 * h),
        ]
    )


def test_sim_is_the_gradient_of_its_score_divergence():
    """The score-projection identity; 80² quadrature nodes leave 1e-3 of the smooth Huber distance."""
    settings = Settings(weighting="x0", huber=1.0)
    expected = sim_divergence_gradient(1.0)
    np.testing.assert_allclose(parameter_gradient("sim", nets(), settings), expected, rtol=3e-3)


def test_sid_is_the_gradient_of_the_squared_score_divergence():
    """Polynomials in the nodes: the quadrature is exact, float32 is what is left."""
    expected = sim_divergence_gradient(None)
    np.testing.assert_allclose(parameter_gradient("sid", nets(), Settings(weighting="x0")), expected, rtol=1e-3)


def test_sim_of_a_wide_huber_distance_is_sid():
    """d'(y) = y/√(‖y‖² + c²) is y/c to ‖y‖²/2c², here below 1e-4."""
    x0, noise, t = jnp.asarray(POINTS, jnp.float32), jnp.asarray(NOISE, jnp.float32), jnp.asarray(TIMES, jnp.float32)
    ask = lambda name, **knobs: OBJECTIVES[name](x0, noise, t, KEY, MIXTURES, Settings(weighting="x0", **knobs))[0]
    np.testing.assert_allclose(1e3 * ask("sim", huber=1e3), ask("sid"), rtol=1e-3, atol=1e-5)


def test_distar_is_sim_less_the_reward_gradient():
    settings = Settings(weighting="x0", huber=1.0, beta=BETA)
    expected = sim_divergence_gradient(1.0) - np.array([0.7 / BETA, 0.0])
    np.testing.assert_allclose(parameter_gradient("distar", nets(), settings), expected, rtol=3e-3, atol=1e-5)


def test_refl_is_minus_the_reward_gradient():
    np.testing.assert_allclose(parameter_gradient("refl", nets(), IKL), [-0.7, 0.0], atol=1e-6)


# ---- the figures that come with a gradient -----------------------------------------------------------------

MODES = closed_form.GaussianMixture.of([[2.0, 1.0], [-1.0, 0.5], [0.0, -1.5]], std=0.5)
ONLINE = closed_form.GaussianMixture.of([[1.0, 1.2], [-1.4, 0.0]], std=0.9)
BOWL = closed_form.QuadraticReward(jnp.array([1.0, -0.4]), 0.3, jnp.array([0.5, 0.2]))
POINTS = np.array([[1.2, 0.3], [-0.7, 0.9], [0.4, -1.1]])
NOISE, TIMES = np.array([[0.5, -1.0], [0.3, 0.8], [-1.2, 0.1]]), np.array([0.25, 0.5, 0.75])
SOME = [jnp.asarray(v, jnp.float32) for v in (POINTS, NOISE, TIMES)]
MIXTURES = Bound(SCHEDULE, ONLINE.denoiser(SCHEDULE), MODES.denoiser(SCHEDULE), reward=BOWL)


def by_hand(name: str, huber: float) -> tuple[np.ndarray, np.ndarray]:
    """‖the divergence's part of G‖ and ‖the reward's part‖ at `POINTS`, with DMD2's weight, in float64."""
    α, σ = np.cos(np.pi / 2 * TIMES)[:, None], np.sin(np.pi / 2 * TIMES)[:, None]

    def denoised(law, x0):
        """The posterior mean of a mixture at α x0 + σ ε."""
        weights, means, variances = (np.float64(v) for v in (jnp.exp(law.log_weights), law.means, law.variances))
        x_t, v = α * x0 + σ * NOISE, α**2 * variances + σ**2
        innovation = x_t[:, None] - α[..., None] * means
        density = weights / v * np.exp(-0.5 * np.sum(innovation**2, -1) / v)
        modes = means + (α * variances / v)[..., None] * innovation
        return np.einsum("bk,bkd->bd", density / density.sum(-1, keepdims=True), modes)

    gap = denoised(ONLINE, POINTS) - denoised(MODES, POINTS)
    weight = 1 / np.mean(np.abs(POINTS - denoised(MODES, POINTS)), -1, keepdims=True)
    length = lambda x: np.linalg.norm(x, axis=-1)
    if name == "didr":
        return length(weight * gap), length(weight * (denoised(MODES.tilt(BOWL, BETA), POINTS) - denoised(MODES, POINTS)))

    def score_matching(x0):
        y = denoised(ONLINE, x0) - denoised(MODES, x0)
        return -weight[:, 0] * np.sum(y * (denoised(ONLINE, x0) - x0), -1) / np.sqrt(np.sum(y**2, -1) + huber**2)

    h = 1e-5
    slope = lambda step: (score_matching(POINTS + step) - score_matching(POINTS - step)) / (2 * h)
    divergence = weight * gap if name == "dipp" else np.stack([slope(h * e) for e in np.eye(2)], -1)
    ascent = np.array(BOWL.slope) - BOWL.curvature * (POINTS - np.array(BOWL.center))
    return length(divergence), length(ascent / BETA)


@pytest.mark.parametrize("name", [n for n, row in OBJECTIVES.items() if row.needs_reward and n != "refl"])
def test_pull_and_divergence_are_the_lengths_of_the_two_parts_of_the_gradient(name):
    settings = Settings(beta=BETA, huber=0.3, estimate=Estimate(max_shift=None))  # the tilt is then exact
    _, aux = OBJECTIVES[name](*SOME, KEY, MIXTURES, settings)
    divergence, pull = by_hand(name, settings.huber)
    np.testing.assert_allclose(aux["divergence"], divergence, rtol=1e-3)
    np.testing.assert_allclose(aux["pull"] / aux["divergence"], pull / divergence, rtol=1e-3)


def test_refl_pulls_by_the_reward_alone_whatever_beta():
    _, aux = OBJECTIVES["refl"](*SOME, KEY, MIXTURES, Settings(beta=BETA))
    assert set(aux) == {"pull"}
    np.testing.assert_allclose(aux["pull"], BETA * by_hand("dipp", 1.0)[1], rtol=1e-5)


def test_gap_and_tilt_are_lengths_in_x0_whatever_the_weight():
    x_t = diffusion.add_noise(SCHEDULE, *SOME)
    tilted, reference, online = (law.denoiser(SCHEDULE)(x_t, SOME[2]) for law in (MODES.tilt(BOWL, BETA), MODES, ONLINE))
    for weighting in WEIGHTINGS:
        _, aux = OBJECTIVES["didr"](*SOME, KEY, MIXTURES, Settings(weighting, BETA, Estimate(max_shift=None)))
        np.testing.assert_allclose(aux["tilt"], jnp.linalg.norm(tilted - reference, axis=-1), rtol=1e-3)
        np.testing.assert_allclose(aux["gap"], jnp.linalg.norm(online - reference, axis=-1), rtol=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_tells_of_the_parts_that_it_has(name):
    x0, noise, t, weight = random_batch()
    _, aux = OBJECTIVES[name](x0, noise, t, KEY, random_nets(weight), Settings(estimate=Estimate(guard=False)))
    assert all(figure.shape == t.shape and (figure > 0).all() for figure in aux.values())
    assert ("pull" in aux) == OBJECTIVES[name].needs_reward and ("tilt" in aux) == OBJECTIVES[name].estimates
    assert ("gap" in aux) == ("divergence" in aux) == (name != "refl")


# ---- the family on stand-ins of a network's shape ------------------------------------------------------------


def random_batch(shape=(16, 4, 4, 3), seed=2):
    keys = jax.random.split(jax.random.key(seed), 4)
    x0, noise, weight = (jax.random.normal(k, shape) for k in keys[:3])
    return x0, noise, jax.random.uniform(keys[3], shape[:1], minval=0.1, maxval=0.9), weight


def random_nets(weight, **changes) -> Bound:
    """Nonlinear stand-ins on image-shaped samples; conditions closed over as `weight`."""
    base = Bound(
        SCHEDULE,
        ta=lambda x, t: jnp.tanh(x + weight),
        reference=lambda x, t: jnp.sin(x * weight),
        guidance=lambda x, t, x_c: diffusion.guide(x_c, jnp.cos(x), 3.0),
        reward=lambda x: jnp.sum(jnp.sin(x), axis=(1, 2, 3)),
    )
    return dataclasses.replace(base, **changes)


@pytest.mark.parametrize("jit", [False, True])
def test_without_reward_didr_is_di_and_dmd2_to_the_last_bit(jit):
    x0, noise, t, weight = random_batch()
    off = random_nets(weight, reward=None)
    run = lambda name: lambda x, e, t: OBJECTIVES[name](x, e, t, KEY, off, Settings())[0]
    outputs = {n: (jax.jit(run(n)) if jit else run(n))(x0, noise, t) for n in ("didr", "di", "dmd2", "dipp")}
    for name in ("di", "dmd2", "dipp"):
        np.testing.assert_array_equal(outputs["didr"], outputs[name])


@pytest.mark.parametrize("estimator", ["drp", "shifted", "conjugate"])
def test_a_reward_that_is_zero_changes_nothing(estimator):
    x0, noise, t, weight = random_batch()
    zero = random_nets(weight, reward=lambda x: 0.0 * jnp.sum(x, axis=(1, 2, 3)))
    off = random_nets(weight, reward=None)
    didr = OBJECTIVES["didr"](x0, noise, t, KEY, zero, Settings(estimate=Estimate(estimator)))[0]
    np.testing.assert_array_equal(didr, OBJECTIVES["di"](x0, noise, t, KEY, off, Settings())[0])


def test_one_step_didr_evaluates_the_reference_once():
    x0, noise, t, weight = random_batch()
    calls = []

    def reference(x, t):
        calls.append(1)
        return jnp.sin(x * weight)

    OBJECTIVES["didr"](x0, noise, t, KEY, random_nets(weight, reference=reference), Settings(estimate=Estimate("drp")))
    assert len(calls) == 1


def test_dmd2_is_its_papers_gradient():
    """grad = (p_real − p_fake)/mean|p_real|, p_real = x0 − x̂_real, p_fake = x0 − x̂_fake; loss ½‖x0 − sg(x0 − grad)‖²."""
    x0, noise, t, weight = random_batch()
    n = random_nets(weight)
    x_t = diffusion.add_noise(SCHEDULE, x0, noise, t)
    x_real = n.guidance(x_t, t, n.reference(x_t, t))
    p_real, p_fake = x0 - x_real, x0 - n.ta(x_t, t)
    expected = (p_real - p_fake) / jnp.mean(jnp.abs(p_real), axis=(1, 2, 3), keepdims=True)
    gradient, _ = OBJECTIVES["dmd2"](x0, noise, t, KEY, n, Settings())
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)
    half_square = lambda x: 0.5 * jnp.sum((x - jax.lax.stop_gradient(x - gradient)) ** 2)
    surrogate = lambda x: jnp.sum(surrogate_loss(gradient, x))
    np.testing.assert_allclose(jax.grad(surrogate)(x0), jax.grad(half_square)(x0), rtol=1e-4, atol=1e-5)


def takes_reward_gradient(name: str) -> bool:
    """Whether the reward's own derivative is asked for, by a reward that counts such questions."""
    asked = []

    @jax.custom_vjp
    def reward(x):
        return jnp.sum(x, axis=(1, 2, 3))

    def backward(shape, g):
        asked.append(shape)
        return (jnp.broadcast_to(g[:, None, None, None], shape),)

    reward.defvjp(lambda x: (reward(x), x.shape), backward)
    x0, noise, t, weight = random_batch()
    OBJECTIVES[name](
        x0, noise, t, KEY, random_nets(weight, reward=reward), Settings(estimate=Estimate("covariance", num_steps=2))
    )
    return bool(asked)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_row_says_what_its_objective_does_with_the_reward(name):
    x0, noise, t, weight = random_batch()
    gradient = lambda nets, settings: OBJECTIVES[name](x0, noise, t, KEY, nets, settings)[0]
    reward, other = random_nets(weight), random_nets(weight, reward=lambda x: jnp.sum(x**2, axis=(1, 2, 3)))
    feels = lambda a, b: bool(jnp.any(a != b))
    row, drp = OBJECTIVES[name], Settings(estimate=Estimate("drp"))
    assert row.needs_reward == feels(gradient(reward, drp), gradient(other, drp))
    assert row.estimates == feels(gradient(reward, drp), gradient(reward, Settings(estimate=Estimate("shifted"))))
    assert row.differentiates_reward == takes_reward_gradient(name)


def test_sid_is_its_papers_loss_at_alpha_one():
    """(f_r − f_ψ)·((f_r − x0) − a(f_r − f_ψ))/mean|x0 − f_r|, a = 1, differentiated through x_t; the divisor is constant."""
    x0, noise, t, weight = random_batch()
    n, a = random_nets(weight), 1.0

    def loss(x0):
        x_t = diffusion.add_noise(SCHEDULE, x0, noise, t)
        real, fake = n.guidance(x_t, t, n.reference(x_t, t)), n.ta(x_t, t)
        divisor = jax.lax.stop_gradient(jnp.mean(jnp.abs(x0 - real), axis=(1, 2, 3), keepdims=True))
        return jnp.sum((real - fake) * ((real - x0) - a * (real - fake)) / divisor)

    gradient, _ = OBJECTIVES["sid"](x0, noise, t, KEY, n, Settings())
    np.testing.assert_allclose(gradient, jax.grad(loss)(x0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_samples_do_not_see_each_other(name):
    """The gradient of a sample is the same alone and in its batch."""
    x0, noise, t, weight = random_batch()
    gradient = lambda rows: OBJECTIVES[name](x0[rows], noise[rows], t[rows], KEY, random_nets(weight[rows]), Settings())[0]
    np.testing.assert_allclose(gradient(slice(0, 16))[3:4], gradient(slice(3, 4)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["x0", "eps", "v", "velocity"])
def test_denoising_loss_is_the_networks_own_mean_squared_error(kind):
    schedule = schedules.rectified_flow()
    x0, noise, t, weight = random_batch()
    network = lambda x, t: jnp.tanh(x * weight)
    denoiser = diffusion.denoiser_from(network, kind, schedule)
    x_t = diffusion.add_noise(schedule, x0, noise, t)
    target = {"x0": x0, "eps": noise, "velocity": noise - x0}.get(kind)
    if target is None:
        target = diffusion.from_x0(kind, x0, x_t, t, schedule)
    expected = jnp.mean((network(x_t, t) - target) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(denoising_loss(denoiser, schedule, x0, noise, t, kind), expected, rtol=1e-4)


def test_the_posterior_mean_minimises_the_denoising_loss():
    """For a Gaussian the best denoiser a·x_t + b is the closed-form one: the loss's gradient in (a, b) vanishes."""
    n = 100_000
    keys = jax.random.split(jax.random.key(1), 2)
    x0, noise, t = REFERENCE.sample(keys[0], n), jax.random.normal(keys[1], (n, 1)), jnp.full(n, T)
    exact = REFERENCE.denoiser(SCHEDULE)
    moved = lambda p: lambda x, t: exact(x, t) + p[0] * x + p[1]
    loss = lambda p: jnp.mean(denoising_loss(moved(p), SCHEDULE, x0, noise, t, "v"))
    np.testing.assert_allclose(jax.grad(loss)(jnp.zeros(2)), 0, atol=0.02)  # four standard errors at 1e5 draws


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weightings_are_constants_to_the_gradient(name):
    x0, noise, t, weight = random_batch()
    x_r = jnp.sin(x0)
    value = WEIGHTINGS[name](x0, x_r, jnp.full((16, 1, 1, 1), 0.6), jnp.full((16, 1, 1, 1), 0.8))
    assert value.shape == (16, 1, 1, 1) and (value > 0).all()
