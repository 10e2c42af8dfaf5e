"""Embeds prompts on all devices of all processes: each device so many at a time, all of them by one program.

A device computes what it would compute if it were the only one: nothing is sent between them but what they have found,
and the values of a prompt do not depend on how many devices there are.
"""

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from didr_jax.text.encoder import TextEncoder


def embedded(prompts: Sequence[str], encoder: TextEncoder, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """The embeddings of prompts, in order, in every process: some rows of all arrays after the others.

    Args:
      prompts: the same in every process; each tokenizes those of its own devices.
      encoder: its weights are held by every device while this goes on.
      batch_size: prompts that a device embeds at once, always so many, so that the encoder compiles once.
    """
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    mesh = Mesh(np.array(devices), ("rows",))
    whole, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("rows"))
    mine = [i for i, device in enumerate(devices) if device.process_index == jax.process_index()]
    own = slice(mine[0] * batch_size, (mine[-1] + 1) * batch_size)
    n = len(devices) * batch_size

    spread = (PartitionSpec(), PartitionSpec("rows"))
    each = jax.shard_map(encoder.encode, mesh=mesh, in_specs=spread, out_specs=PartitionSpec("rows"), check_vma=False)
    encode = jax.jit(each)
    with jax.set_mesh(mesh):
        params = encoder.weights.load(whole)
    for start in range(0, len(prompts), n):
        chunk = list(prompts[start : start + n])
        tokens = encoder.tokenize([*chunk, *[""] * (n - len(chunk))][own])
        with jax.set_mesh(mesh):  # of all devices alike, whatever mesh the run has
            place = lambda local: jax.make_array_from_process_local_data(rows, np.asarray(local), (n, *local.shape[1:]))
            found = encode(params, jax.tree.map(place, tokens))
            here = jax.process_count() == 1
            arrays = jax.tree.map(np.asarray, found) if here else multihost_utils.process_allgather(found, tiled=True)
        yield {name: values[: len(chunk)] for name, values in arrays.items()}
