"""The shapes that the whole package speaks in.

Nothing here knows about images, text or networks.  A sample is any array whose first axis is the
batch: `[b, 2]` for a point of the plane, `[b, h, w, c]` for an image or a latent.  Conditions are
closed over: a `Denoiser` or `Reward` handed to a loss already knows what its batch was asked for.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import jax

Array = jax.Array
PRNGKey = jax.Array
PyTree = Any


class Denoiser(Protocol):
    """`(x_t [b, ...], t [b]) -> x̂0 [b, ...]`, an estimate of E[x0 | x_t]."""

    def __call__(self, x_t: Array, t: Array, /) -> Array: ...


class Reward(Protocol):
    """`x0 [b, ...] -> r [b]`, larger is better."""

    def __call__(self, x0: Array, /) -> Array: ...


@dataclasses.dataclass(frozen=True)
class Weights:
    """Parameters that are not here yet: what they look like, and how to fill them.

    Nothing is read before `load`, so that whoever only needs shapes (a plan), or only some of a run's parameters (an
    export), opens no other file.

    Attributes:
      shapes: a pytree of `jax.ShapeDtypeStruct`.
      fill: `(shapes, shardings) -> arrays` of these shapes and dtypes, in their places; `shardings` is a pytree like
        `shapes`, one sharding for all leaves, or None for the default device.
      check: raises InputError, naming all that is wrong, if `fill` could not succeed; reads names and shapes only.
    """

    shapes: PyTree
    fill: Callable[[PyTree, Any], PyTree]
    check: Callable[[], None] = lambda: None

    def load(self, shardings: Any = None) -> PyTree:
        """The arrays, read or made now."""
        return self.fill(self.shapes, shardings)

    def cast(self, dtype: Any) -> "Weights":
        """The same parameters, all in another dtype."""
        dtype = jax.numpy.dtype(dtype)
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, dtype), self.shapes)
        return dataclasses.replace(self, shapes=shapes)

    @classmethod
    def join(cls, parts: "Mapping[str, Weights]") -> "Weights":
        """Several as one: a dict of their trees."""

        def fill(shapes, shardings):
            spread = isinstance(shardings, dict)
            return {name: w.fill(shapes[name], shardings[name] if spread else shardings) for name, w in parts.items()}

        def check():
            for weights in parts.values():
                weights.check()

        return cls({name: weights.shapes for name, weights in parts.items()}, fill, check)


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one line that says what is wrong, where, and how to mend it; `run.py` prints it
    and exits with code 2 instead of showing a traceback.

    Args:
      message: that line.
      details: what it tells only the first of (`checks.listed`), all of them; shown with --verbose.
    """

    def __init__(self, message: str, details: Iterable[str] = ()):
        super().__init__(message)
        self.details = tuple(details)
