"""Means over a batch of figures that are not known of every sample.

A sample that was dropped (its image or its reward is not finite) has no reward: it must neither count as one of 0
nor spoil the mean of the others.  Where nothing is known of any sample, the mean is nan.
"""

from typing import NamedTuple

import jax.numpy as jnp

from didr_jax.types import Array


class Known(NamedTuple):
    """What is known of a figure in some rows; its leaves may be averaged over micro-batches.

    `mean` over the rows of which it is known (0 if there are none), `total` over all rows with 0 for the others,
    divided by their number, and `share` of the rows of which it is known.
    """

    mean: Array
    total: Array
    share: Array


def measure(values: Array) -> Known:
    """Of `values [b]`, nan where a sample's is not known."""
    known = ~jnp.isnan(values)
    total, count = jnp.sum(jnp.where(known, values, 0)), jnp.sum(known)
    return Known(total / jnp.maximum(count, 1), total / len(values), count / len(values))


def count(known: Known, samples: int) -> Array:
    """Of how many of all `samples` it is known, int32."""
    return jnp.round(known.share * samples).astype(jnp.int32)


def mean(known: Known, samples: int, parts: int) -> Array:
    """The mean over all samples of which it is known, nan if there are none; `parts`: micro-batches that were averaged."""
    n = count(known, samples)
    # Where all are known the mean of the micro-batches' means is exact, and has no rounding of its own.
    value = known.mean if parts == 1 else jnp.where(n == samples, known.mean, known.total / known.share)
    return jnp.where(n > 0, value, jnp.nan)


def told(figures: dict[str, Array], terms: dict[str, Known], samples: int, parts: int) -> dict[str, Array]:
    """Everything that a log has of a step: `figures`, the means of the reward's `terms`, `reward/dropped` (a count)."""
    if not terms:
        return figures
    dropped = samples - count(terms["reward"], samples)
    # Of dropped samples the reward's part is zero: with none left that is not its length, which nobody knows.
    unknown = {name: jnp.where(dropped == samples, jnp.nan, figures[name]) for name in ("pull", "tilt") if name in figures}
    means = {name: mean(term, samples, parts) for name, term in terms.items()}
    return figures | unknown | means | {"reward/dropped": dropped}
