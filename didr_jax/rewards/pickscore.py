"""PickScore (Kirstain et al. 2305.01569; yuvalkirstain/PickScore, README).

exp(logit_scale) · cos(image, prompt), about 22 for a fair image.  Images: shortest side to 224, centre crop as
transformers' `CLIPImageProcessor` rounds it.
"""

import functools

import jax.numpy as jnp

from didr_jax.rewards.cosine import cosine_reward
from didr_jax.rewards.preprocess import resize_and_crop

REWARD = cosine_reward(
    "pickscore",
    "PickScore: exp(logit_scale) · cosine",
    weights="yuvalkirstain/PickScore_v1 folder",
    preprocess=functools.partial(resize_and_crop, half=int),
    published="ViT-H-14",
    scale=lambda params: jnp.exp(params["logit_scale"].astype(jnp.float32)),
    centre=22.8,
    spread=1.1,
)
