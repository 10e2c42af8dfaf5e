"""A batch in micro-batches, one after the other: the numbers of the whole at the memory of a part."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from didr_jax.training.parallel import shard_rows
from didr_jax.types import PyTree


def over_micro_batches(means: Callable, rows: PyTree, parts: int, unroll: bool = False) -> PyTree:
    """The mean of `means(rows_i)` over `parts` equal micro-batches of `rows` `[b, ...]`.

    For a function that returns means over its rows (gradients of a mean loss, say) this is its value on
    the whole batch, at the memory of a micro-batch.  Sums are kept in float32.  Micro-batch i takes every
    `parts`-th row from the i-th on, so that each device keeps its own rows.
    """
    return with_rows(lambda rows: (means(rows), ()), rows, parts, unroll)[0]


def with_rows(function: Callable, rows: PyTree, parts: int, unroll: bool = False) -> tuple[PyTree, PyTree]:
    """`over_micro_batches` for `rows_i -> (means, values of each row)`: the mean of the ones, and the others `[b, ...]`."""
    rows = shard_rows(rows)
    if parts == 1:
        return function(rows)
    split = lambda x: jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)
    join = lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])
    rows = shard_rows(jax.tree.map(split, rows), axis=1)
    out, _ = jax.eval_shape(lambda rows: function(jax.tree.map(lambda x: x[0], rows)), rows)

    def add(total, part):
        new, each = function(part)
        return jax.tree.map(lambda t, n: t + n.astype(t.dtype) / parts, total, new), each

    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.promote_types(a.dtype, jnp.float32)), out)
    total, each = jax.lax.scan(add, zeros, rows, unroll=parts if unroll else 1)
    return jax.tree.map(lambda t, a: t.astype(a.dtype), total, out), shard_rows(jax.tree.map(join, each))
