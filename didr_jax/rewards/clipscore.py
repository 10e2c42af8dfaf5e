"""CLIPScore: how well an image fits its prompt (Hessel et al. 2104.08718, as text-to-image papers report it)."""

import functools
import os
from typing import Any

import jax.numpy as jnp

from didr_jax.rewards.base import RewardModel
from didr_jax.rewards.cosine import clip_cosine
from didr_jax.rewards.preprocess import resize_and_crop
from didr_jax.text.tokens import clip_tokenizer
from didr_jax.weights.clip import Configs, load_clip


def load(
    weights: str | os.PathLike,
    tokenizer: str | os.PathLike | None = None,
    *,
    arch: str | Configs | None = None,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
    remat: str = "none",
) -> RewardModel:
    """100 · cos(image, prompt), not floored at 0: DMD2's convention, with ViT-L/14 or ViT-bigG/14.

    Images: shortest side to 224, centre crop as torchvision rounds it (openai/CLIP, open_clip).  A useful held-out
    metric: preference rewards that are being hacked let it fall.

    Args:
      weights: a Hugging Face CLIP folder, or an open_clip file with its `arch`.
      tokenizer: a folder with any CLIP tokenizer; None: the same folder.
      arch, dtype, param_dtype, remat: as in `hps.load`.
    """
    (vision, text), params = load_clip(weights, arch, dtype=param_dtype)
    cosine = clip_cosine(vision, text, dtype=dtype, remat=remat)
    return RewardModel(
        "clipscore",
        params,
        preprocess=functools.partial(resize_and_crop, size=vision.image_size),
        score=lambda *args: 100 * cosine(*args),
        tokenize=clip_tokenizer(tokenizer or weights, text.positions),
        centre=34.0,
        spread=5.0,
    )
