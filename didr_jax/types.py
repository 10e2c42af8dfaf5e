"""The shapes that the whole package speaks in.

Nothing here knows about images, text or networks.  A sample is any array whose first axis is the
batch: `[b, 2]` for a point of the plane, `[b, h, w, c]` for an image or a latent.  Conditions are
closed over: a `Denoiser` or `Reward` handed to a loss already knows what its batch was asked for.
"""

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


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one line that says what is wrong, where, and how to mend it; `run.py` prints it
    and exits with code 2 instead of showing a traceback.
    """
