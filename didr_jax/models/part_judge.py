"""A small convolutional classifier of several attributes at once, such as the parts of a composed picture."""

from collections.abc import Mapping

import jax.numpy as jnp
from flax import linen as nn

from didr_jax.models.resnet import GroupNorm
from didr_jax.models.rows import Network
from didr_jax.types import Array


class PartJudge(Network):
    """Images `[b, h, w, 3]` in [-1, 1] to logits of every attribute, and the features that they are read from.

    Positions are not pooled away: parts have their places.  Sides must be multiples of 2^len(channels).

    Attributes:
      sizes: attribute -> number of its values.
      channels: of the levels, each half the resolution of the one before.
      features: width of the last hidden layer, whose activations Fréchet distances compare.
    """

    sizes: Mapping[str, int]
    channels: tuple[int, ...] = (24, 32, 48)
    features: int = 64

    @nn.compact
    def __call__(self, images: Array) -> tuple[dict[str, Array], Array]:
        """`({attribute: [b, size]}, [b, features])`."""
        x = images.astype(jnp.float32)
        for i, channels in enumerate(self.channels):
            x = nn.Conv(channels, (4, 4), (2, 2), name=f"down_{i}")(x)
            y = nn.Conv(channels, (3, 3), name=f"conv_{i}")(nn.silu(GroupNorm(8, 1e-5, name=f"norm_{i}")(x)))
            x = x + nn.silu(y)
        features = nn.silu(nn.Dense(self.features, name="features")(x.reshape(x.shape[0], -1)))
        return {name: nn.Dense(size, name=f"head_{name}")(features) for name, size in self.sizes.items()}, features
