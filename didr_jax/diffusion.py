"""Adding noise, and translating between the things that a diffusion network may predict.

With x_t = α x0 + σ ε (α, σ of `schedules`), every prediction in use is linear in (x0, x_t), so that

    x̂0 = c·x_t + d·p       and back       p = (x̂0 − c·x_t) / d                                 (1)

    prediction p                          c              d
    x0                                    0              1
    eps       ε                           1/α            −σ/α
    v         α ε − σ x0                  α/(α² + σ²)    −σ/(α² + σ²)
    velocity  ε − x0                      1/(α + σ)      −σ/(α + σ)
    score     −ε/σ = ∇ log q(x_t | x0)    1/α            σ²/α

An error of p is an error of x̂0 divided by d:  mean-squared error in p = (1/d²)·mse in x0    (2)
so the "ε loss", "v loss", … are one loss on x̂0 with different weights.
"""

from collections.abc import Callable

import jax.numpy as jnp

from didr_jax.schedules import Schedule
from didr_jax.types import Array, Denoiser

# prediction -> (c(α, σ), d(α, σ)) of equation (1)
PREDICTIONS: dict[str, Callable[[Array, Array], tuple[Array, Array]]] = {
    "x0": lambda α, σ: (jnp.zeros_like(α), jnp.ones_like(α)),
    "eps": lambda α, σ: (1 / α, -σ / α),
    "v": lambda α, σ: (α / (α**2 + σ**2), -σ / (α**2 + σ**2)),
    "velocity": lambda α, σ: (1 / (α + σ), -σ / (α + σ)),
    "score": lambda α, σ: (1 / α, σ**2 / α),
}


def per_sample(values: Array, like: Array) -> Array:
    """`values [b]` with trailing axes of length one, to be multiplied with `like [b, ...]`."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def signal_and_noise(schedule: Schedule, t: Array, like: Array) -> tuple[Array, Array]:
    """α(t) and σ(t) for `t [b]`, shaped to be multiplied with `like [b, ...]`."""
    return per_sample(schedule.alpha(t), like), per_sample(schedule.sigma(t), like)


def add_noise(schedule: Schedule, x0: Array, noise: Array, t: Array) -> Array:
    """x_t = α x0 + σ ε for `x0, noise [b, ...]` and `t [b]`.

    >>> from didr_jax.schedules import rectified_flow
    >>> x0, noise = jnp.array([[4.0, 4.0], [4.0, 4.0]]), jnp.array([[0.0, 8.0], [0.0, 8.0]])
    >>> print(add_noise(rectified_flow(), x0, noise, jnp.array([0.25, 0.75])))  # α = 1 − t, σ = t
    [[3. 5.]
     [1. 7.]]
    """
    α, σ = signal_and_noise(schedule, t, x0)
    return α * x0 + σ * noise


def _coefficients(kind: str, schedule: Schedule, t: Array, like: Array) -> tuple[Array, Array]:
    if kind not in PREDICTIONS:
        raise ValueError(f"unknown prediction {kind!r}; known: {', '.join(PREDICTIONS)}")
    return PREDICTIONS[kind](*signal_and_noise(schedule, t, like))


def to_x0(kind: str, prediction: Array, x_t: Array, t: Array, schedule: Schedule) -> Array:
    """x̂0 `[b, ...]` from a prediction of the given kind, equation (1).

    >>> from didr_jax.schedules import rectified_flow
    >>> x0, noise, t = jnp.array([[4.0, 2.0]]), jnp.array([[0.0, 8.0]]), jnp.array([0.5])
    >>> x_t = add_noise(rectified_flow(), x0, noise, t)
    >>> print(to_x0("velocity", noise - x0, x_t, t, rectified_flow()))
    [[4. 2.]]
    >>> print(to_x0("eps", noise, x_t, t, rectified_flow()))
    [[4. 2.]]
    """
    c, d = _coefficients(kind, schedule, t, x_t)
    return c * x_t + d * prediction


def from_x0(kind: str, x0: Array, x_t: Array, t: Array, schedule: Schedule) -> Array:
    """The prediction of the given kind that says the same as x̂0.  Undefined where σ = 0."""
    c, d = _coefficients(kind, schedule, t, x_t)
    return (x0 - c * x_t) / d


def prediction_weight(kind: str, schedule: Schedule, t: Array) -> Array:
    """1/d² `[b]` of equation (2): what turns an x0-error into an error of `kind`."""
    _, d = _coefficients(kind, schedule, t, t)
    return 1 / d**2


def denoiser_from(network: Callable[[Array, Array], Array], kind: str, schedule: Schedule) -> Denoiser:
    """The denoiser `(x_t, t) -> x̂0` of a network `(x_t, t) -> prediction of kind`."""
    return lambda x_t, t: to_x0(kind, network(x_t, t), x_t, t, schedule)


def guide(x0_cond: Array, x0_uncond: Array, scale: float) -> Array:
    """Classifier-free guidance x̂_u + w (x̂_c − x̂_u) (Ho & Salimans, 2022); w = 1 is x̂_c.

    Guidance commutes with (1), so guiding x̂0, ε or the velocity is the same thing.

    >>> print(guide(jnp.array([3.0]), jnp.array([2.0]), scale=8.0))
    [10.]
    """
    return x0_uncond + scale * (x0_cond - x0_uncond)
