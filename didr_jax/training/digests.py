"""What the leaves of a state are, and whether they are still that: their shapes, dtypes and digests, by path.

The digest is a weighted sum of bits (mod 2³²) that no single wrong word leaves unchanged.  It is computed where the
leaf lives and does not depend on how it is split, so a state restored onto another mesh is checked to the last bit.
"""

import jax
import jax.numpy as jnp
import numpy as np

from didr_jax.training.host_memory import near
from didr_jax.training.parallel import path_of, settle
from didr_jax.types import Array, PyTree


@jax.jit
def _digest(before: Array, x: Array) -> Array:
    """3·before + Σ_i bits_i · (2i + 1) mod 2³²: odd weights, so that every single change shows."""
    x = near(x)
    word = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    bits = x.astype(word) if x.dtype == bool else jax.lax.bitcast_convert_type(x, word)
    index = jnp.zeros((), jnp.uint32)
    for dimension, size in enumerate(bits.shape):
        index = index * jnp.uint32(size % 2**32) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, dimension)
    return 3 * before + jnp.sum(bits.astype(jnp.uint32) * (2 * index + 1), dtype=jnp.uint32)


def describe(tree: PyTree) -> dict[str, str]:
    """`{path: "float32[64,3]"}` of arrays or their shapes."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_of(keys): f"{x.dtype}[{','.join(map(str, x.shape))}]" for keys, x in leaves}


def digests(tree: PyTree) -> dict[str, int]:
    """A running digest over the leaves: the first that differs names the leaf that does."""
    running, digest = {}, np.uint32(0)
    for keys, x in jax.tree_util.tree_leaves_with_path(tree):
        running[path_of(keys)] = digest = settle(_digest(digest, x))
    return {path: int(value) for path, value in running.items()}


def shapes_of(leaves: dict[str, str]) -> PyTree:
    """The inverse of `describe`, for a tree of nested dicts."""
    tree: dict = {}
    for path, text in leaves.items():
        dtype, _, sizes = text.partition("[")
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        shape = tuple(int(n) for n in sizes.rstrip("]").split(",") if n)
        node[name] = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
    return tree
