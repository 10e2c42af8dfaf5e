"""Noise schedules: how much signal and how much noise `x_t` holds at time t.

    x_t = α(t) x0 + σ(t) ε,      ε ~ N(0, I)                                                    (1)

A schedule is the pair (α, σ) with the interval [t_min, t_max] on which it is defined, t_min being
the cleanest time.  Nothing else of a model enters: the prediction type is `diffusion`'s matter and
the network's own notion of time belongs to whoever wraps the network.

    schedule            time                     α(t)             σ(t)
    cosine()            t ∈ [0, 1]               cos(πt/2)        sin(πt/2)
    ddpm()              t = timestep/N ∈ [0, 1)  √ᾱ               √(1 − ᾱ)
    rectified_flow(s)   t ∈ [0, 1]               1 − t            t

Samplers step uniformly in u ∈ [0, 1] where t = warp(u).  For a flow with shift s (Esser et al.,
2024, eq. 23) this is t = s·u / (1 + (s − 1)u), so that 4 steps of a shift-3 flow visit
t = 1, .9, .75, .5; for the others warp is the identity.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from didr_jax.types import Array


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A noise schedule.

    Attributes:
      name: what messages call it.
      alpha, sigma: `t [b] -> [b]`, signal and noise level of equation (1).
      t_min, t_max: the cleanest and the noisiest time, inclusive.
      warp, unwarp: `u -> t` and back, from uniform solver time to t.
      num_timesteps: N of a discrete schedule; None where time is continuous.
    """

    name: str
    alpha: Callable[[Array], Array]
    sigma: Callable[[Array], Array]
    t_min: float = 0.0
    t_max: float = 1.0
    warp: Callable[[Array], Array] = lambda u: u
    unwarp: Callable[[Array], Array] = lambda t: t
    num_timesteps: int | None = None

    def timestep(self, t: Array) -> Array:
        """The integer timestep (int32) nearest to `t`, which a network of a discrete schedule wants."""
        if self.num_timesteps is None:
            raise TypeError(f"{self.name} has continuous time; only a discrete schedule has timesteps")
        steps = jnp.round(jnp.asarray(t) * self.num_timesteps).astype(jnp.int32)
        return jnp.clip(steps, 0, self.num_timesteps - 1)

    def snap(self, t: Array) -> Array:
        """`t` moved to the nearest time that the schedule was trained at; itself if continuous."""
        t = jnp.asarray(t, jnp.float32)
        return t if self.num_timesteps is None else self.timestep(t) / self.num_timesteps

    def grid(self, t: Array, num_steps: int) -> Array:
        """The times `[num_steps, ...]` that a solver visits on its way from `t` to clean data.

        They begin at `t`, decrease uniformly in u = unwarp(t), and leave out the end u = 0, where
        the last prediction x̂0 is taken as it is.
        """
        t = jnp.asarray(t, jnp.float32)
        fractions = 1 - jnp.arange(1, num_steps) / num_steps
        rest = self.warp(self.unwarp(t) * fractions.reshape((-1,) + (1,) * t.ndim))
        return jnp.concatenate([t[None], self.snap(rest)])


def cosine() -> Schedule:
    """Variance-preserving cosine schedule (Nichol & Dhariwal, 2021, without offset)."""
    return Schedule(
        name="cosine",
        alpha=lambda t: jnp.cos(jnp.pi / 2 * t),
        sigma=lambda t: jnp.sin(jnp.pi / 2 * t),
    )


def ddpm(num_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> Schedule:
    """The discrete variance-preserving schedule of Stable Diffusion and SDXL (β linear in its root).

    Time is t = timestep / num_timesteps, so `t_max` is .999 for 1000 steps.  At timestep 399
    ᾱ = .42609.  Between timesteps log ᾱ is linear, which keeps α smooth and exact on the grid.

    >>> print(f"{ddpm().alpha(0.399) ** 2:.5f}")
    0.42609
    """
    beta = np.linspace(beta_start**0.5, beta_end**0.5, num_timesteps, dtype=np.float64) ** 2
    log_abar = np.cumsum(np.log1p(-beta))

    def log_alpha_bar(t):
        return jnp.interp(jnp.asarray(t) * num_timesteps, jnp.arange(num_timesteps), log_abar)

    return Schedule(
        name="ddpm",
        alpha=lambda t: jnp.exp(0.5 * log_alpha_bar(t)),
        sigma=lambda t: jnp.sqrt(-jnp.expm1(log_alpha_bar(t))),
        t_max=(num_timesteps - 1) / num_timesteps,
        num_timesteps=num_timesteps,
    )


def rectified_flow(shift: float = 1.0) -> Schedule:
    """Straight paths from data to noise (Liu et al., 2023); `shift` > 1 spends steps at high noise.

    >>> print(rectified_flow(shift=3.0).grid(jnp.array(1.0), num_steps=4).round(2))
    [1.   0.9  0.75 0.5 ]
    """
    if shift <= 0:
        raise ValueError(f"rectified_flow: shift must be positive, got {shift}")
    return Schedule(
        name="rectified_flow",
        alpha=lambda t: 1.0 - t,
        sigma=lambda t: 1.0 * t,
        warp=lambda u: shift * u / (1 + (shift - 1) * u),
        unwarp=lambda t: t / (shift - (shift - 1) * t),
    )


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "cosine": cosine,
    "ddpm": ddpm,
    "rectified_flow": rectified_flow,
}
