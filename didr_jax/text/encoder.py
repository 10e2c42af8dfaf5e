"""What a text encoder is to the rest of the package: prompts to tokens on the host, tokens to embeddings in JAX."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax

from didr_jax.text.tokens import Tokens
from didr_jax.types import Array, PyTree, Weights


@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """Pure functions, and the weights to call them with.

    Attributes:
      weights: of the networks; nothing is read of them before they are loaded.
      tokenize: b prompts -> {name: numpy array [b, ...]}.
      encode: `(params, tokens) -> {name: [b, ...]}`, each prompt from its own tokens alone; can be jitted.
      length: `tokens -> [b]`, how many rows of a text's sequence count, where texts are of many lengths; the rest are zero.
      shapes: of what `encode` makes of one prompt, {name: `ShapeDtypeStruct` [1, ...]}.
    """

    weights: Weights
    tokenize: Callable[[Sequence[str]], Tokens]
    encode: Callable[[PyTree, PyTree], dict[str, Array]]
    shapes: Mapping[str, jax.ShapeDtypeStruct]
    length: Callable[[PyTree], Array] | None = None


def text_encoder(weights: Weights, tokenize, encode, length=None) -> TextEncoder:
    """A `TextEncoder` whose shapes are found by tracing."""
    return TextEncoder(weights, tokenize, encode, jax.eval_shape(encode, weights.shapes, tokenize([""])), length)
