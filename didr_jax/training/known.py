"""Means over a batch of figures that are not known of every sample.

A sample that was dropped (its image or its reward is not finite) has no reward: it must neither count as one of 0
nor spoil the mean of the others.  Where nothing is known of any sample, the mean is nan.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from didr_jax.training.flops import SELDOM
from didr_jax.types import Array, PyTree

MEASURED = "reward/measured"  # of the figures of a step: whether its reward was


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


def seldom(due: Array, read: Callable[[], PyTree]) -> PyTree:
    """What `read` returns where `due`, nan elsewhere, where nothing is computed."""
    shapes = jax.eval_shape(read)
    with jax.named_scope(SELDOM):
        return jax.lax.cond(due, read, lambda: jax.tree.map(lambda a: jnp.full(a.shape, jnp.nan, a.dtype), shapes))


def unheard(aux: Mapping[str, Array]) -> Array:
    """Whether the reward has no finite part in the gradient of any sample, by the lengths `[b]` of `objectives`; False where an
    objective has no `pull`."""
    if "pull" not in aux:
        return jnp.asarray(False)
    least = 1e-6 * aux["divergence"] if "divergence" in aux else 0.0
    return ~jnp.any(aux["pull"] > least)  # a length that is not finite is none


def told(
    figures: dict[str, Array], terms: dict[str, Known], samples: int, parts: int, due: Array | None, silent: Array
) -> tuple[dict[str, Array], Array]:
    """Everything that a log has of a step: `figures`, the means of the reward's `terms`, `reward/dropped` (a count); and
    whether it is a bad step, in which no sample has a reward.

    Args:
      figures: means over the samples.
      terms: of the reward.
      samples, parts: of the step; micro-batches that were averaged.
      due: whether the terms were measured for the log; None: at every step.
      silent: whether the reward was `unheard` in all micro-batches: then they were measured in any case.
    """
    if not terms:
        return figures, jnp.asarray(False)
    measured = jnp.asarray(True) if due is None else due | silent
    dropped = jnp.where(measured, samples - count(terms["reward"], samples), 0)
    none = dropped == samples
    # Of dropped samples the reward's part is zero: with none left that is not its length, which nobody knows.
    unknown = {name: jnp.where(none, jnp.nan, figures[name]) for name in ("pull", "tilt") if name in figures}
    means = {name: mean(term, samples, parts) for name, term in terms.items()}
    flag = {} if due is None else {MEASURED: measured}
    return figures | unknown | means | {"reward/dropped": dropped} | flag, none & silent


def of_this_step(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """On the host: the figures that were measured."""
    if metrics.get(MEASURED, True):
        return {name: value for name, value in metrics.items() if name != MEASURED}
    return {name: value for name, value in metrics.items() if name.split("/")[0] != "reward"}
