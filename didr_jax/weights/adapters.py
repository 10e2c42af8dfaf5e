"""Files of low-rank adapters (LoRA): their factors by name, and the scale that the file itself asks for.

An adapter of rank r adds (α/r) · x A B.  Where a file says α, by dialect, the first that says anything:

    a tensor PREFIX.LAYER.alpha                               kohya, and what diffusers makes of it
    `lora_adapter_metadata` in the safetensors' metadata      diffusers: peft's config, its keys with the part's prefix
    adapter_config.json beside adapter_model.safetensors      peft: r, lora_alpha, alpha_pattern, use_rslora
    `ss_network_alpha`, `lora_alpha`, `alpha`, in the metadata  trainers that keep a single number

and where none does, α = r: the scale is in the factors.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from didr_jax.json_files import read_object
from didr_jax.types import InputError
from didr_jax.weights.files import read_tensors
from didr_jax.weights.header import read_metadata

Scale = Callable[[str, int], float]  # (layer, rank) -> alpha/rank
NUMBERS = ("ss_network_alpha", "lora_alpha", "network_alpha", "alpha")  # in the metadata
# Switches of peft's config under which an adapter is another function than a scaled product.
OTHER_FUNCTIONS = ("use_dora", "lora_bias", "use_qalora", "alora_invocation_tokens")


@dataclasses.dataclass(frozen=True)
class Adapters:
    """What a file holds of one part of a pipeline.

    Attributes:
      factors: `{"lora_A": {LAYER.weight: tensor [rank, in]}, "lora_B": {LAYER.weight: tensor [out, rank]}}`.
      scales: alpha/rank of the file, by LAYER.weight.
    """

    factors: Mapping[str, Mapping[str, Any]]
    scales: Mapping[str, float]

    def scaled(self) -> dict[str, dict[str, Any]]:
        """The factors with the scale in B, as float32 where it is not 1; reads those tensors."""
        times = lambda name, b: b if self.scales[name] == 1 else np.asarray(b, np.float32) * np.float32(self.scales[name])
        return {
            "lora_A": dict(self.factors["lora_A"]),
            "lora_B": {name: times(name, b) for name, b in self.factors["lora_B"].items()},
        }


NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")  # diffusers', peft's
PICKLED = ("pytorch_lora_weights.bin", "adapter_model.bin")


def picked_adapter(names: Iterable[str], variant: str | None = None) -> str | None:
    """Of the names in a folder that of its adapters: a usual one, or the only safetensors file."""
    there = list(names)
    only = [name for name in there if name.endswith(".safetensors")]
    return next((n for n in (*NAMES, *PICKLED) if n in there), only[0] if len(only) == 1 else None)


def read_adapters(path: str | os.PathLike, prefix: str) -> Adapters:
    """The adapters in a file; of tensors other than alphas only names and shapes are read.

    Args:
      path: a `.safetensors` file.
      prefix: of the names of the adapted part, `transformer` or `unet`.

    Raises:
      InputError: no adapters of this part, other tensors besides, an alpha that is none, or adapters of another kind.
    """
    factors: dict[str, dict[str, Any]] = {"lora_A": {}, "lora_B": {}}
    alphas: dict[str, Any] = {}
    tensors = read_tensors(path)
    expected = f"expected are {prefix}.LAYER.lora_A.weight and its lora_B"
    for key, tensor in tensors.items():
        m = re.fullmatch(rf"{re.escape(prefix)}\.(.+)\.(lora_A\.weight|lora_B\.weight|alpha)", key)
        if m is None:
            raise InputError(f"LoRA: {path} holds {key}; {expected}")
        if m[2] == "alpha":
            alphas[m[1]] = tensor
        else:
            factors[m[2].removesuffix(".weight")][f"{m[1]}.weight"] = tensor
    if not factors["lora_A"] or factors["lora_A"].keys() != factors["lora_B"].keys():
        raise InputError(f"LoRA: {path} holds no adapters, or lacks one of the pair lora_A, lora_B of a layer")
    if astray := [layer for layer in alphas if f"{layer}.weight" not in factors["lora_A"]]:
        raise InputError(f"LoRA: {path} holds {prefix}.{astray[0]}.alpha; {expected}")
    numbers = {layer: _number(f"{path}: {prefix}.{layer}.alpha", tensor) for layer, tensor in alphas.items()}
    scale_of = _of_alphas(numbers) if alphas else _told_beside(Path(path), prefix)
    scales = {name: scale_of(name.removesuffix(".weight"), a.shape[0]) for name, a in factors["lora_A"].items()}
    return Adapters(factors, scales)


def _of_alphas(alphas: Mapping[str, float]) -> Scale:
    return lambda layer, rank: alphas[layer] / rank if layer in alphas else 1.0


def _told_beside(path: Path, prefix: str) -> Scale:
    """What is said outside the tensors."""
    metadata = read_metadata(path) if path.suffix == ".safetensors" else {}  # whole, as `read_tensors` has seen
    if told := metadata.get("lora_adapter_metadata"):
        where = f"{path}: lora_adapter_metadata"
        raw = _object(where, told)
        own = {key.removeprefix(f"{prefix}."): value for key, value in raw.items() if key.startswith(f"{prefix}.")}
        return _of_peft(where, own or raw)
    beside = path.with_name("adapter_config.json")
    if path.name == "adapter_model.safetensors" and beside.is_file():
        return _of_peft(str(beside), read_object(beside, "save the adapter again"))
    for key in NUMBERS:
        if key in metadata:
            alpha = _number(f"{path}: {key}", metadata[key])
            return lambda layer, rank: alpha / rank
    return lambda layer, rank: 1.0


def _of_peft(where: str, config: Mapping[str, Any]) -> Scale:
    if other := [key for key in OTHER_FUNCTIONS if config.get(key)]:
        raise InputError(f"LoRA: {where} says {other[0]}, which is no plain LoRA; merge it where it was trained")
    alpha = _number(f"{where}: lora_alpha", config.get("lora_alpha", 8))  # peft's own default
    patterns = {key: _number(f"{where}: alpha_pattern", value) for key, value in (config.get("alpha_pattern") or {}).items()}

    def scale(layer: str, rank: int) -> float:
        own = next((value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", layer)), alpha)
        return own / math.sqrt(rank) if config.get("use_rslora") else own / rank

    return scale


def _object(where: str, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InputError(f"LoRA: {where} cannot be read ({error}); save the adapter again") from None
    if not isinstance(found, dict):
        raise InputError(f"LoRA: {where} is no table of settings; save the adapter again")
    return found


def _number(where: str, value: Any) -> float:
    if isinstance(value, np.ndarray):
        value = value.item() if value.size == 1 else f"{list(value.shape)} numbers"
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise InputError(f"LoRA: {where} = {value!r} is no positive number; save the adapter with its alpha")
    return number
