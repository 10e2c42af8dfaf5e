"""Mean and covariance of features over any number of batches, devices, processes and restarts.

On the devices a `State` holds, for features f and a shift s near their mean,

    Σ (f − s)   and   Σ (f − s)(f − s)ᵀ                                               (1)

each batch's part in float32 at full product precision, and their running sums in *two* float32 (Knuth's two-sum), so that
the fiftieth thousand is added as exactly as the first.  The shift, the mean of the first batch, keeps (1) as small as the
scatter itself: without it features far from zero would lose their covariance to rounding.  `Moments` are the same in
float64 on the host, and merge by Chan, Golub & LeVeque (1979):

    n = n_a + n_b,   δ = μ_b − μ_a,   S = S_a + S_b + δδᵀ n_a n_b / n                 (2)
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from didr_jax.types import Array, InputError


@dataclasses.dataclass(frozen=True)
class Moments:
    """Of `count` features: their `mean [d]` and `scatter [d, d]` = Σ (f − mean)(f − mean)ᵀ, float64."""

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> "Moments":
        """Of features `[n, d]` on the host."""
        features = np.asarray(features, np.float64)
        centred = features - features.mean(axis=0)
        return cls(len(features), features.mean(axis=0), centred.T @ centred)

    def merge(self, other: "Moments") -> "Moments":
        """Of both together (2)."""
        if not self.count or not other.count:
            return self if self.count else other
        n, delta = self.count + other.count, other.mean - self.mean
        between = np.outer(delta, delta) * (self.count / n * other.count)
        return Moments(n, self.mean + delta * (other.count / n), self.scatter + other.scatter + between)

    def covariance(self, ddof: int = 1) -> np.ndarray:
        """`scatter / (count − ddof)`."""
        if self.count <= ddof:
            raise InputError(f"a covariance needs more than {ddof} pictures, there are {self.count}")
        return self.scatter / (self.count - ddof)


class State(NamedTuple):
    """Sums (1) on the devices; `low` parts are what the `high` parts rounded off."""

    seen: Array  # how many features, int32
    shift: Array  # [d]
    total: tuple[Array, Array]  # high and low, [d]
    scatter: tuple[Array, Array]  # high and low, [d, d]


def empty(width: int) -> State:
    """The sums of no features `[0, width]`."""
    vector, matrix = jnp.zeros(width), jnp.zeros((width, width))
    return State(jnp.zeros((), jnp.int32), vector, (vector, vector), (matrix, matrix))


def add(state: State, features: Array, mask: Array | None = None) -> State:
    """Adds features `[b, d]`, all or where `mask [b]`; pure, for use inside a jitted step."""
    features = features.astype(jnp.float32)
    kept = jnp.ones(len(features), bool) if mask is None else mask
    count = jnp.sum(kept, dtype=jnp.int32)
    weight = kept.astype(jnp.float32)[:, None]
    first = jnp.sum(jnp.where(weight > 0, features, 0), axis=0) / jnp.maximum(count, 1)
    shift = jnp.where(state.seen == 0, first, state.shift)
    shifted = jnp.where(weight > 0, features - shift, 0)
    scatter = jnp.einsum("bi,bj->ij", shifted, shifted, precision=jax.lax.Precision.HIGHEST)
    return State(
        state.seen + count, shift, _add(*state.total, jnp.sum(shifted, axis=0)), _add(*state.scatter, scatter)
    )  # fmt: skip


def _add(high: Array, low: Array, x: Array) -> tuple[Array, Array]:
    """(high + low) + x, where the sum's rounding error goes to low."""
    total = high + x
    back = total - high
    return total, low + ((high - (total - back)) + (x - back))


def finish(state: State) -> Moments:
    """The sums as moments, on the host."""
    seen, shift, total, scatter = jax.tree.map(lambda x: np.asarray(x, np.float64), state)
    n = int(seen)
    total, scatter = total[0] + total[1], scatter[0] + scatter[1]
    return Moments(n, shift + total / max(n, 1), scatter - np.outer(total, total) / max(n, 1))


def across_processes(moments: Moments) -> Moments:
    """Of what all processes measured, each its own pictures; every process gets the same."""
    if jax.process_count() == 1:
        return moments
    from jax.experimental import multihost_utils

    flat = np.concatenate([[moments.count], moments.mean, moments.scatter.ravel()])
    # As bits: JAX would round float64 to float32 on the way.
    rows = np.ascontiguousarray(multihost_utils.process_allgather(flat.view(np.uint32))).view(np.float64)
    d = len(moments.mean)
    parts = [Moments(int(row[0]), row[1 : d + 1], row[d + 1 :].reshape(d, d)) for row in rows]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    return merged
