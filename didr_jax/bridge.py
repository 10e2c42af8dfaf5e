"""From a surrogate of the tilt to the tilt itself, by samples of both posteriors: the bridge estimator.

p0 = p(x0 | x_t) has the known mean x̂, and p1 ∝ p0 exp ℓ̃, the posterior at another noisy point (`conjugate` 2), the
known mean x̂'.  Of N short denoisings n0 begin at the first point and n1 at the second; together they are draws of the
mixture, whose density relative to p0 is

    m(x0) = (n0 + n1 exp(ℓ̃(x0) − c)) / N,    c = log E_p0[exp ℓ̃]                                  (1)

with c by Bennett's acceptance ratio, the root of Σ_i u1_i = N (Bennett, 1976; Shirts and Chodera, 2008: MBAR of two states):

    u0 = 1/m      u1 = exp(ℓ̃ − c)/m      w ∝ exp(ℓ)/m                                              (2)

are the weights of p0, p1 and the tilted posterior p* on these samples.  u0 and u1 have means that are known, so they are
control variates: with w explained by (1 − b) u0 + b u1, b by least squares, in [0, 1],

    E_p*[x0] − x̂ ≈ b (x̂' − x̂) + Σ_i (w_i − ((1 − b) u0_i + b u1_i)/N)(x0_i − x̂)                   (3)

which is consistent as N and K grow, whatever ℓ and ℓ̃ are; is exact if ℓ̃ = ℓ up to a constant; and never weighs by
exp(ℓ − ℓ̃) alone, so that a bad surrogate costs no more than half of the samples.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from didr_jax import keys
from didr_jax.estimators import Query, posterior_samples, weighted_sum
from didr_jax.types import Array

HALVINGS = 40


def log_normaliser(surrogate: Array, n0: int, n1: int) -> Array:
    """c `[b]` of equation (1), from ℓ̃ `[N, b]` of n0 samples of p0 and n1 of p1, by bisection.

    The tilt by ℓ̃ = x of N(0, 1) is N(1, 1), and c = ½:

    >>> z = jax.random.normal(jax.random.key(0), (4000, 1))
    >>> print(f"{log_normaliser(z + jnp.repeat(jnp.array([[0.0], [1.0]]), 2000, 0), 2000, 2000).item():.1f}")
    0.5
    """
    log_odds = jnp.log(n1 / n0)

    def halve(_, bounds):
        low, high = bounds
        c = (low + high) / 2
        too_low = jnp.mean(jax.nn.sigmoid(surrogate - c + log_odds), axis=0) > n1 / (n0 + n1)  # of n1 u1 / N
        return jnp.where(too_low, c, low), jnp.where(too_low, high, c)

    bounds = surrogate.min(0) - 1.0, surrogate.max(0) + 1.0
    return sum(jax.lax.fori_loop(0, HALVINGS, halve, bounds)) / 2


def bridged_tilt(query: Query, surrogate: Callable[[Array], Array], x_new: Array, t_new: Array, tilted: Array) -> Array:
    """Equation (3) `[b, ...]`.

    Args:
      query: what is asked; `estimate.num_samples` is N, of which the larger half begins at (x', t').
      surrogate: ℓ̃, `x0 [b, ...] -> [b]`.
      x_new, t_new: (x', t').
      tilted: x̂' `[b, ...]`.
    """
    num = query.estimate.num_samples
    n0 = num // 2
    if n0 == 0:  # one sample has nothing to be compared with
        return tilted - query.x_hat
    halves = []
    assert query.key is not None, "an estimator that samples is given a key"
    for key, n, x, t, x_hat in zip(
        keys.split(query.key, 2), (n0, num - n0), (query.x_t, x_new), (query.t, t_new), (query.x_hat, tilted), strict=True
    ):
        part = query._replace(key=key, estimate=query.estimate.with_samples(n))
        halves.append(posterior_samples(part, x, t, x_hat))
    samples, exponents = (jnp.concatenate(both) for both in zip(*halves, strict=True))
    guesses = jax.vmap(surrogate)(samples)
    lifted = guesses - log_normaliser(guesses, n0, num - n0)
    log_m = jnp.logaddexp(jnp.log(n0 / num), jnp.log((num - n0) / num) + lifted)
    u0, u1 = jnp.exp(-log_m) / num, jnp.exp(lifted - log_m) / num
    w = jax.nn.softmax(exponents - log_m, axis=0)
    b = jnp.sum((w - u0) * (u1 - u0), axis=0) / jnp.maximum(jnp.sum((u1 - u0) ** 2, axis=0), 1e-20)
    b = jnp.clip(b, 0.0, 1.0)
    known = b.reshape(b.shape + (1,) * (tilted.ndim - 1)) * (tilted - query.x_hat)
    return known + weighted_sum(w - (1 - b) * u0 - b * u1, samples - query.x_hat)
