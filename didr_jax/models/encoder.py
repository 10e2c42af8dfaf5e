"""The transformer encoder that CLIP's two towers and BLIP's image tower share.

Pre-norm blocks of equal shape, so their parameters are stacked on a leading layer axis and the tower
is one `nn.scan`: compile time does not grow with depth.  Source: `CLIPEncoderLayer` and
`BlipEncoderLayer` of transformers, `ResidualAttentionBlock` of open_clip.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from didr_jax.models.attention import attend
from didr_jax.models.remat import rematerialised
from didr_jax.types import Array, InputError


def quick_gelu(x: Array) -> Array:
    """x·sigmoid(1.702 x): OpenAI's CLIP.  Everybody else's towers use the exact, erf GELU."""
    return x * nn.sigmoid(1.702 * x)


def gelu(x: Array) -> Array:
    """x·Φ(x), exact."""
    return nn.gelu(x, approximate=False)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"gelu": gelu, "quick_gelu": quick_gelu}


def activation(name: str) -> Callable[[Array], Array]:
    """The activation called `name`; raises `InputError` for one that no supported tower uses."""
    if name not in ACTIVATIONS:
        raise InputError(f"hidden_act={name!r} is not supported; one of {', '.join(ACTIVATIONS)} is")
    return ACTIVATIONS[name]


class Attention(nn.Module):
    """Multi-head attention with biases; cross-attention when `context` is given."""

    heads: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, context: Array | None = None, mask: Array | None = None, causal: bool = False) -> Array:
        """`x [b, n, d]`, `context [b, m, e]`, boolean key `mask [b, m]` -> `[b, n, d]`."""
        width = x.shape[-1]
        context = x if context is None else context
        dense = lambda name: nn.Dense(width, dtype=self.dtype, param_dtype=self.param_dtype, name=name)
        split = lambda y: y.reshape(*y.shape[:-1], self.heads, width // self.heads)
        q, k, v = (split(dense(name)(y)) for name, y in (("q", x), ("k", context), ("v", context)))
        y = attend(q, k, v, mask=mask, causal=causal)
        return dense("out")(y.reshape(*y.shape[:-2], width))


class Mlp(nn.Module):
    """Dense, activation, Dense."""

    hidden: int
    act: str = "gelu"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dense = lambda n, name: nn.Dense(n, dtype=self.dtype, param_dtype=self.param_dtype, name=name)
        return dense(x.shape[-1], "fc2")(activation(self.act)(dense(self.hidden, "fc1")(x)))


class Block(nn.Module):
    """x + Attention(norm1(x)), then x + Mlp(norm2(x)).

    Written as a scan body: the carry is `(x, entry)`, where `entry` is the state that entered this block,
    so that after the last block the penultimate hidden state is at hand at no cost in memory.
    """

    heads: int
    hidden: int
    act: str = "gelu"
    eps: float = 1e-5
    causal: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, carry: tuple[Array, Array], _=None) -> tuple[tuple[Array, Array], None]:
        x = entry = carry[0]
        kinds = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        norm = lambda name: nn.LayerNorm(epsilon=self.eps, name=name, **kinds)
        x = x + Attention(self.heads, name="attn", **kinds)(norm("norm1")(x), causal=self.causal)
        x = x + Mlp(self.hidden, self.act, name="mlp", **kinds)(norm("norm2")(x))
        return (x, entry), None


class Encoder(nn.Module):
    """`depth` blocks.  Parameters are under `layers`, stacked on axis 0."""

    depth: int
    heads: int
    hidden: int
    act: str = "gelu"
    eps: float = 1e-5
    causal: bool = False
    remat: str = "none"  # what the backward pass recomputes (`models.remat`)
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """`x [b, n, d]` -> (last, penultimate) hidden states, each `[b, n, d]`, neither normalised."""
        activation(self.act)
        block = rematerialised(Block, self.remat, prevent_cse=False)
        layers = nn.scan(block, length=self.depth, variable_axes={"params": 0}, split_rngs={"params": True})
        carry, _ = layers(self.heads, self.hidden, self.act, self.eps, self.causal, self.dtype, self.param_dtype, name="layers")(
            (x, x)
        )
        return carry
