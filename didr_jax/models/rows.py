"""Rows stay where they are: under a mesh, a network's intermediate results are split by samples.

XLA decides for itself how every intermediate result is split over the devices.  With kernels split over `fsdp` it is
apt to follow the kernels inside scanned and rematerialised blocks: each device then holds everybody's samples with a
part of the features, and sends activations where it should gather parameters.  A `Network` tells it after every layer
where the rows are: over all axes of the mesh but `tensor`, as `attention` has them.  What `tensor` does with the
other dimensions is the compiler's to choose.  A cotangent is told the same as its value, so the backward pass
follows.  Only places are said, never values.
"""

import contextlib
import math
from collections.abc import Iterator

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import AxisType, Mesh, PartitionSpec

from didr_jax.types import Array

# Whatever has parameters or mixes the entries of a sample.  Between two of them are residual sums, activations,
# reshapes and attention, which the compiler leaves where their operands are.
LAYERS = (nn.Dense, nn.DenseGeneral, nn.Conv, nn.Embed, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


class Network(nn.Module):
    """A module that is a whole network: `apply(variables, samples [b, ...], ...)` pins the rows of all its layers.

    Without a mesh, on one device, or if the rows cannot be spread evenly, it is `nn.Module.apply`, operation for
    operation.
    """

    @nn.nowrap
    def apply(self, variables, *args, **kwargs):
        rows = args[0].shape[:1]
        axes = row_axes(rows)

        def pin(call, args, kwargs, context):
            out = call(*args, **kwargs)
            layer = isinstance(context.module, LAYERS) and context.method_name == "__call__"
            return pinned(out, axes) if layer and out.shape[:1] == rows else out

        with nn.intercept_methods(pin) if axes else contextlib.nullcontext():
            return super().apply(variables, *args, **kwargs)


def row_axes(rows: tuple[int, ...]) -> tuple[str, ...]:
    """Axes of the mesh now in use over which rows `(b,)` are spread; empty: they are not."""
    mesh = jax.sharding.get_abstract_mesh()
    free = zip(mesh.axis_names, mesh.axis_types, strict=True)  # inside of shard_map an axis is not free
    axes = tuple(name for name, kind in free if name != "tensor" and kind == AxisType.Auto)
    ways = math.prod(mesh.shape[name] for name in axes)
    return axes if ways > 1 and math.prod(rows) % ways == 0 else ()


def pinned(x: Array, axes: tuple[str, ...]) -> Array:
    """`x [b, ...]`, its rows spread over `axes`."""
    spec = PartitionSpec(axes, *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1))
    return jax.lax.with_sharding_constraint(x, spec)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """For what a process computes by itself, with arrays of its own, while a mesh of all processes is in use."""
    with jax.set_mesh(Mesh(np.empty((), object), ())):
        yield
