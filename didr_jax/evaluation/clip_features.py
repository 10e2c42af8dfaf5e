"""Unit-length CLIP embeddings of pictures under a named protocol."""

import os
from collections.abc import Callable
from pathlib import Path

from didr_jax.evaluation.collect import Network, network_input
from didr_jax.evaluation.protocols import Protocol
from didr_jax.models.clip import ARCHITECTURES, TextConfig, VisionConfig, VisionTower
from didr_jax.rewards.cosine import unit
from didr_jax.types import Array, InputError, PyTree
from didr_jax.weights import clip as weights

# The architectures that protocols name, (picture, text), by the name that open_clip gives them.
_LARGE, _TEXT = ARCHITECTURES["ViT-L-14-quickgelu"]
MODELS: dict[str, tuple[VisionConfig, TextConfig]] = {
    **ARCHITECTURES,
    "ViT-B-32-quickgelu": (
        VisionConfig(768, 12, 12, 3072, patch=32, embed=512, act="quick_gelu"),
        TextConfig(512, 12, 8, 2048, embed=512, act="quick_gelu"),
    ),
    "ViT-L-14-336-quickgelu": (
        VisionConfig(1024, 24, 16, 4096, patch=14, image_size=336, embed=768, act="quick_gelu"),
        _TEXT,
    ),
    "ViT-g-14": (VisionConfig(1408, 40, 16, 6144, patch=14, embed=1024), TextConfig(1024, 24, 16, 4096, embed=1024)),
}


def open_clip(load: Callable, path: str | os.PathLike | None, row: Protocol) -> tuple:
    """(configuration, `Weights`) by `weights.clip.load_clip` or `load_vision`, checked against the protocol.

    Raises:
      InputError: unreadable, or another CLIP than the protocol's.
    """
    published = MODELS.get(row.network)
    says_itself = path is not None and (Path(path) / "config.json").is_file()
    configs, loaded = load(path, None if says_itself else published)
    vision = configs if isinstance(configs, VisionConfig) else configs[0]
    if published is not None and vision != published[0]:
        raise InputError(f"{path} is no {row.network}, which protocol {row.name!r} takes: {vision}, not {published[0]}")
    return configs, loaded


def clip_pictures(path: str | os.PathLike | None, row: Protocol) -> Network:
    """The image tower of a CLIP: a Hugging Face folder, or an open_clip file of the protocol's architecture."""
    vision, loaded = open_clip(weights.load_vision, path, row)
    tower = VisionTower(vision)

    def apply(params: PyTree, pictures: Array) -> Array:
        return unit(tower.apply({"params": params}, network_input(row.pixels, pictures)))

    return Network(row, loaded, apply, vision.embed)
