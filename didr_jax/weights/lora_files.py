"""Trees of low-rank adapters (`didr_jax.lora`) to and from files, in the dialects of those who write them."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from didr_jax.checks import listed
from didr_jax.finite import all_finite
from didr_jax.lora import KERNEL, A, B, pairs_of
from didr_jax.types import InputError, PyTree, Weights
from didr_jax.weights.adapters import Adapter, read_adapters, told
from didr_jax.weights.dialects import Place, layers_of
from didr_jax.weights.engine import to_torch
from didr_jax.weights.files import write_safetensors
from didr_jax.weights.rules import Rule

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
    pairs = pairs_of(lora)
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
