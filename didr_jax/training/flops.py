"""How many floating-point operations a function takes: those of its matrix products and convolutions.

A product of [m, k] and [k, n] counts 2mkn, multiplications and additions, as the peak rates of chips do.  The count is
made on the jaxpr, before any compiler: loops count as often as they run, rematerialised blocks as often as they
are computed, and what is done to single entries (norms, activations, softmax) not at all.

Operations are told apart by what a chip's rate depends on: the dtype of the operands, and, where a product asks for one,
its precision: "bfloat16", "float32", "float32 highest".  `chips` knows the rates.
"""

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
from jax.extend import core

SELDOM = "seldom"  # scope of what only few steps do
Operations = Mapping[str, float]  # {dtype, or dtype and precision: operations}


def count(function: Callable, *args) -> float:
    """Operations of `function(*args)`; arguments may be `jax.ShapeDtypeStruct`s, and nothing is computed."""
    return sum(by_dtype(function, *args).values())


def by_dtype(function: Callable, *args) -> Operations:
    """The same, each dtype by itself."""
    return count_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def count_jaxpr(jaxpr) -> Operations:
    """Operations of a jaxpr.  Of a `cond` the dearest branch counts, of one under `jax.named_scope(SELDOM)` the cheapest; a
    `while` whose length is not written in the jaxpr counts once."""
    return _summed(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation) -> Operations:
    name, params = equation.primitive.name, equation.params
    if name in PRODUCTS:
        return {_kind(equation): PRODUCTS[name](equation)}
    inner = [count_jaxpr(jaxpr) for jaxpr in inside(params)]
    if name == "cond":
        seldom = SELDOM in str(equation.source_info.name_stack).split("/")
        return (min if seldom else max)(inner, key=lambda operations: sum(operations.values()))
    times = REPEATS.get(name, lambda params: 1)(params)
    return {kind: times * n for kind, n in _summed(inner).items()}


def _summed(parts: Iterable[Operations]) -> Operations:
    found: defaultdict[str, float] = defaultdict(float)
    for operations in parts:
        for kind, n in operations.items():
            found[kind] += n
    return dict(found)


# What an algorithm that a product asks for multiplies, by the first part of its name (`jax.lax.DotAlgorithmPreset`).
ALGORITHMS = {"BF16": "bfloat16", "F16": "float16", "TF32": "float32", "F32": "float32 highest"}


def _kind(equation) -> str:
    """What a chip's rate for a product depends on; of operands of two dtypes, the wider."""
    dtype = functools.reduce(jnp.promote_types, (operand.aval.dtype for operand in equation.invars[:2]))
    asked = equation.params.get("precision")  # fused attention has none
    names = [str(p) for p in (asked if isinstance(asked, tuple) else (asked,)) if p is not None]
    for name in names:
        if (algorithm := ALGORITHMS.get(name.split("_")[0])) is not None:
            return algorithm
    return " ".join([dtype.name, *sorted({name.lower() for name in names} - {"default"})[:1]])


def inside(params: dict) -> Iterator:
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
