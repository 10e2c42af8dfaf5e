"""Generators of one to a few steps: how they sample, and how one of their steps is trained on its own input.

A generator is one network evaluated at fixed times τ_1 > … > τ_n.  From unit noises z_1, …, z_n:

    x_1 = z_1          x0_i = g(x_i, τ_i)          x_{i+1} = α(τ_{i+1}) x0_i + σ(τ_{i+1}) e_i     (1)

    renoise   e_i = z_{i+1}                                    fresh noise: DMD2 (arXiv 2405.14867), LCM
    ode       e_i = (x_i − α(τ_i) x0_i) / σ(τ_i)               the noise that explains x_i: DDIM, Euler

The sample is x0_n.  Training draws i uniformly, makes x_i with the current generator as sampling would
(back-simulation, DMD2 §4.5: no gap between training and use), and differentiates the i-th evaluation
alone.  One i serves the whole batch: only the steps before it are computed, and none where n = 1.

Which noise levels x0_i is compared with the reference at matters.  One TA for all steps, at all levels,
learns the *mixture* of the laws of x0_1 … x0_n, and a divergence between that mixture and the reference has
minimisers with no x0_i right: early ones too smooth, late ones too rough.  Let instead step i be diffused
only to its own segment of levels

    t ∈ (τ_{i+1}, τ_i],      τ_{n+1} = 0, and the first segment open above                       (2)

(as TDM does for distillation, arXiv 2503.06674).  Then t tells the TA which step it sees, and levels add up: if
the diffused law of x0_i is the target's on segment i, the input x_{i+1} is right, at level τ_{i+1}, for
the next step to be right further down, and the last one at t → 0.
"""

import dataclasses
from collections.abc import Callable

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
        if any(s >= t for t, s in zip(self.times, self.times[1:], strict=False)):
            raise ValueError(f"the times of a generator's steps must decrease, got {self.times}")
        if not all(low < t <= high for t in self.times):
            raise ValueError(f"the {self.schedule.name} schedule has noise at times in ({low}, {high}], got {self.times}")
        if self.solver not in SOLVERS:
            raise ValueError(f"unknown solver {self.solver!r}; choose one of {', '.join(SOLVERS)}")

    @classmethod
    def even(cls, schedule: Schedule, first: float, num_steps: int, solver: str = "renoise") -> "FewStep":
        """`num_steps` times from `first` on, as a solver would visit them (`Schedule.grid`).

        >>> from didr_jax.schedules import rectified_flow
        >>> print(FewStep.even(rectified_flow(shift=3.0), first=1.0, num_steps=4))
        4 steps at times 1, 0.9, 0.75, 0.5 (renoise)
        """
        if not 1 <= num_steps <= MAX_STEPS:
            raise ValueError(f"a generator has 1 to {MAX_STEPS} steps, got {num_steps}")
        with jax.ensure_compile_time_eval():  # numbers, also where a program is being traced
            times = np.asarray(schedule.grid(jnp.asarray(first), num_steps)).tolist()
        return cls(schedule, tuple(times), solver)

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

    def draw(self, key: PRNGKey) -> Array:
        """The step to train, a scalar in [0, n)."""
        return jax.random.randint(key, (), 0, len(self.times))

    def segment(self, i: Array, low: float, high: float) -> tuple[Array, Array]:
        """The part of the noise levels [low, high] that step i is compared at, equation (2)."""
        inner = jnp.clip(jnp.asarray(self.times[1:], jnp.float32), low, high)
        edges = jnp.concatenate([jnp.full(1, high), inner, jnp.full(1, low)])
        return edges[i + 1], edges[i]

    def train(self, network: Network, params: PyTree, z: Array, i: Array) -> Array:
        """x0_i `[b, *event]` of step i; its gradient is that of the i-th evaluation alone."""
        return self._run(network, params, z, i)

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
