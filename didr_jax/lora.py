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
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from didr_jax.checks import listed
from didr_jax.finite import all_finite
from didr_jax.types import Array, InputError, PRNGKey, PyTree, Weights
from didr_jax.weights.adapters import Adapter, read_adapters, told
from didr_jax.weights.dialects import Place, layers_of
from didr_jax.weights.engine import to_torch
from didr_jax.weights.files import write_safetensors
from didr_jax.weights.rules import Rule

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
      InputError: a pattern matches no dense layer, or a layer that is not dense (a convolution).
    """
    kernels = {path[:-1]: leaf.shape for path, leaf in flatten_dict(params).items() if path[-1] == KERNEL}
    chosen: set[tuple[str, ...]] = set()
    for pattern in patterns:
        found = [path for path in kernels if re.search(pattern, "/".join(path))]
        if not found:
            some = ", ".join("/".join(path) for path in list(kernels)[:: max(1, len(kernels) // 3)])
            raise InputError(f"LoRA: pattern {pattern!r} matches no layer; layers are named like {some}")
        chosen.update(found)
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
        for path, (a, b) in _pairs(lora, joined).items():
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
    for path, (a, b) in _pairs(lora, flat).items():
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
      rank: of every adapter; no more than the largest kernel can have.
      alpha: that they will be applied with.

    Returns:
      adapters in float32 on all dense layers, and the share of the squared difference, of all parameters, that they hold.
    """
    before, lora, held = flatten_dict(base), dict[tuple[str, ...], np.ndarray](), 0.0
    changes = {
        path: np.asarray(leaf, np.float32) - np.asarray(before[path], np.float32) for path, leaf in flatten_dict(params).items()
    }
    dense = [path for path, change in changes.items() if path[-1] == KERNEL and change.ndim in (2, 3)]
    rank = min(rank, max(min(changes[path].shape[-2:]) for path in dense))
    for path in dense:
        left, values, right = np.linalg.svd(changes[path], full_matrices=False)
        root = np.sqrt(values[..., :rank])
        lora[*path[:-1], A] = _padded(left[..., :rank] * root[..., None, :], -1, rank)
        lora[*path[:-1], B] = _padded(root[..., None] * right[..., :rank, :] * (rank / alpha), -2, rank)
        held += float(np.sum(root**4))
    total = sum(float(np.sum(change**2)) for change in changes.values())
    return unflatten_dict(lora), held / total if total else 1.0


def _padded(factor: np.ndarray, axis: int, size: int) -> np.ndarray:
    """With zeros up to `size`: a small kernel has no more ranks."""
    widths = [(0, 0)] * factor.ndim
    widths[axis] = (0, size - factor.shape[axis])
    return np.pad(factor, widths)


# Dialects of files: the prefix of a layer's name, whether its dots are underscores, the two factors, whether alphas are tensors.
DIALECTS = {
    "diffusers": ("{part}.", False, "lora_A.weight", "lora_B.weight", False),
    "comfyui": ("diffusion_model.", False, "lora_A.weight", "lora_B.weight", True),
    "kohya": ("lora_unet_", True, "lora_down.weight", "lora_up.weight", True),
}


def save(
    path: str | os.PathLike,
    lora: PyTree,
    alpha: float,
    table: Sequence[Rule],
    *,
    prefix: str,
    dtype: Any = None,
    dialect: str = "diffusers",
) -> None:
    """Writes the adapters as diffusers' `load_lora_weights` and peft, or ComfyUI and kohya's scripts, read them.

    The scale alpha/rank is multiplied into B, and alpha is said to be the rank in the metadata (and as tensors, where the
    dialect has them): readers of either, and of neither, do the same.

    Args:
      path: a `.safetensors` file; diffusers' own name for it is `pytorch_lora_weights.safetensors`.
      table: of the names of the model's layers in this dialect.
      prefix: the adapted part of the pipeline, `transformer` for Z-Image and `unet` for SDXL.
      dtype: of the file; None: as in `lora`.
      dialect: a key of `DIALECTS`.
    """
    start, flat, down, up, tells = DIALECTS[dialect]
    pairs = _pairs(lora)
    factors = {
        down: {path: a for path, (a, _) in pairs.items()},
        up: {path: b * (alpha / b.shape[-2]) for path, (_, b) in pairs.items()},
    }
    tensors: dict[str, Any] = {}
    ranks: dict[str, int] = {}
    for name, factor in factors.items():
        kernels = unflatten_dict({(*path, KERNEL): leaf for path, leaf in factor.items()})
        for key, tensor in to_torch(kernels, table, dtype=dtype).items():
            layer = key.removesuffix(".weight")
            stem = start.format(part=prefix) + (layer.replace(".", "_") if flat else layer)
            tensors[f"{stem}.{name}"] = tensor
            if name == down:
                ranks[layer] = tensor.shape[0]
                tensors |= {f"{stem}.alpha": np.asarray(tensor.shape[0], np.float32)} if tells else {}
    write_safetensors(path, tensors, metadata=told(ranks, prefix, dialect))


def saved(
    path: str | os.PathLike, base: PyTree, alpha: float, tables: Sequence[Sequence[Rule]], *, prefix: str, seed: int = 0
) -> Weights:
    """Adapters, in float32, from a file of any dialect (`weights.dialects`); its own alpha scales them (`weights.adapters`).

    What `save` wrote comes back exactly if alpha/rank is a power of two, else to a rounding.  Layers that a scan has
    stacked share a rank, the largest: what the file does not have of it begins as fresh adapters do, and adds nothing.
    Of the factors only names and shapes are read before they are loaded.

    Args:
      path: a file, or a folder with one.
      base: shapes of the base's tree.
      alpha: that the adapters will be applied with; it is divided out of B.
      tables: of the model's weight names: diffusers', and others that files may have.
      prefix: as in `save`.
      seed: of what is fresh.

    Raises:
      InputError: no adapters of this part in the file, or ones that do not fit the base.
    """
    kernels = {kernel: leaf.shape for kernel, leaf in flatten_dict(base, sep="/").items() if kernel.endswith(f"/{KERNEL}")}
    held = read_adapters(path, prefix, layers_of(kernels, tables))
    _require_fit(path, held, kernels)
    ranks: dict[str, int] = {}
    for place, adapter in held.items():
        ranks[place.path] = max(adapter.rank, ranks.get(place.path, 0))
    shapes: dict[tuple[str, ...], jax.ShapeDtypeStruct] = {}
    for kernel, rank in ranks.items():
        *stack, inside, out = kernels[kernel]
        layer = tuple(kernel.split("/")[:-1])
        shapes[*layer, A] = jax.ShapeDtypeStruct((*stack, inside, rank), jnp.float32)
        shapes[*layer, B] = jax.ShapeDtypeStruct((*stack, rank, out), jnp.float32)

    def fill(wanted: PyTree, places: Any) -> PyTree:
        rng, arrays = np.random.default_rng(seed), dict[tuple[str, ...], np.ndarray]()
        for kernel in sorted(ranks):
            layer = tuple(kernel.split("/")[:-1])
            a_shape, b_shape = shapes[*layer, A].shape, shapes[*layer, B].shape
            bound = a_shape[-2] ** -0.5
            arrays[*layer, A] = rng.uniform(-bound, bound, a_shape).astype(np.float32)
            arrays[*layer, B] = np.zeros(b_shape, np.float32)
        for place, adapter in held.items():
            layer, rank = tuple(place.path.split("/")[:-1]), ranks[place.path]
            at = (place.at,) if len(kernels[place.path]) > 2 else ()
            down, up = (_finite(path, adapter.name, factor) for factor in (adapter.down, adapter.up))
            arrays[*layer, A][(*at, slice(None), slice(adapter.rank))] = down.T
            up = up.T if adapter.scale == 1 else up.T * np.float32(adapter.scale)
            arrays[*layer, B][(*at, slice(adapter.rank))] = up * np.float32(rank / alpha)
        cast = {key: arrays[key].astype(leaf.dtype) for key, leaf in flatten_dict(wanted).items()}
        return jax.device_put(unflatten_dict(cast), places)

    return Weights(unflatten_dict(shapes), fill)


def _require_fit(path: str | os.PathLike, held: Mapping[Place, Adapter], kernels: Mapping[str, tuple[int, ...]]) -> None:
    wrong = [
        f"{a.name} ({list(a.down.shape)}, {list(a.up.shape)} for {kernels[place.path][-2]} to {kernels[place.path][-1]})"
        for place, a in held.items()
        if a.down.ndim != 2
        or a.up.ndim != 2
        or (a.up.shape[0], a.down.shape[1]) != kernels[place.path][:-3:-1]
        or a.up.shape[1] != a.rank
        or a.rank < 1
    ]
    integers = [a.name for a in held.values() for f in (a.down, a.up) if not jnp.issubdtype(f.dtype, jnp.floating)]
    for names, what in ((wrong, "misshapen"), (integers, "of integers")):
        if names:
            raise InputError(f"LoRA: {path} does not fit the base, {len(names)} {what}: {listed(names)}", names)


def _finite(path: str | os.PathLike, name: str, factor: Any) -> np.ndarray:
    values = np.asarray(factor, np.float32)
    if not all_finite(np.ascontiguousarray(values)):
        raise InputError(f"LoRA: {path} has values that are not finite in the adapter of {name}; fetch it again")
    return values


def _pairs(lora: PyTree, params: Mapping | None = None) -> dict[tuple[str, ...], tuple[Array, Array]]:
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
