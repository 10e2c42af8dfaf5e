"""Generators of one to a few steps: how they sample, and how one of their steps is trained on its own input.

A generator is one network evaluated at fixed times τ_1 > … > τ_n.  From unit noises z_1, …, z_n:

    x_1 = z_1          x0_i = g(x_i, τ_i)          x_{i+1} = α(τ_{i+1}) x0_i + σ(τ_{i+1}) e_i     (1)

    renoise   e_i = z_{i+1}                                    fresh noise: DMD2 (arXiv 2405.14867), LCM
    ode       e_i = (x_i − α(τ_i) x0_i) / σ(τ_i)               the noise that explains x_i: DDIM, Euler

The sample is x0_n.  Every x0_i shall follow the data's law, so training draws i uniformly, makes x_i with
the current generator as sampling would (back-simulation, DMD2 §4.5: no gap between training and use),
and differentiates the i-th evaluation alone.  One i serves the whole batch: only the steps before it are
computed, and none where n = 1.
"""

import dataclasses
from typing import Callable

import jax
import jax.numpy as jnp
import numpy as np

from didr_jax.diffusion import signal_and_noise
from didr_jax.schedules import Schedule
from didr_jax.types import Array, PRNGKey, PyTree

SOLVERS = ("renoise", "ode")
MAX_STEPS = 8

Network = Callable[[PyTree, Array, Array], Array]  # (params, x_t [b, ...], t [b]) -> x̂0 [b, ...]


@dataclasses.dataclass(frozen=True)
class FewStep:
    """The steps of a generator.

    Attributes:
      schedule: the noise schedule of its inputs.
      times: τ_1 > … > τ_n, n from 1 to 8.
      solver: "renoise" or "ode", equation (1); without meaning where n = 1.

    Raises:
      ValueError: no or more than 8 times, times that do not decrease or leave the schedule, unknown solver.
    """

    schedule: Schedule
    times: tuple[float, ...]
    solver: str = "renoise"

    def __post_init__(self):
        low, high = self.schedule.t_min, self.schedule.t_max
        if not 1 <= len(self.times) <= MAX_STEPS:
            raise ValueError(f"a generator has 1 to {MAX_STEPS} steps, got {len(self.times)}")
        if any(s >= t for t, s in zip(self.times, self.times[1:])):
            raise ValueError(f"the times of a generator's steps must decrease, got {self.times}")
        if not all(low < t <= high for t in self.times):
            raise ValueError(f"the {self.schedule.name} schedule has noise at times in ({low}, {high}], got {self.times}")
        if self.solver not in SOLVERS:
            raise ValueError(f"unknown solver {self.solver!r}; choose one of {', '.join(SOLVERS)}")

    @classmethod
    def even(cls, schedule: Schedule, first: float, num_steps: int, solver: str = "renoise") -> "FewStep":
        """`num_steps` times from `first` on, as a solver would visit them (`Schedule.grid`)."""
        if not 1 <= num_steps <= MAX_STEPS:
            raise ValueError(f"a generator has 1 to {MAX_STEPS} steps, got {num_steps}")
        return cls(schedule, tuple(np.asarray(schedule.grid(first, num_steps)).tolist()), solver)

    @property
    def label(self) -> str:
        """What tables call a generator of this many steps."""
        n = len(self.times)
        return "one step" if n == 1 else f"{n} steps"

    def __str__(self) -> str:
        times = ", ".join(f"{t:.4g}" for t in self.times)
        return f"{self.label} at time{'s' * (len(self.times) > 1)} {times}" + f" ({self.solver})" * (len(self.times) > 1)

    def noise_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the unit noise z that one sample is made from: n noises in one array, or a plain one where n = 1."""
        n = len(self.times)
        return tuple(event_shape) if n == 1 else (n, *event_shape)

    def sample(self, network: Network, params: PyTree, z: Array) -> Array:
        """x0_n `[b, *event]` from unit noise z `[b, *noise_shape]`."""
        return self._run(network, params, z, len(self.times) - 1)

    def train(self, network: Network, params: PyTree, z: Array, key: PRNGKey) -> Array:
        """x0_i `[b, *event]` of a step i drawn from `key`; its gradient is that of the i-th evaluation alone."""
        n = len(self.times)
        return self._run(network, params, z, 0 if n == 1 else jax.random.randint(key, (), 0, n))

    def _run(self, network: Network, params: PyTree, z: Array, last) -> Array:
        if len(self.times) == 1:
            return network(params, z, self._at(0, z))
        fixed = jax.lax.stop_gradient(params)

        def advance(i, x):
            t, s = self._at(i, z), self._at(i + 1, z)
            α, σ = signal_and_noise(self.schedule, t, x)
            α_s, σ_s = signal_and_noise(self.schedule, s, x)
            x0 = network(fixed, x, t)
            noise = z[:, i + 1] if self.solver == "renoise" else (x - α * x0) / σ
            return (α_s * x0 + σ_s * noise).astype(x.dtype)

        x = jax.lax.stop_gradient(jax.lax.fori_loop(0, last, advance, z[:, 0]))
        return network(params, x, self._at(last, z))

    def _at(self, i, z: Array) -> Array:
        return jnp.full(z.shape[0], jnp.asarray(self.times, jnp.float32)[i])
