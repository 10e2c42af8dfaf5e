"""The diffused reward score, and how to estimate it.

The reward-tilted reference p*_0 ∝ p_ref exp(r/β), diffused to time t, has the score

    ∇ log p*_t = s_ref + DRS,     DRS(x_t, t) = ∇_{x_t} log E_ref[exp(r(x0)/β) | x_t]           (1)

Seen in x0 space, DRS is the shift of the posterior mean under the tilt:

    (σ²/α)·DRS = E_{p*}[x0 | x_t] − E_ref[x0 | x_t]                                             (2)

The estimators are derived in `estimators` and `conjugate`; `ESTIMATORS` is their table.  All work per
sample and are stopped at the networks' parameters.  `docs/estimators.md` compares them.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from didr_jax import conjugate, estimators
from didr_jax.diffusion import signal_and_noise
from didr_jax.estimators import Estimate, Query
from didr_jax.schedules import Schedule
from didr_jax.types import Array, Denoiser, PRNGKey, Reward


class Estimator(NamedTuple):
    """An estimator and what it asks of its caller.

    `stochastic(K)` says whether it draws random numbers; `evaluations(K, N)` counts the denoiser's
    forward and backward passes per sample, x̂ included; `rewards(K, N)` those of the reward: gradients, a forward and a
    backward pass each, and forward passes alone.
    """

    answer: Callable[[Query], Array]
    differentiates_reward: bool
    differentiates_denoiser: bool
    stochastic: Callable[[int], bool]
    evaluations: Callable[[int, int], tuple[int, int]]
    rewards: Callable[[int, int], tuple[int, int]]


def _never(k: int) -> bool:
    return False


def _always(k: int) -> bool:
    return True


def _with_samples(k: int) -> bool:
    return k > 1


ESTIMATORS: dict[str, Estimator] = {
    "drp": Estimator(estimators.drp, True, True, _never, lambda k, n: (k, k), lambda k, n: (1, 0)),
    "drp_mc": Estimator(
        estimators.drp_mc, True, True, _always, lambda k, n: (1 + n * (k - 1), 1 + n * (k - 1)), lambda k, n: (n, 0)
    ),
    "stein": Estimator(estimators.stein, True, True, _always, lambda k, n: (1 + n * (k - 1), 1), lambda k, n: (n, n)),
    "implicit": Estimator(
        estimators.implicit, True, True, _never,
        lambda k, n: (1, estimators.IMPLICIT_PULLBACKS), lambda k, n: (1 + estimators.IMPLICIT_PULLBACKS, 0),
    ),
    "covariance": Estimator(estimators.covariance, False, False, _always, lambda k, n: (1 + n * (k - 1), 0), lambda k, n: (0, n)),
    "covariance_cv": Estimator(
        estimators.covariance_cv, True, True, _always, lambda k, n: (1 + n * (k - 1), 1), lambda k, n: (1, n)
    ),
    "shifted": Estimator(conjugate.shifted, True, False, _never, lambda k, n: (2, 0), lambda k, n: (1, 0)),
    "own": Estimator(conjugate.own, True, False, _never, lambda k, n: (2, 0), lambda k, n: (2, 1)),
    "conjugate": Estimator(
        conjugate.conjugate, True, False, _with_samples,
        lambda k, n: (3 + (n * (k - 1) if n > 1 else 0), 0), lambda k, n: (4, 0) if k == 1 else (3, n if n > 1 else 0),
    ),
}  # fmt: skip


def resolve(name: str, differentiable: bool = True, decoded: bool = False) -> str:
    """An estimator's name: the one place that says what "auto" is, on the evidence of docs/estimators.md.

    Args:
      name: a key of `ESTIMATORS`, or "auto".
      differentiable: whether the reward has a gradient.
      decoded: whether it looks at what a decoder makes of x0, so that a gradient costs more than the estimator's evaluations.
    """
    if name != "auto":
        return name
    return "covariance" if not differentiable else "own" if decoded else "conjugate"


def estimator_of(estimate: Estimate) -> Estimator:
    """The row of an estimate's estimator.

    Raises:
      ValueError: no row has its name.
    """
    if estimate.estimator not in ESTIMATORS:
        raise ValueError(f"unknown estimator {estimate.estimator!r}; known: {', '.join(ESTIMATORS)}")
    return ESTIMATORS[estimate.estimator]


def predict(denoiser: Denoiser, x_t: Array, t: Array, estimate: Estimate) -> tuple[Array, Callable[[Array], Array] | None]:
    """x̂(x_t, t), and Jᵀ(·) = (∂x̂/∂x_t)ᵀ(·) there if the estimator will ask for it: one evaluation serves all."""
    if not estimator_of(estimate).differentiates_denoiser:
        return denoiser(x_t, t), None
    x_hat, vjp = jax.vjp(lambda x: denoiser(x, t), x_t)
    return x_hat, lambda cotangent: vjp(cotangent)[0]


def diffused_reward_score(
    reward: Reward,
    denoiser: Denoiser,
    schedule: Schedule,
    x_t: Array,
    t: Array,
    *,
    beta: float,
    estimate: Estimate = Estimate(),
    key: PRNGKey | None = None,
    x_hat: Array | None = None,
    pullback: Callable[[Array], Array] | None = None,
    x0: Array | None = None,
) -> Array:
    """DRS(x_t, t) = ∇_{x_t} log E_ref[exp(r(x0)/β) | x_t], equation (1).

    Args:
      reward: `x0 [b, ...] -> r [b]`.
      denoiser: the frozen reference, `(x_t, t) -> x̂0`, without guidance.
      schedule: the noise schedule of `x_t`.
      x_t: `[b, ...]` at times `t [b]`, with σ(t) > 0.
      beta: temperature β > 0 of the tilt; small is strong.
      estimate: the estimator and its knobs.
      key: randomness of a stochastic estimator, one key or `[b]`, one for each row.
      x_hat, pullback: what `predict` answers at (x_t, t), if the caller has asked it.
      x0: the sample that x_t was made of, which `own` asks for.

    Returns:
      DRS, of the shape of `x_t`.

    Raises:
      ValueError: unknown estimator, β ≤ 0, a missing key or x0, or a reward that does not return one number per sample.

    Data at ±1 has the posterior mean tanh(α x_t/σ²), and tanh(α x_t/σ² + 1/β) if tilted by r(x0) = x0.  `conjugate`
    says by how much they differ; the paper's proxy claims more than the data's hull allows:

    >>> from didr_jax.schedules import rectified_flow
    >>> flow, x_t, t = rectified_flow(), jnp.array([0.1]), jnp.array([0.5])  # α/σ² = 2
    >>> denoiser = lambda x_t, t: jnp.tanh(flow.alpha(t) * x_t / flow.sigma(t) ** 2)
    >>> print(f"{2 * (jnp.tanh(0.2 + 1 / 0.5) - jnp.tanh(0.2)).item():.2f}")
    1.56
    >>> for how in (Estimate("conjugate", max_shift=None), Estimate("drp")):
    ...     print(f"{diffused_reward_score(lambda x0: x0, denoiser, flow, x_t, t, beta=0.5, estimate=how).item():.2f}")
    1.56
    3.84
    """
    chosen = estimator_of(estimate)
    if isinstance(beta, (int, float)) and beta <= 0:
        raise ValueError(f"beta must be positive, got {beta}")
    if chosen.stochastic(estimate.num_steps) and key is None:
        raise ValueError(f"estimator {estimate.estimator!r} with num_steps={estimate.num_steps} is stochastic and needs a key")

    def tilt_exponent(x0):
        r = reward(x0)
        if r.shape != x0.shape[:1]:
            raise ValueError(f"a reward must return shape {x0.shape[:1]}, one number per sample; got {r.shape}")
        return r / beta

    if x_hat is None or (chosen.differentiates_denoiser and pullback is None):
        x_hat, pullback = predict(denoiser, x_t, t, estimate)
    drs = chosen.answer(Query(tilt_exponent, denoiser, schedule, x_t, t, x_hat, pullback, estimate, key, x0))
    return drs if estimate.trust_radius is None else clip_tilt(drs, schedule, t, estimate.trust_radius)


def clip_tilt(drs: Array, schedule: Schedule, t: Array, radius: float) -> Array:
    """DRS shortened, per sample, so that ‖(σ²/α)·DRS‖₂ ≤ radius; its direction is kept.

    >>> from didr_jax.schedules import rectified_flow
    >>> drs = jnp.array([[3.0, 4.0], [0.3, 0.4]])  # σ²/α = ½: tilts of length 2.5 and .25
    >>> print(clip_tilt(drs, rectified_flow(), jnp.array([0.5, 0.5]), radius=1.25))
    [[1.5 2. ]
     [0.3 0.4]]
    """
    α, σ = signal_and_noise(schedule, t, drs)
    norm = jnp.sqrt(jnp.sum(drs**2, axis=tuple(range(1, drs.ndim)), keepdims=True))
    return drs * jnp.minimum(1.0, radius * jnp.abs(α) / jnp.maximum(σ**2 * norm, 1e-30))
