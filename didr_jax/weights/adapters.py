"""Files of low-rank adapters (LoRA): their factors by name, and the scale that the file itself asks for.

An adapter of rank r adds (α/r) · x A B.  Where a file says α, by dialect, the first that says anything:

    a tensor PREFIX.LAYER.alpha                               kohya, and what diffusers makes of it
    `lora_adapter_metadata` in the safetensors' metadata      diffusers: peft's config, its keys with the part's prefix
    adapter_config.json beside adapter_model.safetensors      peft: r, lora_alpha, alpha_pattern, use_rslora
    `ss_network_alpha`, `lora_alpha`, `alpha`, in the metadata  trainers that keep a single number

and where none does, α = r: the scale is in the factors.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from didr_jax.checks import listed
from didr_jax.json_files import read_object
from didr_jax.types import InputError
from didr_jax.weights.dialects import ALPHA, DOWN, UP, Layers, Place, parsed
from didr_jax.weights.files import read_tensors
from didr_jax.weights.header import read_metadata

Scale = Callable[[str, int], float]  # (layer, rank) -> alpha/rank
NUMBERS = ("ss_network_alpha", "lora_alpha", "network_alpha", "alpha")  # in the metadata
# Switches of peft's config under which an adapter is another function than a scaled product.
OTHER_FUNCTIONS = ("use_dora", "lora_bias", "use_qalora", "alora_invocation_tokens")


class Adapter(NamedTuple):
    """What a file adds to a dense layer.

    `down` [rank, in] and `up` [out, rank] are tensors of the file; `scale`: alpha/rank, as the file has it.
    """

    name: str
    down: Any
    up: Any
    scale: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]


NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")  # diffusers', peft's
PICKLED = ("pytorch_lora_weights.bin", "adapter_model.bin")


def picked_adapter(names: Iterable[str], variant: str | None = None) -> str | None:
    """Of the names in a folder that of its adapters: a usual one, or the only safetensors file."""
    there = list(names)
    only = [name for name in there if name.endswith(".safetensors")]
    return next((n for n in (*NAMES, *PICKLED) if n in there), only[0] if len(only) == 1 else None)


def read_adapters(path: str | os.PathLike, prefix: str, layers: Layers) -> dict[Place, Adapter]:
    """The adapters in a file, of any dialect; of tensors other than alphas only names and shapes are read.

    Args:
      path: a `.safetensors` file, a pickle of peft, or a folder with one of them.
      prefix: of diffusers' names of the adapted part, `transformer` or `unet`.
      layers: of the network.

    Raises:
      InputError: no adapters of this network, other tensors besides, an alpha that is none, or adapters of another kind.
    """
    path = _file(Path(path))
    found: dict[str, dict[str, Any]] = {}
    tensors = read_tensors(path)
    for key, layer, kind in parsed(list(tensors), layers, prefix, f"LoRA: {path}"):
        if kind in found.setdefault(layer, {}):
            raise InputError(f"LoRA: {path} has the adapter of {layer} twice ({key})")
        found[layer][kind] = tensors[key] if kind != ALPHA else _number(f"{path}: {key}", tensors[key])
    if not found or any({DOWN, UP} - kinds.keys() for kinds in found.values()):
        lacking = [layer for layer, kinds in found.items() if {DOWN, UP} - kinds.keys()]
        raise InputError(
            f"LoRA: {path} holds no adapters, or lacks one of the pair lora_A, lora_B of a layer{f' ({lacking[0]})' if lacking else ''}"
        )
    alphas = {layer: kinds[ALPHA] for layer, kinds in found.items() if ALPHA in kinds}
    scale_of = _of_alphas(alphas) if alphas else _told_beside(path, prefix)
    adapters: dict[Place, Adapter] = {}
    for layer, kinds in found.items():
        down, up = _matrix(kinds[DOWN]), _matrix(kinds[UP])
        for place in layers.places[layer]:
            own = place._replace(part=None)
            if own in adapters:
                raise InputError(f"LoRA: {path} has the adapter of {place.name} twice, in two dialects")
            adapters[own] = Adapter(place.name, down, _rows(up, place.part), scale_of(layer, down.shape[0] or 1))
    return adapters


def told(ranks: Mapping[str, int], prefix: str, dialect: str) -> dict[str, str]:
    """What a file says of its adapters in the metadata, where their scale is in the factors: alpha is the rank.

    Args:
      ranks: by layer.
      prefix: of the adapted part.
      dialect: `diffusers` (peft's config), or another (kohya's words).
    """
    usual = max(ranks.values(), key=list(ranks.values()).count, default=0)
    others = {layer: rank for layer, rank in ranks.items() if rank != usual}
    if dialect != "diffusers":
        return {"ss_network_module": "networks.lora", "ss_network_dim": str(usual), "ss_network_alpha": str(usual)}
    config = {"r": usual, "lora_alpha": usual, "target_modules": list(ranks), "rank_pattern": others, "alpha_pattern": others}
    return {"lora_adapter_metadata": json.dumps({f"{prefix}.{key}": value for key, value in config.items()})}


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    names = sorted(each.name for each in path.iterdir())
    if (name := picked_adapter(names)) is None:
        raise InputError(f"LoRA: {path} holds none of {', '.join(NAMES)} ({listed(names) or 'nothing'}); give the file", names)
    return path / name


def _matrix(tensor: Any) -> Any:
    """A factor as a matrix; of a 1x1 convolution it may have four axes."""
    return tensor[:, :, 0, 0] if tensor.ndim == 4 and tensor.shape[2:] == (1, 1) else tensor


def _rows(up: Any, part: tuple[int, int] | None) -> Any:
    """Of a fused layer's outputs those of one of its n layers."""
    if part is None or up.shape[0] % part[1]:
        return up
    size = up.shape[0] // part[1]
    return up[part[0] * size : (part[0] + 1) * size]


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
    if path.stem == "adapter_model":
        if not beside.is_file():
            raise InputError(
                f"LoRA: {path} has no {beside.name} beside it, which is where peft keeps alpha; fetch the whole folder"
            )
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
