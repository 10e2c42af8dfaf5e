"""How many floating-point operations a function takes: those of its matrix products and convolutions.

A product of [m, k] and [k, n] counts 2mkn, multiplications and additions, as the peak rates of chips do.  The count is
made on the jaxpr, before any compiler: loops count as often as they run, rematerialised blocks as often as they
are computed, and what is done to single entries (norms, activations, softmax) not at all.
"""

import math
from collections.abc import Callable, Iterator

import jax
from jax.extend import core


def count(function: Callable, *args) -> float:
    """Operations of `function(*args)`; arguments may be `jax.ShapeDtypeStruct`s, and nothing is computed."""
    return count_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def count_jaxpr(jaxpr) -> float:
    """Operations of a jaxpr.  Of a `cond` the dearest branch counts; a `while` whose length is not written in the
    jaxpr counts once."""
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation) -> float:
    name, params = equation.primitive.name, equation.params
    if name in PRODUCTS:
        return PRODUCTS[name](equation)
    inner = [count_jaxpr(jaxpr) for jaxpr in _inside(params)]
    if name == "cond":
        return max(inner)
    return REPEATS.get(name, lambda params: 1)(params) * sum(inner)


def _inside(params: dict) -> Iterator:
    """The jaxprs among the parameters of an equation."""
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


def _dot_general(equation) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    depth = math.prod(equation.invars[0].aval.shape[d] for d in contracted)
    return 2.0 * equation.outvars[0].aval.size * depth


def _convolution(equation) -> float:
    """Padding counts as image; the zeros between the entries of a dilated image (a stride's gradient) do not."""
    kernel, numbers = equation.invars[1].aval.shape, equation.params["dimension_numbers"]
    _, channels, *window = (kernel[d] for d in numbers.rhs_spec)
    out, zeros = equation.outvars[0].aval.size, math.prod(equation.params["lhs_dilation"])
    return 2.0 * out * channels * math.prod(window) / zeros


def _cudnn(products: int) -> Callable:
    """Of attention in one primitive of cuDNN's: so many products of queries' by keys' lengths and head size, masks or not."""

    def rule(equation) -> float:
        q, k = (equation.invars[i].aval.shape for i in (0, 1))
        return products * 2.0 * math.prod(q) * k[2 if equation.params["layout"] == HEADS_FIRST else 1]

    return rule


HEADS_FIRST = 1  # of cuDNN's layouts: [b, heads, length, head size]; 0: [b, length, heads, head size]

PRODUCTS = {
    "dot_general": _dot_general,
    "conv_general_dilated": _convolution,
    # q kᵀ and p v; of the gradient q kᵀ again, and those of p, v, q and k
    "dot_product_attention_fwd_wrapper": _cudnn(2),
    "dot_product_attention_bwd_wrapper": _cudnn(5),
}

# How often the body of an equation runs, where that is not once.
REPEATS = {
    "scan": lambda params: params["length"],
    "shard_map": lambda params: params["mesh"].size,  # its shapes are one device's
    "pallas_call": lambda params: math.prod(params["grid_mapping"].grid),  # its shapes are one block's
}
