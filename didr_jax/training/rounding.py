"""Stochastic rounding to bfloat16: up or down at random, so that the expectation is what was to be stored.

An average a ← d·a + (1 − d)·p that is stored to the nearest bfloat16 stands still wherever (1 − d)|p − a| is less than half
the distance u of two neighbours, u in (2⁻⁸, 2⁻⁷]·|a|: with d = 0.999, until p is 2 to 4 times a.  Rounded at random,

    E[a] follows the average in float32 exactly, since the recursion is linear                      (1)
    a round that lies a part f of the way from one neighbour to the next has the variance u²f(1 − f),
    with f = (1 − d)|p − a|/u, and of each d² is left by the next update: in all at most

        u² f / (1 − d²)  ≈  u|p − a| / 2                                                            (2)

whatever d is.  So a moving average lies about one u or less from that in float32, as long as |p − a| is within 2u, and a
second moment of gradients (|p − a| about a) about √(2⁻⁸/2) ≈ 4 to 6 % from its own: 2 to 3 % of an update's length.
"""

import jax
import jax.numpy as jnp

from didr_jax.types import Array, PRNGKey, PyTree


def to_bfloat16(x: Array, key: PRNGKey) -> Array:
    """`x` float32, rounded to one of its two neighbours in bfloat16, the nearer the likelier; what is bfloat16 stays itself.

    The bits that bfloat16 drops are random when they are added to those of x, and carry as often as they should.
    """
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    kept = (bits + noise) & jnp.uint32(0xFFFF0000)
    return jax.lax.bitcast_convert_type(jnp.where(jnp.isfinite(x), kept, bits), jnp.float32).astype(jnp.bfloat16)


def stored(values: PyTree, like: PyTree, key: PRNGKey) -> PyTree:
    """`values` in the types of `like`: to bfloat16 stochastically, each leaf with noise of its own."""
    leaves, tree = jax.tree.flatten(values)
    kinds = [leaf.dtype for leaf in jax.tree.leaves(like)]
    rounds = lambda leaf, kind: kind == jnp.bfloat16 and leaf.dtype != kind
    return jax.tree.unflatten(
        tree,
        [
            to_bfloat16(leaf, jax.random.fold_in(key, i)) if rounds(leaf, kind) else leaf.astype(kind)
            for i, (leaf, kind) in enumerate(zip(leaves, kinds, strict=True))
        ],
    )
