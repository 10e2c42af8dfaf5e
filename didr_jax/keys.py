"""Randomness of a batch: all of it from one key, or row by row from a key for each row.

What is drawn row by row is the same whatever other rows are drawn beside it: in one batch, in micro-batches,
on one device or on many.
"""

import jax
import jax.numpy as jnp

from didr_jax.types import Array, PRNGKey


def split(key: PRNGKey, num: int) -> PRNGKey:
    """`num` keys from one, `[num]`; or for each of b rows, `[num, b]` from `[b]`."""
    if key.ndim == 0:
        return jax.random.split(key, num)
    return jnp.swapaxes(jax.vmap(lambda key: jax.random.split(key, num))(key), 0, 1)


def normal(key: PRNGKey, like: Array) -> Array:
    """Unit noise of the shape and type of `like [b, ...]`, from one key or from keys `[b]`."""
    if key.ndim == 0:
        return jax.random.normal(key, like.shape, like.dtype)
    return jax.vmap(lambda key: jax.random.normal(key, like.shape[1:], like.dtype))(key)
