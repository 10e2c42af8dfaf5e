"""Estimators of the diffused reward score that linearise the denoiser or sample its posterior.

Notation: x̂ = x̂(x_t, t) is the reference's posterior mean, J = ∂x̂/∂x_t, Φ_K the K-step denoising of
`sampling`, ℓ(x0) = r(x0)/β, x0_i = Φ_K(x_t, z_i) for i = 1 … N, w = softmax(ℓ(x0_i)).

    drp             ∇_{x_t} ℓ(Φ_K(x_t)), Φ_K deterministic                                      (1)
    drp_mc          ∇_{x_t} log (1/N) Σ_i exp ℓ(Φ_K(x_t, z_i)), Φ_K stochastic                  (2)
    stein           Jᵀ Σ_i w_i ∇ℓ(x0_i)                                                         (3)
    covariance      (α/σ²) Σ_i (w_i − 1/N) x0_i                                                 (4)
    covariance_cv   Jᵀ∇ℓ(x̂) + (α/σ²) Σ_i (w_i − (1 + l_i − l̄)/N)(x0_i − x̂)                    (5)
    implicit        (α/σ²) δ  where  δ = C ∇ℓ(x̂ + δ)                                            (6)

(1) is the paper's proxy; with K = 1 it is exact when the posterior is Gaussian and r is linear.
(2) is consistent as N and K grow.  (4) is the shift of the posterior mean under the tilt
(`diffused_reward` equation 2) by self-normalised importance sampling: it needs the gradient neither
of r nor of the denoiser.  (5) is (4) with a control variate: the covariance of x0 with the linear part
l_i = ∇ℓ(x̂)·(x0_i − x̂) of ℓ is known, because the second-order Tweedie formula gives the posterior's
covariance, Cov[x0 | x_t] = C = (σ²/α) J.  (3) follows from (4) by Stein's lemma,
Cov(x0, f) = C E[∇f] for a Gaussian posterior.  A Gaussian posterior tilted by a quadratic ℓ has the
mean x̂ + δ of (6), of which (1) is the first iterate, too long by I − C∇²ℓ.  (6) is (C⁻¹ − ∇²ℓ)δ = ∇ℓ(x̂) when
ℓ is quadratic, and is solved by conjugate gradients preconditioned by C: their n-th iterate costs n
products with J and lies in the span of δ = Cλ, so that C⁻¹ is never needed.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from didr_jax import keys
from didr_jax.diffusion import per_sample, signal_and_noise
from didr_jax.sampling import denoise
from didr_jax.schedules import Schedule
from didr_jax.types import Array, Denoiser, PRNGKey

IMPLICIT_PULLBACKS = 3


@dataclasses.dataclass(frozen=True)
class Estimate:
    """How the diffused reward score is to be estimated: an estimator and all its knobs, as one value.

    Attributes:
      estimator: a key of `diffused_reward.ESTIMATORS`, which looks it up.
      num_steps: K ≥ 1 denoiser evaluations per short denoising.  `shifted`, `own` and `implicit` make none;
        `conjugate` makes none at K = 1 and bridges N of them at K > 1.
      num_samples: N ≥ 1 short denoisings; used by the stochastic estimators.
      stochasticity: η in [0, 1] of their denoising (`sampling` equation 2).
      trust_radius: the largest ‖(σ²/α)·DRS‖₂ per sample, in units of x0; None leaves DRS as it is.
        A tilt cannot move a posterior mean out of the data's hull (`diffused_reward` equation 2).
      guard: whether `own`, and `conjugate` at K = 1, believe their fit only as far as the reward makes it good
        (`conjugate` equation 7).
      max_shift: how far `shifted`, `own` and `conjugate` may move the denoiser's input, in units of the noise's
        norm σ√d; None for any distance, right only where the denoiser is exact everywhere.
      remat, unroll: of the short denoising, see `sampling.denoise`.

    Raises:
      ValueError: a knob out of its range; the message begins with its name.
    """

    estimator: str = "conjugate"
    num_steps: int = 1
    num_samples: int = 1
    stochasticity: float = 1.0
    trust_radius: float | None = None
    max_shift: float | None = 2.0
    guard: bool = True
    remat: bool = True
    unroll: bool = False

    def __post_init__(self):
        rules = {
            "num_steps": (self.num_steps >= 1, "K must be at least 1"),
            "num_samples": (self.num_samples >= 1, "N must be at least 1"),
            "stochasticity": (0 <= self.stochasticity <= 1, "must lie in [0, 1]"),
            "trust_radius": (self.trust_radius is None or self.trust_radius > 0, "must be positive, or None for no limit"),
            "max_shift": (self.max_shift is None or self.max_shift > 0, "must be positive, or None for no limit"),
        }
        for knob, (kept, rule) in rules.items():
            if not kept:
                raise ValueError(f"{knob} = {getattr(self, knob)!r}: {rule}")

    def with_samples(self, num: int) -> "Estimate":
        """The same with N = num."""
        return dataclasses.replace(self, num_samples=num)


class Query(NamedTuple):
    """One question to an estimator: what is DRS at (x_t, t)?

    `tilt_exponent` is ℓ = r/β; `x_hat` and `pullback` are the denoiser's value at (x_t, t) and its
    vector-Jacobian product Jᵀ(·) (None for estimators that do not ask for it); `denoiser` answers
    elsewhere; `estimate` holds the knobs, `key` the randomness, and `x0` the sample that x_t was made of, if known.
    """

    tilt_exponent: Callable[[Array], Array]
    denoiser: Denoiser
    schedule: Schedule
    x_t: Array
    t: Array
    x_hat: Array
    pullback: Callable[[Array], Array] | None
    estimate: Estimate
    key: PRNGKey | None
    x0: Array | None = None


def exponent_and_gradient(query: Query, x0: Array) -> tuple[Array, Array]:
    """ℓ `[b]` and ∇ℓ `[b, ...]`."""

    def total(x):
        exponent = query.tilt_exponent(x)
        return jnp.sum(exponent), exponent

    gradient, exponent = jax.grad(total, has_aux=True)(x0)
    return exponent, gradient


def exponent_gradient(query: Query, x0: Array) -> Array:
    """∇ℓ `[b, ...]`."""
    return jax.grad(lambda x: jnp.sum(query.tilt_exponent(x)))(x0)


def inner(a: Array, b: Array) -> Array:
    """a·b per sample, `[b]`.

    A dot product, and no sum of a product: with one factor broadcast by a vmap over samples, jaxlib 0.10.2
    compiles such sums wrongly for the CPU once they have many outputs (jax issue 39103).
    """
    return jnp.einsum("bi,bi->b", a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1))


def short_denoise(query: Query, key: PRNGKey | None, x_t: Array, t: Array, x_hat: Array) -> Array:
    """Φ_K(x_t) `[b, ...]`, where the denoiser says x̂ = x_hat at (x_t, t); deterministic where key is None."""
    how = query.estimate
    return denoise(
        query.denoiser, query.schedule, x_t, t, num_steps=how.num_steps, key=key,
        stochasticity=0.0 if key is None else how.stochasticity, x0_hat=x_hat, remat=how.remat, unroll=how.unroll,
    )  # fmt: skip


def posterior_samples(query: Query, x_t: Array, t: Array, x_hat: Array) -> tuple[Array, Array]:
    """N samples x0_i `[n, b, ...]` of Φ_K from (x_t, t) and their exponents ℓ(x0_i) `[n, b]`."""
    assert query.key is not None, "an estimator that samples is given a key"
    draws = keys.split(query.key, query.estimate.num_samples)
    samples = jax.vmap(lambda key: short_denoise(query, key, x_t, t, x_hat))(draws)
    return samples, jax.vmap(query.tilt_exponent)(samples)


def pulled_back(query: Query, cotangent: Array) -> Array:
    """Jᵀ v."""
    assert query.pullback is not None, "an estimator that differentiates the denoiser is given its pullback"
    return query.pullback(cotangent)


def weighted_sum(weights: Array, samples: Array) -> Array:
    """Σ_i w_i x_i, for `weights [n, b]` and `samples [n, b, ...]`."""
    return jnp.einsum("nb,nb...->b...", weights, samples)  # for the reason given in `inner`


def _chain_rule(query: Query, grads: tuple[Array, Array]) -> Array:
    """∂/∂x_t of f(x_t, x̂(x_t)), from its two partial derivatives and the shared Jacobian."""
    direct, through_x_hat = grads
    return direct + pulled_back(query, through_x_hat)


def drp(query: Query) -> Array:
    """Equation (1)."""

    def exponent(x_t, x_hat):
        return jnp.sum(query.tilt_exponent(short_denoise(query, None, x_t, query.t, x_hat)))

    return _chain_rule(query, jax.grad(exponent, argnums=(0, 1))(query.x_t, query.x_hat))


def drp_mc(query: Query) -> Array:
    """Equation (2)."""

    def log_mean_exp(x_t, x_hat):
        _, exponents = posterior_samples(query, x_t, query.t, x_hat)
        return jnp.sum(jax.nn.logsumexp(exponents, axis=0))

    return _chain_rule(query, jax.grad(log_mean_exp, argnums=(0, 1))(query.x_t, query.x_hat))


def stein(query: Query) -> Array:
    """Equation (3)."""
    samples, exponents = posterior_samples(query, query.x_t, query.t, query.x_hat)
    gradients = jax.vmap(lambda x0: exponent_gradient(query, x0))(samples)
    return pulled_back(query, weighted_sum(jax.nn.softmax(exponents, axis=0), gradients))


def covariance(query: Query) -> Array:
    """Equation (4)."""
    samples, exponents = posterior_samples(query, query.x_t, query.t, query.x_hat)
    excess = jax.nn.softmax(exponents, axis=0) - 1 / query.estimate.num_samples
    α, σ = signal_and_noise(query.schedule, query.t, query.x_t)
    return α / σ**2 * weighted_sum(excess, samples)


def covariance_cv(query: Query) -> Array:
    """Equation (5)."""
    samples, exponents = posterior_samples(query, query.x_t, query.t, query.x_hat)
    gradient = exponent_gradient(query, query.x_hat)
    deviations = samples - query.x_hat
    linear = jax.vmap(lambda d: inner(gradient, d))(deviations)
    known = (1 + linear - jnp.mean(linear, axis=0)) / query.estimate.num_samples
    α, σ = signal_and_noise(query.schedule, query.t, query.x_t)
    residual = weighted_sum(jax.nn.softmax(exponents, axis=0) - known, deviations)
    return pulled_back(query, gradient) + α / σ**2 * residual


def implicit(query: Query) -> Array:
    """Equation (6), by `IMPLICIT_PULLBACKS` steps of conjugate gradients on its residual ρ."""
    α, σ = signal_and_noise(query.schedule, query.t, query.x_t)
    δ = λ = p = u = jnp.zeros_like(query.x_hat)  # δ = Cλ, and the search directions p = Cu
    ρ, energy = exponent_gradient(query, query.x_hat), None
    for _ in range(IMPLICIT_PULLBACKS):
        Cρ = σ**2 / α * pulled_back(query, ρ)
        last, energy = energy, inner(ρ, Cρ)
        if last is None:
            first, keep = energy, jnp.zeros_like(energy)
        else:  # start anew once the residual is rounding error, or C (a network's J) is not positive
            keep = jnp.where(last > 1e-8 * jnp.abs(first), jnp.clip(energy / last, 0.0, 4.0), 0.0)
        p, u = Cρ + per_sample(keep, ρ) * p, ρ + per_sample(keep, ρ) * u
        change = exponent_gradient(query, query.x_hat + δ + p) - (λ + u) - ρ
        gain = jnp.maximum(inner(p, ρ), 0.0)
        # half the slope at least: a strongly convex ℓ may have no maximum along p
        step = per_sample(gain / jnp.maximum(-inner(p, change), 0.5 * gain + 1e-20), ρ)
        δ, λ, ρ = δ + step * p, λ + step * u, ρ + step * change
    return α / σ**2 * δ
