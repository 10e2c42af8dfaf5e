"""Parts of a training state that lie in the host's memory between their updates (`config.mesh.host`).

A moving average and an optimiser's moments are read and written once an update, and take three to five times what the
parameters do in bfloat16.  A device reaches the host's pinned memory by its own copies, so they may wait there.  Which leaves do
is told by their shardings, and inside a jitted function by their types (`float32<host>[8]`), so that the functions here need no
config: without such leaves they change nothing, and the numbers are the same bits in any case.
"""

import jax

from didr_jax.types import PyTree

HOST, DEVICE = "pinned_host", "device"  # kinds of memory, as JAX names them


def waits_on_host(leaf) -> bool:
    """Of an array, or of a shape with a sharding."""
    return leaf.sharding.memory_kind == HOST


def _on_host(x) -> bool:
    return jax.typeof(x).memory_space == jax.memory.Space.Host


def near(tree: PyTree, after: PyTree = ()) -> PyTree:
    """`tree`, its leaves on the host copied to the devices; in a jitted function not before `after` is computed.

    Without `after` a compiler may fetch them when the program begins, and they would lie on the devices all the while.
    """
    leaves, structure = jax.tree.flatten(tree)
    away = [i for i, leaf in enumerate(leaves) if _on_host(leaf)]
    if away:
        fetched = [leaves[i] for i in away]
        if jax.tree.leaves(after):
            fetched, _ = jax.lax.optimization_barrier((fetched, after))
        for i, leaf in zip(away, fetched, strict=True):
            leaves[i] = jax.device_put(leaf, jax.memory.Space.Device)
    return jax.tree.unflatten(structure, leaves)


def back(tree: PyTree, like: PyTree) -> PyTree:
    """`tree`, each leaf where that of `like` lies."""
    return jax.tree.map(lambda new, old: jax.device_put(new, jax.memory.Space.Host) if _on_host(old) else new, tree, like)
