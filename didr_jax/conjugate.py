"""Conjugate estimators of the diffused reward score: ask the denoiser for the tilted posterior itself.

The posterior of x0 given x_t is an exponential family in disguise.  With the precision Λ = α²/σ² and
h = α x_t/σ²,

    p(x0 | x_t) ∝ p_ref(x0) exp(h·x0 − ½Λ‖x0‖²)                                                 (1)

so tilting it by the exponential of an isotropic quadratic ℓ̃(x0) = λ·x0 − ½κ‖x0 − c‖² only moves its
two parameters, h' = h + λ + κc and Λ' = Λ + κ: whatever p_ref is, the tilted posterior is the posterior
at another noisy point, which the same denoiser knows.

    E[x0 exp ℓ̃ | x_t] / E[exp ℓ̃ | x_t] = x̂(x', t'),   (α'/σ')² = Λ',  α'x'/σ'² = h'             (2)
    DRS = (α/σ²) (x̂(x', t') − x̂(x_t, t))       exactly, if ℓ = r/β is isotropic quadratic       (3)

For a linear reward, t' = t and x' = x_t + (σ²/α)∇ℓ.  The paper's proxy (1/β)Jᵀ∇r(x̂) is the derivative of
(3) in that shift: right while the denoiser is linear along it, and far too long where the posterior has
several modes, whose weights saturate under a tilt while a derivative does not.  (3) costs a forward
pass where the proxy costs a backward one (twice that), needs no derivative of the denoiser, and cannot
leave the hull of the denoiser's outputs.

`shifted` takes λ = ∇ℓ(x̂), κ = 0: two evaluations.

`conjugate` fits ℓ̃ where the tilted posterior is.  Let x¹ be the answer of `shifted` and Δ = x¹ − x̂.
The tilted mean must solve x = x̂(x_t + (σ²/α)∇ℓ(x)), which for a Gaussian posterior is exact for every
quadratic ℓ.  On the line c = x̂ + θΔ, with ∇ℓ linear along it and C⁻¹Δ = ∇ℓ(x̂), the residual
∇ℓ(c) − θ∇ℓ(x̂) is orthogonal to Δ at

    θ = Δ·∇ℓ(x̂) / Δ·(2∇ℓ(x̂) − ∇ℓ(x¹))                                                          (4)

λ = ∇ℓ(c).  κ is the curvature that ℓ has in every direction, judged by two secants: along Δ, and along
the noise that the reference sees in x_t, which in high dimension is a random direction.  It is the
smaller of the two, and zero where they differ in sign: curvature that is not isotropic is left to (4).

With K > 1, the residual ℓ − ℓ̃ is dealt with by N samples x0_i = Φ_K(x', t') of the tilted posterior,

    DRS = (α/σ²) (x̂(x', t') − x̂(x_t, t) + Σ_i (w_i − 1/N) x0_i),   w = softmax(ℓ − ℓ̃)(x0_i)     (5)

which is consistent as N and K grow for every reward; ℓ̃ = 0 would be the `covariance` estimator.
"""

import jax
import jax.numpy as jnp

from didr_jax.diffusion import per_sample, signal_and_noise
from didr_jax.estimators import Query, exponent_gradient, inner, posterior_samples, weighted_sum
from didr_jax.schedules import Schedule
from didr_jax.types import Array

# A convex reward (κ < 0) may take away at most this part of Λ: beyond it the tilt has no normaliser.
MAX_PRECISION_LOSS = 0.9


def time_of_precision(schedule: Schedule, precision: Array) -> Array:
    """The time `t [b]` at which (α/σ)² is `precision [b]`, by bisection; clipped to the schedule."""

    def halve(_, bounds):
        cleaner, noisier = bounds
        middle = (cleaner + noisier) / 2
        too_clean = schedule.alpha(middle) ** 2 > precision * schedule.sigma(middle) ** 2
        return jnp.where(too_clean, middle, cleaner), jnp.where(too_clean, noisier, middle)

    bounds = jnp.full_like(precision, schedule.t_min), jnp.full_like(precision, schedule.t_max)
    return schedule.snap(sum(jax.lax.fori_loop(0, 30, halve, bounds)) / 2)


def tilted_point(
    schedule: Schedule, x_t: Array, t: Array, slope: Array, curvature: Array, center: Array
) -> tuple[Array, Array, Array]:
    """Where the denoiser answers for the posterior tilted by ℓ̃ = λ·x0 − ½κ‖x0 − c‖², equation (2).

    Args:
      schedule: noise schedule.
      x_t, t: the point `[b, ...]` and its times `[b]`.
      slope, curvature, center: λ `[b, ...]`, κ `[b]`, c `[b, ...]`.

    Returns:
      x' `[b, ...]`, t' `[b]`, and the κ `[b]` that t' stands for: the one asked for, unless the schedule
      is discrete or ends before it.
    """
    α, σ = signal_and_noise(schedule, t, x_t)
    precision = (schedule.alpha(t) / schedule.sigma(t)) ** 2
    curvature = jnp.maximum(curvature, -MAX_PRECISION_LOSS * precision)
    moved = time_of_precision(schedule, precision + curvature)
    t_new = jnp.where(curvature == 0, t, moved)
    curvature = (schedule.alpha(t_new) / schedule.sigma(t_new)) ** 2 - precision
    α_new, σ_new = signal_and_noise(schedule, t_new, x_t)
    h = α / σ**2 * x_t + slope + per_sample(curvature, center) * center
    return σ_new**2 / α_new * h, t_new, curvature


def _shift(query: Query, slope: Array) -> Array:
    """x̂(x_t + (σ²/α)λ, t): the posterior mean under a linear tilt."""
    α, σ = signal_and_noise(query.schedule, query.t, query.x_t)
    return query.denoiser(query.x_t + σ**2 / α * slope, query.t)


def shifted(query: Query) -> Array:
    """Equation (3) with ℓ linearised at x̂."""
    α, σ = signal_and_noise(query.schedule, query.t, query.x_t)
    return α / σ**2 * (_shift(query, exponent_gradient(query, query.x_hat)) - query.x_hat)


def _fit(query: Query) -> tuple[Array, Array, Array]:
    """λ, κ and c of the surrogate ℓ̃, by equation (4) and the two secants."""
    α, _ = signal_and_noise(query.schedule, query.t, query.x_t)
    gradient = exponent_gradient(query, query.x_hat)
    Δ = _shift(query, gradient) - query.x_hat
    change = exponent_gradient(query, query.x_hat + Δ) - gradient
    square = jnp.maximum(inner(Δ, Δ), 1e-20)

    slope_along = inner(Δ, gradient)
    θ = slope_along / jnp.maximum(slope_along - inner(Δ, change), 0.5 * jnp.abs(slope_along) + 1e-20)
    θ = per_sample(jnp.clip(θ, 0.0, 2.0), Δ)

    noise = query.x_t - α * query.x_hat
    probe = noise * per_sample(jnp.sqrt(square / jnp.maximum(inner(noise, noise), 1e-20)), noise)
    along = -inner(Δ, change) / square
    across = -inner(probe, exponent_gradient(query, query.x_hat + probe) - gradient) / square
    common = jnp.sign(along) * jnp.minimum(jnp.abs(along), jnp.abs(across))
    κ = jnp.where(along * across > 0, common, 0.0)
    return gradient + θ * change, κ, query.x_hat + θ * Δ


def conjugate(query: Query) -> Array:
    """Equation (3) with the fitted ℓ̃, and with K > 1 its correction by N samples, equation (5)."""
    λ, κ, c = _fit(query)
    x_new, t_new, κ = tilted_point(query.schedule, query.x_t, query.t, λ, κ, c)
    tilted = query.denoiser(x_new, t_new)
    tilt = tilted - query.x_hat
    if query.num_steps > 1:
        samples, exponents = posterior_samples(query, x_new, t_new, tilted)
        surrogate = jax.vmap(lambda x0: inner(λ, x0) - 0.5 * κ * inner(x0 - c, x0 - c))(samples)
        excess = jax.nn.softmax(exponents - surrogate, axis=0) - 1 / query.num_samples
        tilt = tilt + weighted_sum(excess, samples)
    α, σ = signal_and_noise(query.schedule, query.t, query.x_t)
    return α / σ**2 * tilt
