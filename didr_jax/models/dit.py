"""A small class-conditional diffusion transformer (DiT, Peebles & Xie, 2023), and an MLP.

Both are the networks of the embedded examples: small enough for a laptop's CPU, where matrix
products are fast and convolutions are not.
"""

import flax.linen as nn
import jax.numpy as jnp

from didr_jax.models.rows import Network
from didr_jax.types import Array


def sinusoid(t: Array, width: int, max_period: float = 1e4) -> Array:
    """`[b] -> [b, width]`: cosines and sines of t at geometrically spaced frequencies."""
    frequencies = jnp.exp(-jnp.log(max_period) * jnp.arange(width // 2) / (width // 2))
    angles = t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


class Block(nn.Module):
    """Attention and MLP, each modulated by (shift, scale, gate) from the condition; identity at first."""

    heads: int
    mlp_ratio: int = 4

    @nn.compact
    def __call__(self, x: Array, condition: Array) -> Array:
        width = x.shape[-1]
        modulation = nn.Dense(6 * width, kernel_init=nn.initializers.zeros)(nn.silu(condition))
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation[:, None], 6, axis=-1)
        y = nn.LayerNorm(use_bias=False, use_scale=False)(x) * (1 + scale1) + shift1
        x = x + gate1 * nn.MultiHeadDotProductAttention(self.heads)(y)
        y = nn.LayerNorm(use_bias=False, use_scale=False)(x) * (1 + scale2) + shift2
        return x + gate2 * nn.Dense(width)(nn.gelu(nn.Dense(self.mlp_ratio * width)(y)))


class DiT(Network):
    """Predicts an image-shaped quantity from a noisy image, a time and a class.

    Attributes:
      num_classes: classes 0 … num_classes − 1; the label num_classes stands for "no class".
      patch: side of the square patches that become tokens.
      width, depth, heads: of the transformer.

    Call: `(x [b, h, w, c], t [b] in [0, 1], label int [b]) -> [b, h, w, c]`.
    """

    num_classes: int
    patch: int = 2
    width: int = 64
    depth: int = 3
    heads: int = 4

    @nn.compact
    def __call__(self, x: Array, t: Array, label: Array) -> Array:
        b, h, w, c = x.shape
        rows, columns = h // self.patch, w // self.patch
        tokens = x.reshape(b, rows, self.patch, columns, self.patch, c).swapaxes(2, 3)
        tokens = nn.Dense(self.width)(tokens.reshape(b, rows * columns, -1))
        tokens = tokens + self.param("position", nn.initializers.normal(0.02), (rows * columns, self.width))

        condition = nn.Dense(self.width)(nn.silu(nn.Dense(self.width)(sinusoid(1000 * t, 64))))
        condition = condition + nn.Embed(self.num_classes + 1, self.width)(label)
        for i in range(self.depth):
            tokens = Block(self.heads, name=f"block{i}")(tokens, condition)

        scale = nn.Dense(self.width, kernel_init=nn.initializers.zeros)(nn.silu(condition))
        tokens = nn.LayerNorm(use_bias=False, use_scale=False)(tokens) * (1 + scale[:, None])
        out = nn.Dense(self.patch**2 * c, kernel_init=nn.initializers.zeros)(tokens)
        return out.reshape(b, rows, columns, self.patch, self.patch, c).swapaxes(2, 3).reshape(b, h, w, c)


class MLP(Network):
    """A plain perceptron on the flattened input and, if given, a condition vector.

    Call: `(x [b, ...], condition [b, k] or None) -> (output [b, out], last hidden layer [b, width])`.
    """

    out: int
    width: int = 128
    depth: int = 2
    features: int | None = None

    @nn.compact
    def __call__(self, x: Array, condition: Array | None = None) -> tuple[Array, Array]:
        hidden = x.reshape(x.shape[0], -1)
        if condition is not None:
            hidden = jnp.concatenate([hidden, condition], -1)
        for i in range(self.depth):
            last = i == self.depth - 1
            hidden = nn.silu(nn.Dense(self.features if last and self.features else self.width)(hidden))
        return nn.Dense(self.out)(hidden), hidden


class PointNet(Network):
    """An MLP on points `[b, d]` and a time `[b]`, residual in its hidden layers; returns `[b, d]`."""

    width: int = 128
    depth: int = 3

    @nn.compact
    def __call__(self, x: Array, t: Array) -> Array:
        hidden = nn.Dense(self.width)(jnp.concatenate([x, sinusoid(10 * t, 32, max_period=100.0)], -1))
        for _ in range(self.depth):
            hidden = hidden + nn.Dense(self.width)(nn.silu(nn.Dense(self.width)(nn.LayerNorm()(hidden))))
        return nn.Dense(x.shape[-1])(hidden)
