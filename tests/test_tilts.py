"""The targets beside the paper's: their gradients, their limits, and the law at which each rests."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import mixture
from didr_jax import schedules
from didr_jax.closed_form import GaussianMixture, QuadraticReward
from didr_jax.estimators import Estimate
from didr_jax.objectives import OBJECTIVES, Bound, Settings
from didr_jax.tilts import Tilt, seen_reward
from didr_jax.training.validate import validate
from didr_jax.types import InputError

SCHEDULE, KEY, BETA = schedules.cosine(), jax.random.key(0), 0.8
EXACT = Estimate("conjugate", max_shift=None)  # of linear rewards, whatever the reference
LAW = GaussianMixture.of([[-1.0], [1.0]], std=0.5, weights=[0.3, 0.7])
LINEAR = QuadraticReward(jnp.array([0.9]))
X0 = jnp.linspace(-2.0, 2.0, 9)[:, None]
T = jnp.linspace(0.1, 0.9, 9)


def ask(tilt: Tilt, reference=LAW, ta=None, **changes):
    """G of DIDR at x0 and t of nine rows."""
    ta = ta or GaussianMixture.of([[0.2]], std=1.1)
    nets = Bound(SCHEDULE, ta.denoiser(SCHEDULE), reference.denoiser(SCHEDULE), reward=LINEAR)
    settings = Settings(weighting="ikl", beta=BETA, estimate=EXACT, tilt=tilt, **changes)
    return OBJECTIVES["didr"](X0, jax.random.normal(KEY, X0.shape), T, KEY, nets, settings)


@pytest.mark.parametrize("tilt", [Tilt("advantage", t0=1.0), Tilt("local", t0=1.0), Tilt("anchored", anchor=0.0)], ids=str)
def test_at_its_end_every_tilt_is_the_papers_to_the_last_bit(tilt):
    gradient, aux = ask(tilt)
    paper, paper_aux = ask(Tilt())
    np.testing.assert_array_equal(gradient, paper)
    jax.tree.map(np.testing.assert_array_equal, aux, paper_aux)


def parts():
    """The gap's and the tilt's part of the paper's gradient."""
    total, nothing = ask(Tilt())[0], ask(Tilt("local", t0=1e-6))[0]  # of which the latter has no tilt
    return np.asarray(nothing), np.asarray(nothing - total)


def test_local_and_anchored_are_sums_of_two_kl_gradients():
    """Equations (3) and (4): above t0 no tilt, or the gap 1 + a times; below, and at other a, as the paper."""
    gap, pull = parts()
    above = np.asarray(T)[:, None] >= 0.45  # no row lies at t0
    np.testing.assert_allclose(ask(Tilt("local", t0=0.45))[0], np.where(above, gap, gap - pull), atol=1e-5)
    anchored, aux = ask(Tilt("anchored", t0=0.45, anchor=3.0))
    np.testing.assert_allclose(anchored, np.where(above, 4 * gap, gap) - pull, atol=1e-5)
    np.testing.assert_allclose(aux["gap"], ask(Tilt())[1]["gap"])  # a length in x0, whatever it weighs


def test_advantage_rests_where_its_closed_form_says():
    """Equation (10): on a Gaussian the mean moves by C0 λ, where the paper's tilt moves it by Σ λ."""
    reference, t0 = GaussianMixture.of([[0.4]], std=0.7), 0.4
    s0 = np.tan(np.pi / 2 * t0)
    C0 = 1 / (1 / 0.49 + 1 / s0**2)
    arrived = dataclasses.replace(reference, means=reference.means + C0 * 0.9 / BETA)
    gradient, aux = ask(Tilt("advantage", t0=t0), reference, arrived)
    np.testing.assert_allclose(gradient, 0, atol=2e-5 * float(aux["divergence"].max()))
    assert np.abs(ask(Tilt(), reference, arrived)[0]).max() > 0.3


def layout_value(t0, x_t0):
    """V_t0 of equation (1) by quadrature, in float64."""
    grid = np.linspace(-6, 6, 4001)
    α, σ = np.cos(np.pi / 2 * t0), np.sin(np.pi / 2 * t0)
    log_ref = np.log(0.3 * np.exp(-2 * (grid + 1) ** 2) + 0.7 * np.exp(-2 * (grid - 1) ** 2))
    joint = np.exp(log_ref - 0.5 * ((x_t0[:, None] - α * grid) / σ) ** 2)
    return np.log(joint @ np.exp(0.9 / BETA * grid) / joint.sum(-1))


def seen_gradient(t0, x0):
    seen = seen_reward(
        LINEAR, LAW.denoiser(SCHEDULE), SCHEDULE, x0, tilt=Tilt("advantage", t0=t0), beta=BETA, estimate=EXACT, key=KEY
    )
    return np.asarray(jax.grad(lambda x: jnp.sum(seen(x)))(x0))[:, 0] / BETA


@pytest.mark.parametrize("t0", [0.2, 0.5, 0.8])
def test_advantage_has_the_gradient_of_the_reward_less_its_layouts_value(t0):
    """Equation (6), over the very ε that were drawn."""
    x0 = jnp.repeat(jnp.array([-1.2, 0.1, 0.8]), 200)[:, None]
    noise = np.asarray(jax.random.normal(KEY, x0.shape), np.float64)[:, 0]
    α, σ = np.cos(np.pi / 2 * t0), np.sin(np.pi / 2 * t0)
    value = lambda shift: layout_value(t0, α * (np.float64(x0)[:, 0] + shift) + σ * noise).reshape(3, -1).mean(-1)
    slope = 0.9 / BETA - (value(1e-4) - value(-1e-4)) / 2e-4
    np.testing.assert_allclose(seen_gradient(t0, x0).reshape(3, -1).mean(-1), slope, atol=2e-4)


@pytest.mark.slow
def test_advantage_tends_to_transport_as_t0_falls():
    """Equation (9): ∇ℓ_adv → −s0² ∇(∇ℓ·∇log p_ref) for a linear ℓ, the tilt that moves every image by s0²∇ℓ."""
    t0, x0 = 0.02, jnp.repeat(jnp.array([-1.0, 0.0, 0.9]), 2000)[:, None]
    score = jax.grad(lambda x: LAW.log_prob(x.reshape(1, 1))[0])
    curvature = jax.vmap(jax.grad(lambda x: score(x)))(jnp.array([-1.0, 0.0, 0.9]))
    s0 = np.tan(np.pi / 2 * t0)
    found = seen_gradient(t0, x0).reshape(3, -1).mean(-1) / s0**2
    np.testing.assert_allclose(found, -0.9 / BETA * curvature, rtol=0.06)


@pytest.mark.parametrize("estimator", ["drp", "shifted", "own", "implicit"])
def test_a_reward_with_a_baseline_keeps_its_value(estimator):
    how = Estimate(estimator, max_shift=None)
    seen = seen_reward(LINEAR, LAW.denoiser(SCHEDULE), SCHEDULE, X0, tilt=Tilt("advantage"), beta=BETA, estimate=how, key=KEY)
    np.testing.assert_array_equal(seen(X0), LINEAR(X0))


REFUSED = [
    ({"tilt": "globl"}, "tilt.*did you mean global"),
    ({"tilt_t0": 0.0}, "tilt_t0 = 0.0: must lie in"),
    ({"tilt_anchor": -1.0}, "tilt_anchor = -1.0: must be at least 0"),
    ({"tilt": "advantage", "num_steps": 2}, "weighs samples by its value: take shifted"),
    ({"tilt": "advantage", "estimator": "covariance"}, "weighs samples by its value: take shifted"),
    ({"tilt": "local", "objective": "dipp"}, "'dipp' has no tilt; those that have: didr"),
]


@pytest.mark.parametrize("changes, message", REFUSED, ids=lambda v: v if isinstance(v, str) else "")
def test_a_tilt_that_cannot_be_is_refused_before_anything_starts(changes, message):
    config = mixture.get_config()
    config.align.update(changes)
    with pytest.raises(InputError, match=message.replace("'", ".")):
        validate(config)
