"""ImageReward (Xu et al. 2304.05977; THUDM/ImageReward, `ImageReward/ImageReward.py`)."""

import functools
import os
from typing import Any

import jax.numpy as jnp

from didr_jax.models.blip import VIT_L_16, BertConfig, ImageReward
from didr_jax.models.clip import VisionConfig
from didr_jax.rewards.base import MODEL, NETWORK_KNOBS, TOKENIZER, Knob, RewardModel, RewardRecord
from didr_jax.rewards.preprocess import resize_and_crop
from didr_jax.text.tokens import bert_tokenizer
from didr_jax.types import Array, PyTree
from didr_jax.weights.blip import load_imagereward

# Mean and standard deviation of the raw reward over the authors' validation images.
MEAN, STD = 0.16717362830052426, 1.0333394966054072

MAX_TOKENS = 35


def load(
    weights: str | os.PathLike | None,
    tokenizer: str | os.PathLike | None,
    *,
    vision: VisionConfig = VIT_L_16,
    text: BertConfig = BertConfig(),
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
    remat: str = "none",
) -> RewardModel:
    """(raw - 0.16717)/1.03334: zero mean and unit variance on the authors' images.

    Images: shortest side to 224, centre crop as torchvision rounds it.  Prompts: 35 word pieces, the rest is cut.

    Args:
      weights: `ImageReward.pt` (`THUDM/ImageReward`) or its tensors as safetensors.
      tokenizer: the `bert-base-uncased` folder.
      vision, text: the towers, where they are not the published ones.
      dtype, param_dtype, remat: as in `cosine.cosine_reward`.
    """
    model = ImageReward(vision, text, remat=remat, dtype=dtype)

    def score(params: PyTree, pixels: Array, tokens: PyTree) -> Array:
        return (model.apply({"params": params}, pixels, tokens["ids"], tokens["mask"]) - MEAN) / STD

    return RewardModel(
        "imagereward",
        load_imagereward(weights, vision, text, dtype=param_dtype),
        preprocess=functools.partial(resize_and_crop, size=vision.image_size),
        score=score,
        tokenize=bert_tokenizer(tokenizer, MAX_TOKENS, text.vocab),
        centre=0.82,
        spread=0.28,
    )


REWARD = RewardRecord(
    load,
    "ImageReward: standardised on the authors' images",
    knobs={
        "weights": Knob("imagereward", "ImageReward.pt (THUDM/ImageReward) or its tensors as safetensors", files=MODEL),
        "tokenizer": Knob("bert_tokenizer", "bert-base-uncased folder, for imagereward", files=TOKENIZER),
        **NETWORK_KNOBS,
    },
    published={"weights": None, "tokenizer": None},
)
