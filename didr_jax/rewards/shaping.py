"""Where a reward stops paying: a shape of its normalised value u = (r − centre)/spread in a mix.

hinge:M    min(u, M): what is good enough is not made better still
clip:L,M   u within [L, M]: outliers on either side neither pull nor push
"""

import math
from collections.abc import Callable

import jax.numpy as jnp

from didr_jax.types import Array, InputError

Shape = Callable[[Array], Array]


def plain(u: Array) -> Array:
    """As it is."""
    return u


def _hinge(most: float) -> Shape:
    return lambda u: jnp.where(u < most, u, most)


def _clip(low: float, high: float) -> Shape:
    return lambda u: jnp.where(u < low, low, jnp.where(u < high, u, high))


# name -> (its numbers, from them a shape); the gradient is that of u inside, and zero beyond a bound
SHAPES: dict[str, tuple[int, Callable[..., Shape]]] = {"hinge": (1, _hinge), "clip": (2, _clip)}


def shape_of(text: str, where: str) -> Shape:
    """The shape that a config writes, `plain` where it is empty.

    Raises:
      InputError: naming `where`, for anything that is not `hinge:M` or `clip:L,M` with finite L < M.

    >>> print(shape_of("clip:-1,2", "x")(jnp.array([-3.0, 0.5, 3.0])))
    [-1.   0.5  2. ]
    """
    if not text:
        return plain
    name, _, rest = text.partition(":")
    try:
        count, make = SHAPES[name.strip()]
        numbers = [float(number) for number in rest.split(",")]
        if len(numbers) != count or not all(map(math.isfinite, numbers)) or numbers != sorted(set(numbers)):
            raise ValueError
    except (KeyError, ValueError):
        raise InputError(
            f"{where} = {text!r}: write hinge:M, or clip:L,M with L < M, in units of (reward - centre)/spread"
        ) from None
    return make(*numbers)
