"""LAION's aesthetic predictor (christophschuhmann/improved-aesthetic-predictor, `simple_inference.py`)."""

import functools
import os
from typing import Any

import jax.numpy as jnp

from didr_jax.models.blip import LinearHead
from didr_jax.models.clip import VisionTower
from didr_jax.rewards.base import MODEL, NETWORK_KNOBS, Knob, RewardModel, RewardRecord
from didr_jax.rewards.cosine import unit
from didr_jax.rewards.preprocess import resize_and_crop
from didr_jax.text.tokens import utf8
from didr_jax.types import Array, InputError, PyTree, Weights
from didr_jax.weights.blip import load_aesthetic_head
from didr_jax.weights.clip import Configs, load_vision

CENTRE, SPREAD = 5.45, 0.38  # of its scores, as `RewardModel` has them


def load(
    weights: str | os.PathLike | None,
    clip: str | os.PathLike | None,
    *,
    arch: str | Configs | None = None,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
    remat: str = "none",
) -> RewardModel:
    """A linear head on the unit-length CLIP embedding, about 1 to 10.  It never looks at the prompt.

    Images: shortest side to 224, centre crop as torchvision rounds it.

    Args:
      weights: `sac+logos+ava1-l14-linearMSE.pth` or its tensors as safetensors.
      clip: OpenAI's ViT-L/14 as a Hugging Face folder, or an open_clip file with its `arch`.
      arch, dtype, param_dtype, remat: as in `cosine.cosine_reward`.
    """
    vision, tower = load_vision(clip, arch, dtype=param_dtype)
    if vision.embed is None:
        raise InputError(f"aesthetic: {clip} has no visual projection; give a whole CLIP, not an image tower")
    model = VisionTower(vision, remat=remat, dtype=dtype)

    def score(params: PyTree, pixels: Array, tokens: PyTree) -> Array:
        embedding = model.apply({"params": params["vision"]}, pixels)
        return LinearHead().apply({"params": params["head"]}, unit(embedding))

    return RewardModel(
        "aesthetic",
        Weights.join({"vision": tower, "head": load_aesthetic_head(weights, vision.embed)}),
        preprocess=functools.partial(resize_and_crop, size=vision.image_size),
        score=score,
        tokenize=utf8,
        centre=CENTRE,
        spread=SPREAD,
    )


REWARD = RewardRecord(
    load,
    "LAION's aesthetic predictor: about 1 to 10",
    knobs={
        "weights": Knob("aesthetic", "sac+logos+ava1-l14-linearMSE.pth or its tensors as safetensors", files=MODEL),
        "clip": Knob("clip", "OpenAI's ViT-L/14 folder, through which aesthetic looks", files=MODEL),
        **NETWORK_KNOBS,
    },
    published={"weights": None, "clip": None, "arch": "ViT-L-14-quickgelu"},
    held_out=True,
)
