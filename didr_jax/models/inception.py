"""Inception-v3 as the Fréchet inception distance uses it: the network of 2015-12-05, up to its pooled features.  NHWC.

Source: Szegedy et al. 1512.00567; TensorFlow's `inception-2015-12-05.tgz`, as pytorch-fid and torch-fidelity port it:
torchvision's `Inception3` but for average pools that do not count padding and a *max* pool in the last block.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from didr_jax.types import Array, InputError

SIZE = 299  # of the pictures, in pixels
WIDTH = 2048  # of the features
EPS = 1e-3  # of every batch norm


class Conv(NamedTuple):
    """One convolution; its batch norm and ReLU go without saying."""

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


# A block is a tuple of branches, whose results are joined.  A branch is a tuple of steps: a `Conv`, a pool by name
# ("average", "max": 3x3, same size; "shrink": max, 3x3, stride 2), or a tuple of `Conv`s side by side.
Block = tuple[tuple, ...]


def _a(pool: int) -> Block:
    return (
        (Conv("branch1x1", 64),),
        (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))),
        (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3))),
        ("average", Conv("branch_pool", pool)),
    )


def _c(c: int) -> Block:
    wide, high = (1, 7), (7, 1)
    return (
        (Conv("branch1x1", 192),),
        (Conv("branch7x7_1", c), Conv("branch7x7_2", c, wide), Conv("branch7x7_3", 192, high)),
        (Conv("branch7x7dbl_1", c), Conv("branch7x7dbl_2", c, high), Conv("branch7x7dbl_3", c, wide),
         Conv("branch7x7dbl_4", c, high), Conv("branch7x7dbl_5", 192, wide)),
        ("average", Conv("branch_pool", 192)),
    )  # fmt: skip


def _e(pool: str) -> Block:
    fork = lambda name: (Conv(f"{name}a", 384, (1, 3)), Conv(f"{name}b", 384, (3, 1)))
    return (
        (Conv("branch1x1", 320),),
        (Conv("branch3x3_1", 384), fork("branch3x3_2")),
        (Conv("branch3x3dbl_1", 448), Conv("branch3x3dbl_2", 384, (3, 3)), fork("branch3x3dbl_3")),
        (pool, Conv("branch_pool", 192)),
    )


_B: Block = (
    (Conv("branch3x3", 384, (3, 3), 2, "VALID"),),
    (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3), 2, "VALID")),
    ("shrink",),
)
_D: Block = (
    (Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2, "VALID")),
    (Conv("branch7x7x3_1", 192), Conv("branch7x7x3_2", 192, (1, 7)), Conv("branch7x7x3_3", 192, (7, 1)),
     Conv("branch7x7x3_4", 192, (3, 3), 2, "VALID")),
    ("shrink",),
)  # fmt: skip

STEM = (
    Conv("Conv2d_1a_3x3", 32, (3, 3), 2, "VALID"),
    Conv("Conv2d_2a_3x3", 32, (3, 3), 1, "VALID"),
    Conv("Conv2d_2b_3x3", 64, (3, 3)),
    "shrink",
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, (3, 3), 1, "VALID"),
    "shrink",
)
BLOCKS: dict[str, Block] = {
    "Mixed_5b": _a(32), "Mixed_5c": _a(64), "Mixed_5d": _a(64),
    "Mixed_6a": _B,
    "Mixed_6b": _c(128), "Mixed_6c": _c(160), "Mixed_6d": _c(160), "Mixed_6e": _c(192),
    "Mixed_7a": _D,
    "Mixed_7b": _e("average"), "Mixed_7c": _e("max"),
}  # fmt: skip

POOLS = {
    "average": lambda x: nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False),
    "max": lambda x: nn.max_pool(x, (3, 3), padding="SAME"),
    "shrink": lambda x: nn.max_pool(x, (3, 3), (2, 2)),
}


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm with the stored statistics, ReLU."""

    spec: Conv

    @nn.compact
    def __call__(self, x: Array) -> Array:
        _, channels, kernel, stride, padding = self.spec
        # Features are compared with published ones: never in the short products that accelerators prefer.
        x = nn.Conv(
            channels, kernel, stride, padding, use_bias=False, precision=jax.lax.Precision.HIGHEST, name="conv"
        )(x)  # fmt: skip
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        scale, var = (self.param(name, ones, (channels,)) for name in ("scale", "var"))
        bias, mean = (self.param(name, zeros, (channels,)) for name in ("bias", "mean"))
        return nn.relu((x - mean) * (scale * jax.lax.rsqrt(var + EPS)) + bias)


def _run(steps: tuple, x: Array) -> Array:
    """Inside a compact module: the steps, one after another."""
    for step in steps:
        if isinstance(step, Conv):
            x = ConvNorm(step, name=step.name)(x)
        elif isinstance(step, str):
            x = POOLS[step](x)
        else:
            x = jnp.concatenate([ConvNorm(conv, name=conv.name)(x) for conv in step], -1)
    return x


class Mixed(nn.Module):
    """A block: branches side by side."""

    branches: Block

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return jnp.concatenate([_run(branch, x) for branch in self.branches], -1)


class Inception(nn.Module):
    """Pictures `[b, 299, 299, 3]` in about [-1, 1] -> pooled features `[b, 2048]`, in float32 throughout."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if x.shape[1:] != (SIZE, SIZE, 3):
            raise InputError(
                f"Inception takes [b, {SIZE}, {SIZE}, 3], got {list(x.shape)}; prepare pictures by a protocol of "
                "didr_jax.evaluation.protocols"
            )
        x = _run(STEM, x.astype(jnp.float32))
        for name, branches in BLOCKS.items():
            x = Mixed(branches, name=name)(x)
        return jnp.mean(x, axis=(1, 2))
