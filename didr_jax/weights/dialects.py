"""Names in files of adapters: which layer of a network they are about, and which factor they are, in all dialects.

    unet.LAYER.lora_A.weight, lora_B                       diffusers (`transformer.` for Z-Image)
    unet.LAYER.lora.down.weight, lora.up                   diffusers before peft; `LAYER.processor.to_q_lora.down` before that
    base_model.model.LAYER.lora_A.default.weight           peft, with or without the adapter's name
    diffusion_model.LAYER.lora_A.weight                    ComfyUI and many trainers
    lora_unet_LAYER_WITHOUT_DOTS.lora_down.weight, .alpha  kohya

LAYER is a name in diffusers' format or in that of single files; a layer there may be several here (fused q, k, v).
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from didr_jax.types import InputError
from didr_jax.weights.engine import writer_of
from didr_jax.weights.rules import Rule

DOWN, UP, ALPHA = "lora_A", "lora_B", "alpha"
_KINDS = {
    "lora_A": DOWN, "lora_B": UP, "lora_down": DOWN, "lora_up": UP, "lora.down": DOWN, "lora.up": UP, "lora_linear_layer.down": DOWN,
    "lora_linear_layer.up": UP,
}  # fmt: skip
_FACTOR = re.compile(rf"(?P<layer>.+?)\.(?P<kind>{'|'.join(map(re.escape, _KINDS))})(\.(?!weight$)[\w-]+)?\.weight")
_PROCESSOR = re.compile(r"\.processor\.(to_q|to_k|to_v|to_out)_lora\.(down|up)\.weight$")
_PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "lora_unet_", "lora_transformer_", "lycoris_")
_TEXT = ("text_encoder", "lora_te", "text_model.", "te1_", "te2_", "conditioner.", "cond_stage_model.")
# Parts of names of adapters that are another function than a scaled product.
_OTHER = re.compile(
    r"hada_w|lokr_w|lora_mid|dora_scale|lora_magnitude_vector|oft_|\.diff(_b)?$|lora_[AB](\.\w+)?\.bias|\.glora_|on_input"
)


class Place(NamedTuple):
    """A dense layer: its leaf, and where it is in there (0 if it is all of it); its name in diffusers' format; of a fused
    layer, which rows it is."""

    path: str
    at: int
    name: str
    part: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Layers:
    """The dense layers of a network by all names that they have, and the names of its convolutions."""

    places: Mapping[str, Sequence[Place]]
    convolutions: frozenset[str]


def layers_of(shapes: Mapping[str, Any], tables: Sequence[Sequence[Rule]]) -> Layers:
    """Of a network.

    Args:
      shapes: `{path/kernel: shape}` of its kernels.
      tables: of its names; the first is that of diffusers.
    """
    places: dict[str, list[Place]] = {}
    convolutions = set[str]()
    for path, shape in shapes.items():
        writers = [writer_of(table, path) for table in tables]
        stacked = writers[0][0].stacked
        for i in range(shape[0] if stacked else 1):
            canonical = writers[0][1](i).removesuffix(".weight")
            for rule, name_of in writers:
                name = name_of(i).removesuffix(".weight")
                both = {name, name.replace(".", "_")}
                if len(shape) - stacked != 2:
                    convolutions |= both
                    continue
                for known in both:
                    places.setdefault(known, []).append(Place(path, i, canonical, rule.part))
    return Layers({name: list(dict.fromkeys(found)) for name, found in places.items()}, frozenset(convolutions))


def parsed(keys: Sequence[str], layers: Layers, prefix: str, where: str) -> Iterator[tuple[str, str, str]]:
    """(key, layer as `layers` has it, `lora_A`, `lora_B` or `alpha`) of every key of a file.

    Args:
      keys: of the file.
      layers: of the network.
      prefix: of diffusers' names of the adapted part, `transformer` or `unet`.
      where: begins an error.

    Raises:
      InputError: one that is about no dense layer of the network, or about another kind of adapter.
    """
    for key in keys:
        if key.startswith(_TEXT):
            raise InputError(
                f"{where} adapts the text encoder ({key}), which stays as it is here; remove its tensors from the file"
            )
        if _OTHER.search(key):
            raise InputError(f"{where} holds {key}, which is no plain LoRA; merge it where it was trained")
        layer, kind = _split(key)
        for start in (f"{prefix}.", *_PREFIXES, f"{prefix}."):
            layer = layer.removeprefix(start)
        if layer in layers.convolutions:
            raise InputError(f"{where} adapts a convolution ({key}), which has no adapter here; merge it where it was trained")
        if not kind or layer not in layers.places:
            raise InputError(
                f"{where} holds {key}; expected are {prefix}.LAYER.lora_A.weight and its lora_B, or the names of kohya, peft or "
                "ComfyUI for layers of this network"
            )
        yield key, layer, kind


def _split(key: str) -> tuple[str, str]:
    """(layer with its prefixes, kind); an empty kind where the key is no adapter's."""
    plain = _PROCESSOR.sub(lambda m: f".{m[1]}{'.0' if m[1] == 'to_out' else ''}.lora.{m[2]}.weight", key)
    if (m := _FACTOR.fullmatch(plain)) is not None:
        return m["layer"], _KINDS[m["kind"]]
    return (key.removesuffix(".alpha"), ALPHA) if key.endswith(".alpha") else (key, "")
