"""The diffused reward score, and how to estimate it.

The reward-tilted reference p*_0 ∝ p_ref exp(r/β), diffused to time t, has the score

    ∇ log p*_t = s_ref + DRS,     DRS(x_t, t) = ∇_{x_t} log E_ref[exp(r(x0)/β) | x_t]           (1)

Seen in x0 space, DRS is the shift of the posterior mean under the tilt:

    (σ²/α)·DRS = E_{p*}[x0 | x_t] − E_ref[x0 | x_t]                                             (2)

Estimators, all per sample and all stopped at the networks' parameters.  x̂ = x̂(x_t, t) is the
reference's posterior mean, J = ∂x̂/∂x_t, Φ_K the K-step denoising of `sampling`:

    drp          (1/β) ∇_{x_t} r(Φ_K(x_t)), Φ_K deterministic                                   (3)
    drp_mc       ∇_{x_t} log (1/N) Σ_i exp(r(Φ_K(x_t, z_i))/β), Φ_K stochastic                  (4)
    covariance   (α/σ²) Σ_i (w_i − 1/N) x0_i,   x0_i = Φ_K(x_t, z_i),  w = softmax(r(x0_i)/β)   (5)

(3) is the paper's proxy; with K = 1 it is exact when the posterior is Gaussian and r is linear.
(4) is consistent as N and K grow.  (5) is (2) by self-normalised importance sampling: it needs the
gradient neither of r nor of the denoiser.
"""

from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp

from didr_jax.diffusion import per_sample, signal_and_noise
from didr_jax.sampling import denoise
from didr_jax.schedules import Schedule
from didr_jax.types import Array, Denoiser, PRNGKey, Reward


class Query(NamedTuple):
    """One question to an estimator: what is DRS at (x_t, t)?

    `tilt_exponent` is r/β; `x_hat` and `pullback` are the denoiser's value at (x_t, t) and its
    vector-Jacobian product Jᵀ(·) (None for estimators that do not ask for it); `short_denoise(key,
    x_t, x_hat)` is Φ_K, deterministic where key is None.
    """

    tilt_exponent: Callable[[Array], Array]
    schedule: Schedule
    x_t: Array
    t: Array
    x_hat: Array
    pullback: Callable[[Array], Array] | None
    short_denoise: Callable[[PRNGKey | None, Array, Array], Array]
    num_samples: int
    key: PRNGKey | None


def _chain_rule(query: Query, grads: tuple[Array, Array]) -> Array:
    """∂/∂x_t of f(x_t, x̂(x_t)), from its two partial derivatives and the shared Jacobian."""
    direct, through_x_hat = grads
    return direct + query.pullback(through_x_hat)


def _drp(query: Query) -> Array:
    """Equation (3)."""

    def exponent(x_t, x_hat):
        return jnp.sum(query.tilt_exponent(query.short_denoise(None, x_t, x_hat)))

    return _chain_rule(query, jax.grad(exponent, argnums=(0, 1))(query.x_t, query.x_hat))


def _drp_mc(query: Query) -> Array:
    """Equation (4)."""

    def log_mean_exp(x_t, x_hat):
        keys = jax.random.split(query.key, query.num_samples)
        exponents = jax.vmap(lambda key: query.tilt_exponent(query.short_denoise(key, x_t, x_hat)))(keys)
        return jnp.sum(jax.nn.logsumexp(exponents, axis=0))

    return _chain_rule(query, jax.grad(log_mean_exp, argnums=(0, 1))(query.x_t, query.x_hat))


def _posterior_samples(query: Query) -> tuple[Array, Array]:
    """N samples x0_i `[n, b, ...]` of Φ_K and their exponents r(x0_i)/β `[n, b]`."""
    keys = jax.random.split(query.key, query.num_samples)
    samples = jax.vmap(lambda key: query.short_denoise(key, query.x_t, query.x_hat))(keys)
    return samples, jax.vmap(query.tilt_exponent)(samples)


def _covariance(query: Query) -> Array:
    """Equation (5)."""
    samples, exponents = _posterior_samples(query)
    excess = jax.nn.softmax(exponents, axis=0) - 1 / query.num_samples
    α, σ = signal_and_noise(query.schedule, query.t, query.x_t)
    return α / σ**2 * jnp.sum(per_sample(excess, samples) * samples, axis=0)


class Estimator(NamedTuple):
    """An estimator and what it asks of its caller.

    `evaluations(K, N)` counts the denoiser's forward and backward passes per sample.
    """

    estimate: Callable[[Query], Array]
    differentiates_reward: bool
    differentiates_denoiser: bool
    stochastic: bool
    evaluations: Callable[[int, int], tuple[int, int]]


ESTIMATORS: dict[str, Estimator] = {
    "drp": Estimator(_drp, True, True, False, lambda k, n: (k, k)),
    "drp_mc": Estimator(_drp_mc, True, True, True, lambda k, n: (1 + n * (k - 1), 1 + n * (k - 1))),
    "covariance": Estimator(_covariance, False, False, True, lambda k, n: (1 + n * (k - 1), 0)),
}


def diffused_reward_score(
    reward: Reward,
    denoiser: Denoiser,
    schedule: Schedule,
    x_t: Array,
    t: Array,
    *,
    beta: float,
    estimator: str = "drp",
    num_steps: int = 1,
    num_samples: int = 1,
    key: PRNGKey | None = None,
    stochasticity: float = 1.0,
    trust_radius: float | None = None,
    x_hat: Array | None = None,
    pullback: Callable[[Array], Array] | None = None,
    remat: bool = True,
    unroll: bool = False,
) -> Array:
    """DRS(x_t, t) = ∇_{x_t} log E_ref[exp(r(x0)/β) | x_t], equation (1).

    Args:
      reward: `x0 [b, ...] -> r [b]`.
      denoiser: the frozen reference, `(x_t, t) -> x̂0`, without guidance.
      schedule: the noise schedule of `x_t`.
      x_t: `[b, ...]` at times `t [b]`, with σ(t) > 0.
      beta: temperature β > 0 of the tilt; small is strong.
      estimator: a key of `ESTIMATORS`.
      num_steps: K ≥ 1 denoiser evaluations per short denoising.
      num_samples: N ≥ 1 short denoisings; used by the stochastic estimators.
      key: their randomness.
      stochasticity: η of their denoising (`sampling` equation 2).
      trust_radius: the largest ‖(σ²/α)·DRS‖₂ per sample, in units of x0; None leaves DRS as it is.
        By (2) a tilt cannot move a posterior mean out of the data's hull.
      x_hat, pullback: value and `Jᵀ(·)` of the denoiser at (x_t, t), if the caller has them.
      remat, unroll: see `sampling.denoise`.

    Returns:
      DRS, of the shape of `x_t`.

    Raises:
      ValueError: unknown estimator, β ≤ 0, K < 1, N < 1, a missing key, or a reward that does not
        return one number per sample.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"unknown estimator {estimator!r}; known: {', '.join(ESTIMATORS)}")
    chosen = ESTIMATORS[estimator]
    if isinstance(beta, (int, float)) and beta <= 0:
        raise ValueError(f"beta must be positive, got {beta}")
    if num_steps < 1 or num_samples < 1:
        raise ValueError(f"num_steps and num_samples must be at least 1, got {num_steps} and {num_samples}")
    if chosen.stochastic and key is None:
        raise ValueError(f"estimator {estimator!r} is stochastic and needs a key")

    def tilt_exponent(x0):
        r = reward(x0)
        if r.shape != x0.shape[:1]:
            raise ValueError(f"a reward must return shape {x0.shape[:1]}, one number per sample; got {r.shape}")
        return r / beta

    def short_denoise(key, x_t, x_hat):
        return denoise(
            denoiser, schedule, x_t, t, num_steps=num_steps, key=key,
            stochasticity=0.0 if key is None else stochasticity, x0_hat=x_hat, remat=remat, unroll=unroll,
        )  # fmt: skip

    if chosen.differentiates_denoiser and pullback is None:
        x_hat, vjp = jax.vjp(lambda x: denoiser(x, t), x_t)
        pullback = lambda cotangent: vjp(cotangent)[0]
    elif x_hat is None:
        x_hat = denoiser(x_t, t)

    drs = chosen.estimate(Query(tilt_exponent, schedule, x_t, t, x_hat, pullback, short_denoise, num_samples, key))
    return drs if trust_radius is None else clip_tilt(drs, schedule, t, trust_radius)


def clip_tilt(drs: Array, schedule: Schedule, t: Array, radius: float) -> Array:
    """DRS shortened, per sample, so that ‖(σ²/α)·DRS‖₂ ≤ radius; its direction is kept."""
    α, σ = signal_and_noise(schedule, t, drs)
    norm = jnp.sqrt(jnp.sum(drs**2, axis=tuple(range(1, drs.ndim)), keepdims=True))
    return drs * jnp.minimum(1.0, radius * jnp.abs(α) / jnp.maximum(σ**2 * norm, 1e-30))
