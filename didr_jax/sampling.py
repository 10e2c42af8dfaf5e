"""Short denoising: Φ_K(x_t), K steps of the reference from x_t to a clean sample.

The solver visits t = t_0 > t_1 > … > t_{K−1} (`Schedule.grid`).  At each it asks the denoiser for
x̂0, reads off the noise that explains x_t, and re-noises to the next time:

    x̂0 = x̂(x_t, t)        ε̂ = (x_t − α x̂0) / σ
    x_s = α_s x̂0 + √(σ_s² − τ²) ε̂ + τ z,      z ~ N(0, I)                                     (1)
    τ = η · σ_s √(1 − (α_t σ_s / (α_s σ_t))²)                                                   (2)

η (`stochasticity`) = 0 is DDIM (Song et al., 2021, eq. 12), which for α = 1 − t, σ = t is the Euler
step of the flow; η = 1 has the variance of the exact reverse kernel q(x_s | x_t, x0), i.e. ancestral
sampling.  After the last step x̂0 itself is returned; K = 1 is Tweedie's formula.

The loop is a `lax.scan` whose body is rematerialised, so that the memory of its gradient holds one
step's activations and K copies of x, whatever K is.  XLA on the CPU runs convolutions inside a while
loop many times slower than outside: pass `unroll=True` there.  (Laid out flat, XLA on the CPU merges the
recomputation with the first computation, so that memory grows with K again.)
"""

import jax
import jax.numpy as jnp

from didr_jax import keys
from didr_jax.diffusion import signal_and_noise
from didr_jax.schedules import Schedule
from didr_jax.types import Array, Denoiser, PRNGKey


def renoise(schedule: Schedule, x0: Array, x_t: Array, t: Array, s: Array, noise: Array | None, stochasticity: float) -> Array:
    """One step of equation (1), from time `t [b]` to the cleaner `s [b]`."""
    α, σ = signal_and_noise(schedule, t, x_t)
    α_s, σ_s = signal_and_noise(schedule, s, x_t)
    eps = (x_t - α * x0) / σ
    if noise is None:
        return α_s * x0 + σ_s * eps
    ratio = α * σ_s / (α_s * σ)
    τ = stochasticity * σ_s * jnp.sqrt(jnp.clip(1 - ratio**2, 0, None))
    return α_s * x0 + jnp.sqrt(jnp.clip(σ_s**2 - τ**2, 0, None)) * eps + τ * noise


def denoise(
    denoiser: Denoiser,
    schedule: Schedule,
    x_t: Array,
    t: Array,
    *,
    num_steps: int,
    key: PRNGKey | None = None,
    stochasticity: float = 0.0,
    x0_hat: Array | None = None,
    remat: bool = True,
    unroll: bool = False,
) -> Array:
    """Φ_K: a clean sample from `x_t` in `num_steps` evaluations of the denoiser.

    Args:
      denoiser: `(x_t [b, ...], t [b]) -> x̂0 [b, ...]`.
      schedule: the noise schedule of `x_t`.
      x_t: `[b, ...]`, at times `t [b]` (σ(t) > 0).
      num_steps: K ≥ 1.
      key: randomness of the stochastic steps, one key or `[b]`, one for each row; needed if `stochasticity` > 0.
      stochasticity: η ≥ 0 of equation (2): 0 deterministic, 1 ancestral.
      x0_hat: the denoiser's answer at (x_t, t) if it is known already; saves one evaluation.
      remat: recompute each step in the backward pass instead of storing its activations.
      unroll: lay the steps out flat instead of looping.

    Returns:
      x̃0 `[b, ...]`, differentiable with respect to `x_t` and whatever the denoiser closes over.

    Raises:
      ValueError: K < 1, η < 0, or η > 0 without a key.

    Data at ±1 has the posterior mean tanh(α x_t/σ²).  K = 1 answers with it; more steps arrive at one of the two.

    >>> from didr_jax.schedules import rectified_flow
    >>> flow, x_t, t = rectified_flow(), jnp.array([0.5]), jnp.array([0.75])
    >>> denoiser = lambda x_t, t: jnp.tanh(flow.alpha(t) * x_t / flow.sigma(t) ** 2)
    >>> for k in (1, 4):
    ...     print(f"{denoise(denoiser, flow, x_t, t, num_steps=k).item():.2f}")
    0.22
    1.00
    """
    if num_steps < 1:
        raise ValueError(f"denoise: num_steps must be at least 1, got {num_steps}")
    if stochasticity < 0:
        raise ValueError(f"denoise: stochasticity must not be negative, got {stochasticity}")
    stochastic = stochasticity > 0
    if stochastic and key is None and num_steps > 1:
        raise ValueError("denoise: stochasticity > 0 needs a key")

    if num_steps == 1:
        return denoiser(x_t, t) if x0_hat is None else x0_hat
    evaluate = jax.checkpoint(denoiser) if remat else denoiser
    x0 = evaluate(x_t, t) if x0_hat is None else x0_hat

    times = schedule.grid(t, num_steps)

    def step(carry, inputs):
        x, x0 = carry
        now, after, step_key = inputs
        noise = keys.normal(step_key, x) if stochastic else None
        x = renoise(schedule, x0, x, now, after, noise, stochasticity).astype(x.dtype)
        return (x, denoiser(x, after).astype(x0.dtype)), None

    step_keys = keys.split(key, num_steps - 1) if stochastic and key is not None else None
    body = jax.checkpoint(step, prevent_cse=unroll) if remat else step
    (_, x0), _ = jax.lax.scan(body, (x_t, x0), (times[:-1], times[1:], step_keys), unroll=num_steps - 1 if unroll else 1)
    return x0
