"""PickScore (Kirstain et al. 2305.01569; yuvalkirstain/PickScore, README)."""

import functools
import os
from typing import Any

import jax.numpy as jnp

from didr_jax.rewards.base import RewardModel
from didr_jax.rewards.cosine import clip_cosine
from didr_jax.rewards.preprocess import resize_and_crop
from didr_jax.text.tokens import clip_tokenizer
from didr_jax.types import Array, PyTree
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
    """exp(logit_scale) · cos(image, prompt), about 22 for a fair image.

    Images: shortest side to 224, centre crop as transformers' `CLIPImageProcessor` rounds it.

    Args:
      weights: the `yuvalkirstain/PickScore_v1` folder (ViT-H/14).
      tokenizer: a folder with any CLIP tokenizer; None: the same folder.
      arch, dtype, param_dtype, remat: as in `hps.load`.
    """
    (vision, text), params = load_clip(weights, arch, dtype=param_dtype)
    cosine = clip_cosine(vision, text, dtype=dtype, remat=remat)

    def score(params: PyTree, pixels: Array, tokens: PyTree) -> Array:
        return jnp.exp(params["logit_scale"].astype(jnp.float32)) * cosine(params, pixels, tokens)

    return RewardModel(
        "pickscore",
        params,
        preprocess=functools.partial(resize_and_crop, size=vision.image_size, half=int),
        score=score,
        tokenize=clip_tokenizer(tokenizer or weights, text.positions),
        centre=22.8,
        spread=1.1,
    )
