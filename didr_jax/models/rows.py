"""Rows stay where they are: under a mesh, whatever a network computes is split by samples and by nothing else.

XLA decides for itself how every intermediate result is split over the devices.  With kernels split over `fsdp` it is
apt to follow the kernels inside scanned and rematerialised blocks: each device then holds everybody's samples with a
part of the features, and sends activations where it should gather parameters.  `Network` says after every layer
where the rows are: over all axes of the mesh but `tensor`, as `attention` splits them.  What `tensor` does with the
other dimensions is left to the compiler.  The backward pass says the same, for cotangents are pinned as their values.
"""

import math

import jax
from flax import linen as nn
from jax.sharding import AxisType, PartitionSpec

from didr_jax.types import Array

# Everything that has parameters of its own, or mixes the entries of a sample.  Between two of them are only residual
# sums, activations, reshapes and attention, which the compiler leaves as their operands are.
LAYERS = (nn.Dense, nn.DenseGeneral, nn.Conv, nn.Embed, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


class Network(nn.Module):
    """A module that is a whole network.  `apply` takes the samples first: an array `[b, ...]`."""

    @nn.nowrap
    def apply(self, variables, samples: Array, *args, **kwargs):
        axes = row_axes(samples.shape[0])
        if not axes:
            return super().apply(variables, samples, *args, **kwargs)

        def pin(call, args, kwargs, context):
            out = call(*args, **kwargs)
            whole = isinstance(context.module, LAYERS) and context.method_name == "__call__"
            return pinned(out, axes) if whole and out.shape[:1] == samples.shape[:1] else out

        with nn.intercept_methods(pin):
            return super().apply(variables, samples, *args, **kwargs)


def row_axes(rows: int) -> tuple[str, ...]:
    """Axes of the mesh now in use over which so many rows are spread; none without a mesh, on one device, or if they
    cannot be spread evenly."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(
        name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=False) if name != "tensor" and kind == AxisType.Auto
    )
    ways = math.prod(mesh.shape[name] for name in axes)
    return axes if ways > 1 and rows % ways == 0 else ()


def pinned(x: Array, axes: tuple[str, ...]) -> Array:
    """`x [b, ...]` with its rows spread over `axes`."""
    spec = PartitionSpec(axes, *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1))
    return jax.lax.with_sharding_constraint(x, spec)
