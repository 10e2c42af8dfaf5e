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
leave the data's hull if the denoiser is exact.

`shifted` takes λ = ∇ℓ(x̂), κ = 0: two evaluations.

`conjugate` fits ℓ̃ where the tilted posterior is.  Let x¹ be the answer of `shifted` and Δ = x¹ − x̂.
The tilted mean should solve x = x̂(x_t + (σ²/α)∇ℓ(x)), which for a Gaussian posterior is exact for every
quadratic ℓ.  On the line c = x̂ + θΔ, with ∇ℓ linear along it and C⁻¹Δ = ∇ℓ(x̂), where C = Cov[x0|x_t],
the residual ∇ℓ(c) − θ∇ℓ(x̂) is orthogonal to Δ at

    θ = Δ·∇ℓ(x̂) / Δ·(2∇ℓ(x̂) − ∇ℓ(x¹))            and        λ = ∇ℓ(c)                           (4)

κ is the curvature that ℓ has in every direction, judged by two secants, κ₁ along Δ and κ₂ along the
noise that the reference sees in x_t, which in high dimension is a random direction.  Of the smaller one
the fraction |smaller|/|larger| is believed, and nothing where their signs differ:

    κ = sign(κ₁) min(|κ₁|, |κ₂|)² / max(|κ₁|, |κ₂|)    if κ₁κ₂ > 0, else 0                        (5)

so that curvature of a few directions, which an isotropic κ would spread over all, is left to (4).

With K > 1, what ℓ̃ leaves is dealt with by samples of both posteriors, at (x', t') and at (x_t, t): `bridge`.
ℓ̃ = 0 would be the `covariance` estimator.

`own` takes for λ the mean of ∇ℓ at x̂ and at x0, the generator's own sample of which x_t was made, κ = 0:

    λ = ½ (∇ℓ(x0) + ∇ℓ(x̂))                                                                     (6)

For a Gaussian posterior the shift is C E*[∇ℓ(x0) | x_t], and a generator near its target makes x0 by that very law:
a sharp image, at the price of a reward gradient and no denoiser evaluation.

**The guard.**  A point's slope says nothing of a posterior over which ℓ oscillates.  With K = 1 the fit is held against
what the reward itself says: over the same secants Δ and `probe` a quadratic rises by the mean slope times the way, at
the tilted mean x* = x̂(x', t') it has risen by what ℓ̃ claims, and has the slope of ℓ̃ there.  With the residuals

    q_i = |ℓ(x̂ + Δ_i) − ℓ(x̂) − ½(∇ℓ(x̂) + ∇ℓ(x̂ + Δ_i))·Δ_i| / ½(|∇ℓ(x̂)·Δ_i| + |∇ℓ(x̂ + Δ_i)·Δ_i|)
    ρ   = (ℓ(x*) − ℓ(x̂)) / (ℓ̃(x*) − ℓ̃(x̂))  in [0, 1],     q* = ‖∇ℓ(x*) − ∇ℓ̃(x*)‖ / ‖∇ℓ̃(x*)‖

the answer is shortened to the part

    b = (ρ (1 − q₁)₊ (1 − q₂)₊ / (1 + q*²))³                                                    (7)

of (3), which is 1 for isotropic quadratics (ρ and the q_i for all) and falls to 0, the answer that is never worse than
nothing, where the reward does not make the claim good.  Differences of ℓ below `ROUNDING` of ℓ, a reward in bfloat16, are no evidence.

A network has never seen an x' far from x_t.  Its norm being about σ√d, the part of the shift that λ
makes is kept below `max_shift`·σ'√d, by shortening λ; θ in (4) knows of it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from didr_jax.bridge import bridged_tilt
from didr_jax.diffusion import per_sample, signal_and_noise
from didr_jax.estimators import Query, exponent_and_gradient, exponent_gradient, inner
from didr_jax.schedules import Schedule
from didr_jax.types import Array

# A convex reward (κ < 0) may take away at most this part of Λ: taking all leaves a tilt without normaliser.
MAX_PRECISION_LOSS = 0.5
# Of |ℓ|: what a change of it must exceed to mean something.
ROUNDING = 2.0**-8


def time_of_precision(schedule: Schedule, precision: Array) -> Array:
    """The time `t [b]` at which (α/σ)² is `precision [b]`, by bisection; clipped to the schedule."""

    def halve(_, bounds):
        cleaner, noisier = bounds
        middle = (cleaner + noisier) / 2
        too_clean = schedule.alpha(middle) ** 2 > precision * schedule.sigma(middle) ** 2
        return jnp.where(too_clean, middle, cleaner), jnp.where(too_clean, noisier, middle)

    bounds = jnp.full_like(precision, schedule.t_min), jnp.full_like(precision, schedule.t_max)
    return schedule.snap(sum(jax.lax.fori_loop(0, 30, halve, bounds)) / 2)


def tilted_time(schedule: Schedule, t: Array, curvature: Array) -> tuple[Array, Array]:
    """t' `[b]` of equation (2), and the κ `[b]` that it stands for.

    That is the κ asked for unless it is too negative, or the schedule discrete or ending before it.
    """
    precision = (schedule.alpha(t) / schedule.sigma(t)) ** 2
    wanted = precision + jnp.maximum(curvature, -MAX_PRECISION_LOSS * precision)
    t_new = jnp.where(curvature == 0, t, time_of_precision(schedule, wanted))
    return t_new, (schedule.alpha(t_new) / schedule.sigma(t_new)) ** 2 - precision


def tilted_point(schedule: Schedule, x_t: Array, t: Array, t_new: Array, slope: Array) -> Array:
    """x' `[b, ...]` of equation (2), where `slope` is λ + κc."""
    α, σ = signal_and_noise(schedule, t, x_t)
    α_new, σ_new = signal_and_noise(schedule, t_new, x_t)
    stretch = jnp.where(per_sample(t_new == t, x_t), 1.0, σ_new**2 / α_new * (α / σ**2))  # no tilt: x_t to the last bit
    return stretch * x_t + σ_new**2 / α_new * slope


def _norm(a: Array) -> Array:
    return jnp.sqrt(inner(a, a))


def _affordable(query: Query, slope: Array, t: Array) -> Array:
    """The factor `[b]` in (0, 1] that keeps the shift (σ²/α)λ at time t below `max_shift`·σ√d."""
    max_shift = query.estimate.max_shift
    if max_shift is None:
        return jnp.ones_like(t)
    dimension = slope[0].size
    longest = max_shift * dimension**0.5 * query.schedule.alpha(t) / query.schedule.sigma(t)
    return jnp.minimum(1.0, longest / jnp.maximum(_norm(slope), 1e-20))


def _shift(query: Query, slope: Array) -> tuple[Array, Array]:
    """The shift x̂(x_t + (σ²/α)sλ, t) − x̂ of the posterior mean under a linear tilt, and its s `[b]`."""
    α, σ = signal_and_noise(query.schedule, query.t, query.x_t)
    s = _affordable(query, slope, query.t)
    return query.denoiser(query.x_t + σ**2 / α * per_sample(s, slope) * slope, query.t) - query.x_hat, s


def shifted(query: Query) -> Array:
    """Equation (3) with ℓ linearised at x̂."""
    α, σ = signal_and_noise(query.schedule, query.t, query.x_t)
    return α / σ**2 * _shift(query, exponent_gradient(query, query.x_hat))[0]


class Fit(NamedTuple):
    """ℓ̃(x) = λ·x − ½κ‖x − c‖², the exponent at x̂, and the part `[b]` of the guard (7) that is known so far."""

    slope: Array
    curvature: Array
    center: Array
    exponent: Array
    belief: Array

    def gradient(self, x0: Array) -> Array:
        return self.slope - per_sample(self.curvature, x0) * (x0 - self.center)

    def __call__(self, x0: Array) -> Array:
        away = x0 - self.center
        return inner(self.slope, away) - 0.5 * self.curvature * inner(away, away)


def _share(residual: Array, whole: Array) -> Array:
    return residual / jnp.maximum(whole, 1e-20)


def _secant_belief(exponents: tuple[Array, Array], gradients: tuple[Array, Array], way: Array) -> Array:
    """(1 − q)₊ of equation (7), from ℓ and ∇ℓ at both ends of `way`."""
    (start, end), slopes = exponents, [inner(gradient, way) for gradient in gradients]
    residual = jnp.abs(end - start - 0.5 * (slopes[0] + slopes[1])) - ROUNDING * (jnp.abs(start) + jnp.abs(end))
    q = _share(jnp.maximum(residual, 0.0), 0.5 * (jnp.abs(slopes[0]) + jnp.abs(slopes[1])))
    return jnp.maximum(1 - q, 0.0)


def _made_good(start: Array, end: Array, claim: Array) -> Array:
    """ρ of equation (7), from ℓ at x̂ and x*, and the rise that is claimed."""
    rise = end - start + ROUNDING * (jnp.abs(start) + jnp.abs(end))
    return jnp.clip(_share(rise, claim), 0.0, 1.0)


def _shortened(tilt: Array, belief: Array) -> Array:
    """`tilt` times b of equation (7), the cube of `belief [b]`."""
    return tilt * per_sample(belief**3, tilt).astype(tilt.dtype)


def _fit(query: Query) -> Fit:
    """By equations (4) and (5)."""
    α, _ = signal_and_noise(query.schedule, query.t, query.x_t)
    here, gradient = exponent_and_gradient(query, query.x_hat)
    Δ, s = _shift(query, gradient)
    there, gradient_there = exponent_and_gradient(query, query.x_hat + Δ)
    change = gradient_there - gradient

    rise = inner(Δ, gradient)
    θ = rise / jnp.maximum(s * rise - inner(Δ, change), 0.5 * s * jnp.abs(rise) + 1e-20)
    θ = per_sample(jnp.clip(θ, 0.0, 2.0 / s), Δ)

    noise = query.x_t - α * query.x_hat
    probe = noise * per_sample(_norm(Δ) / jnp.maximum(_norm(noise), 1e-20), noise)
    beside, gradient_beside = exponent_and_gradient(query, query.x_hat + probe)
    square = jnp.maximum(inner(Δ, Δ), 1e-20)
    κ1 = -inner(Δ, change) / square
    κ2 = -inner(probe, gradient_beside - gradient) / square
    small, large = jnp.minimum(jnp.abs(κ1), jnp.abs(κ2)), jnp.maximum(jnp.abs(κ1), jnp.abs(κ2))
    κ = jnp.where(κ1 * κ2 > 0, jnp.sign(κ1) * small**2 / jnp.maximum(large, 1e-20), 0.0)
    belief = _secant_belief((here, there), (gradient, gradient_there), Δ)
    belief *= _secant_belief((here, beside), (gradient, gradient_beside), probe)
    return Fit(gradient + θ * change, κ, query.x_hat + θ * Δ, here, belief)


def own(query: Query) -> Array:
    """Equation (3) with the slope (6), and the guard (7) of what it knows: ρ, and q over the way from x̂ to x0."""
    if query.x0 is None:
        raise ValueError("estimator 'own' asks for x0, the sample that x_t was made of")
    x0 = query.x0.astype(query.x_hat.dtype)
    here, gradient = exponent_and_gradient(query, query.x_hat)
    sharp, gradient_sharp = exponent_and_gradient(query, x0)
    slope = 0.5 * (gradient + gradient_sharp)
    tilt, s = _shift(query, slope)
    if query.estimate.guard:
        belief = _secant_belief((here, sharp), (gradient, gradient_sharp), x0 - query.x_hat)
        belief *= _made_good(here, query.tilt_exponent(query.x_hat + tilt), s * inner(slope, tilt))
        tilt = _shortened(tilt, belief)
    α, σ = signal_and_noise(query.schedule, query.t, query.x_t)
    return α / σ**2 * tilt


def conjugate(query: Query) -> Array:
    """Equation (3) with the fitted ℓ̃: guarded by (7) at K = 1, and at K > 1 bridged to the truth by N samples."""
    fit = _fit(query)
    t_new, κ = tilted_time(query.schedule, query.t, fit.curvature)
    asked = fit._replace(curvature=κ)  # of the schedule's times
    made = asked._replace(slope=fit.slope * per_sample(_affordable(query, fit.slope, t_new), fit.slope))
    x_new = tilted_point(query.schedule, query.x_t, query.t, t_new, made.gradient(jnp.zeros_like(made.center)))
    tilted = query.denoiser(x_new, t_new)
    tilt = tilted - query.x_hat
    if query.estimate.num_steps > 1:
        tilt = bridged_tilt(query, lambda x0: made(x0), x_new, t_new, tilted)
    elif query.estimate.guard:
        exponent, gradient = exponent_and_gradient(query, tilted)
        claim = asked.gradient(tilted)
        q = _share(_norm(gradient - claim), _norm(claim))
        belief = fit.belief * _made_good(fit.exponent, exponent, made(tilted) - made(query.x_hat)) / (1 + q**2)
        tilt = _shortened(tilt, belief)
    α, σ = signal_and_noise(query.schedule, query.t, query.x_t)
    return α / σ**2 * tilt
