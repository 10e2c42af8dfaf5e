"""Low-rank adapters (LoRA, arXiv 2106.09685) for any Linen model, without touching the model.

An adapter adds (alpha/rank) · x A B to a dense layer's output, A [in, rank] and B [rank, out].  All
adapters of a network form their own tree, `lora`, with the layers' paths as in `params`:

    params  {"layers": {"attention": {"to_q": {"kernel": W}}}}
    lora    {"layers": {"attention": {"to_q": {"lora_a": A, "lora_b": B}}}}

`applied(apply, alpha)` puts A and B beside the kernel for the length of one call, and an interceptor
of `nn.Dense` adds the product.  As entries of the `params` collection they are sliced by `nn.scan`
(kernels stacked over depth have stacked adapters) and replayed by `nn.remat` like the kernels.

One frozen base serves three roles: reference `apply(base, …)`, TA and generator
`applied(apply, alpha)(base, lora_ta or lora_generator, …)`.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from didr_jax.types import Array, InputError, PRNGKey, PyTree, Weights

A, B, KERNEL = "lora_a", "lora_b", "kernel"


def init(key: PRNGKey, params: PyTree, patterns: Iterable[str], rank: int, dtype: Any = jnp.float32) -> PyTree:
    """Fresh adapters for the dense layers whose path matches.

    A is uniform in ±1/√in (as in the paper's code), B is zero, so that the adapted model starts as the base.

    Args:
      params: the base's tree; only shapes are used, so `jax.eval_shape` trees do.
      patterns: regular expressions, searched in layer paths such as `layers/attention/to_q`.
      rank: of every adapter.
      dtype: of the adapters, whatever the base's is.

    Returns:
      {layer path: {"lora_a": [..., in, rank], "lora_b": [..., rank, out]}}, nested; leading axes are
      those that a scan stacked.

    Raises:
      InputError: no pattern, or one that is none, matches no dense layer, or matches one that is not dense (a convolution).
    """
    kernels = {path[:-1]: leaf.shape for path, leaf in flatten_dict(params).items() if path[-1] == KERNEL}
    chosen: set[tuple[str, ...]] = set()
    for pattern in patterns:
        try:
            found = [path for path in kernels if re.search(pattern, "/".join(path))]
        except (re.error, TypeError) as error:
            raise InputError(f"LoRA: pattern {pattern!r} is no regular expression ({error})") from None
        if not found:
            some = ", ".join("/".join(path) for path in list(kernels)[:: max(1, len(kernels) // 3)])
            raise InputError(f"LoRA: pattern {pattern!r} matches no layer; layers are named like {some}")
        chosen.update(found)
    if not chosen:
        raise InputError("LoRA: no pattern is given, so that nothing would be trained; name layers, for example attn")
    lora = {}
    for i, path in enumerate(sorted(chosen)):
        *stack, features_in, features_out = kernels[path]
        if len(stack) > 1:
            raise InputError(f"LoRA: {'/'.join(path)} is a convolution, which has no adapter; narrow the patterns")
        bound = features_in**-0.5
        shape = (*stack, features_in, rank)
        lora[*path, A] = jax.random.uniform(jax.random.fold_in(key, i), shape, dtype, -bound, bound)
        lora[*path, B] = jnp.zeros((*stack, rank, features_out), dtype)
    return unflatten_dict(lora)


def applied(apply: Callable, alpha: float) -> Callable:
    """Wraps `apply(params, *args) -> out` into `adapted(params, lora, *args) -> out`.

    `lora=None` switches the adapters off: that call is `apply(params, *args)`, operation for operation.

    Raises (when called):
      InputError: an adapter without a dense layer of its size in `params`.
    """

    def adapted(params: PyTree, lora: PyTree | None, *args, **kwargs):
        if lora is None:
            return apply(params, *args, **kwargs)
        joined = flatten_dict(params)
        for path, (a, b) in pairs_of(lora, joined).items():
            # The scale travels in B, not in the interceptor, which a jitted `apply` would not notice changing.
            joined |= {(*path, A): a, (*path, B): b * (alpha / a.shape[-1])}
        with nn.intercept_methods(_add_low_rank):
            return apply(unflatten_dict(joined), *args, **kwargs)

    return adapted


def _add_low_rank(call, args, kwargs, context):
    out, layer = call(*args, **kwargs), context.module
    if context.method_name != "__call__" or not layer.has_variable("params", A):
        return out
    if not isinstance(layer, nn.Dense):
        raise InputError(f"LoRA: {'/'.join(layer.path)} is a {type(layer).__name__}, adapters are for dense layers")
    a, b = (layer.get_variable("params", name).astype(out.dtype) for name in (A, B))
    return out + args[0].astype(out.dtype) @ a @ b


def merge(params: PyTree, lora: PyTree, alpha: float) -> PyTree:
    """Parameters whose kernels are W + (alpha/rank) A B, summed in float32 and kept in W's dtype."""
    flat = flatten_dict(params)
    for path, (a, b) in pairs_of(lora, flat).items():
        kernel = flat[*path, KERNEL]
        update = (alpha / a.shape[-1]) * (a.astype(jnp.float32) @ b.astype(jnp.float32))
        flat[*path, KERNEL] = (kernel.astype(jnp.float32) + update).astype(kernel.dtype)
    return unflatten_dict(flat)


def merged(weights: Weights, adapters: Weights, alpha: float) -> Weights:
    """`merge` of parameters and adapters that are read when the result is loaded."""

    def fill(shapes: PyTree, places: Any) -> PyTree:
        into = jax.jit(functools.partial(merge, alpha=alpha), donate_argnums=0, out_shardings=places)
        return into(weights.fill(shapes, places), jax.device_get(adapters.load()))

    def check() -> None:
        weights.check()
        adapters.check()

    return Weights(weights.shapes, fill, check)


def nearest(params: PyTree, base: PyTree, rank: int, alpha: float) -> tuple[PyTree, float]:
    """The adapters that lead from `base` as near to `params` as adapters of this rank can (Eckart & Young, 1936).

    Per dense layer the first `rank` singular vectors of the difference.  What is not a dense kernel stays the base's.

    Args:
      params, base: trees of arrays on the host.
      rank: of every adapter whose kernel can have it; of a smaller one, its own.
      alpha: that they will be applied with.

    Returns:
      adapters in float32 on all dense layers, and the share of the squared difference, of all parameters, that they hold.
    """
    before, lora, held = flatten_dict(base), dict[tuple[str, ...], np.ndarray](), 0.0
    changes = {
        path: np.asarray(leaf, np.float32) - np.asarray(before[path], np.float32) for path, leaf in flatten_dict(params).items()
    }
    dense = [path for path, change in changes.items() if path[-1] == KERNEL and change.ndim in (2, 3)]
    for path in dense:
        left, values, right = np.linalg.svd(changes[path], full_matrices=False)
        root = np.sqrt(values[..., :rank])
        lora[*path[:-1], A] = left[..., :rank] * root[..., None, :]
        lora[*path[:-1], B] = root[..., None] * right[..., :rank, :] * (root.shape[-1] / alpha)
        held += float(np.sum(root**4))
    total = sum(float(np.sum(change**2)) for change in changes.values())
    return unflatten_dict(lora), held / total if total else 1.0


def pairs_of(lora: PyTree, params: Mapping | None = None) -> dict[tuple[str, ...], tuple[Array, Array]]:
    """{layer path: (A, B)}; with flat `params`, checked against their kernels."""
    flat = flatten_dict(lora)
    pairs = {path[:-1]: (flat[path], flat[*path[:-1], B]) for path in flat if path[-1] == A}
    if params is None:
        return pairs
    for path, (a, b) in pairs.items():
        kernel = params.get((*path, KERNEL))
        if kernel is None or kernel.shape != (*a.shape[:-1], b.shape[-1]):
            size = f"{a.shape[-2]} to {b.shape[-1]}"
            raise InputError(f"LoRA: adapter {'/'.join(path)} ({size}) does not fit the base: was it made for another?")
    return pairs
