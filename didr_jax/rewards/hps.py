"""HPSv2.1 (Wu et al. 2306.09341; tgxs002/HPSv2, `hpsv2/img_score.py`)."""

import functools
import os
from typing import Any

import jax.numpy as jnp

from didr_jax.rewards.base import RewardModel
from didr_jax.rewards.cosine import clip_cosine
from didr_jax.rewards.preprocess import resize_and_pad
from didr_jax.text.tokens import clip_tokenizer
from didr_jax.weights.clip import Configs, load_clip


def load(
    weights: str | os.PathLike,
    tokenizer: str | os.PathLike,
    *,
    arch: str | Configs = "ViT-H-14",
    antialias: bool = True,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
    remat: str = "none",
) -> RewardModel:
    """100 · cos(image, prompt): the dot product of unit features without logit scale, ×100 as papers print it.

    Images: longest side to 224, black padding to a square, resized as float tensors.

    Args:
      weights: `HPS_v2.1_compressed.pt` (`xswu/HPSv2`), its tensors as safetensors, or a Hugging Face CLIP folder.
      tokenizer: a folder with any CLIP tokenizer; the checkpoint brings none.
      arch: of an open_clip file.
      antialias: False reproduces numbers that were measured with torchvision < 0.17, which did not antialias tensors.
      dtype: of the computation.  The official code runs under autocast: its numbers carry half-precision rounding.
      param_dtype: of the parameters.
      remat: what the backward pass recomputes of the image tower's blocks (`models.remat`).
    """
    (vision, text), params = load_clip(weights, arch, dtype=param_dtype)
    cosine = clip_cosine(vision, text, dtype=dtype, remat=remat)
    return RewardModel(
        "hps",
        params,
        preprocess=functools.partial(resize_and_pad, size=vision.image_size, antialias=antialias),
        score=lambda *args: 100 * cosine(*args),
        tokenize=clip_tokenizer(tokenizer, text.positions),
        centre=28.98,
        spread=4.91,
    )
