"""How much of a program's intermediate results is alive at once, read off its jaxpr before any compiler.

Results are made in the order of the program and let go of after their last use.  A compiler fuses what the jaxpr lists
one by one and never stores most of it, so that this is an upper estimate, made in a second.
"""

import math
from collections.abc import Callable
from typing import Any

from jax.extend import core

from didr_jax.training.flops import inside

LOOPS = ("scan", "while")  # whose results and whose body's are there at the same time


def bytes_of(aval: Any) -> int:
    """Of an array; 0 of what has no bytes of its own (random keys, tokens)."""
    return math.prod(aval.shape) * getattr(aval.dtype, "itemsize", 0) if hasattr(aval, "shape") else 0


def most_alive(jaxpr: core.Jaxpr, size: Callable[[Any], int] = bytes_of) -> int:
    """The largest sum of `size(aval)` over results that are alive at once; the jaxpr's arguments are not counted."""
    last = {v: i for i, equation in enumerate(jaxpr.eqns) for v in equation.invars if isinstance(v, core.Var)}
    last |= {v: len(jaxpr.eqns) for v in jaxpr.outvars if isinstance(v, core.Var)}
    ending: dict[int, int] = {}  # equation -> size of what it is the last to use
    alive = most = 0
    for i, equation in enumerate(jaxpr.eqns):
        made = sum(size(v.aval) for v in equation.outvars)
        within = max((most_alive(body, size) for body in inside(equation.params)), default=0)
        most = max(most, alive + (made + within if equation.primitive.name in LOOPS else max(made, within)))
        for v in equation.outvars:
            if v in last:
                alive += size(v.aval)
                ending[last[v]] = ending.get(last[v], 0) + size(v.aval)
        alive -= ending.pop(i, 0)
    return most
