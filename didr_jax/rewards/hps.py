"""HPSv2.1 (Wu et al. 2306.09341; tgxs002/HPSv2, `hpsv2/img_score.py`).

100 · cos(image, prompt): the dot product of unit features without logit scale, ×100 as papers print it.  The official
code runs under autocast: its numbers carry half-precision rounding.

Images: longest side to 224, black padding to a square, resized as float tensors.  Numbers that were measured with
torchvision < 0.17, which did not antialias tensors, want `preprocess=partial(resize_and_pad, antialias=False)`.
"""

from didr_jax.rewards.cosine import cosine_reward
from didr_jax.rewards.preprocess import resize_and_pad

REWARD = cosine_reward(
    "hps",
    "HPSv2.1: 100 · cosine, no logit scale",
    weights="HPSv2.1: HPS_v2.1_compressed.pt (xswu/HPSv2), its tensors as safetensors, or a CLIP folder",
    preprocess=resize_and_pad,
    published="ViT-H-14",
    arch="ViT-H-14",
    centre=28.98,
    spread=4.91,
)
