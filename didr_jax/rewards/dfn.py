"""Apple's DFN5B CLIP (Fang et al. 2309.17425; `apple/DFN5B-CLIP-ViT-H-14`, `open_clip_config.json`): fit to the prompt.

100 · cos(image, prompt).  DMDR (2511.13649) trains one-step SDXL on relu(.7 − cos), ×.3, beside HPSv2.1: the same
gradient as long as the cosine is below .7.

Images: squashed to 224 × 224, whatever their shape (`"resize_mode": "squash"`, `"interpolation": "bicubic"`; the same in
open_clip's `pretrained.py`), as PIL resizes them.
"""

from didr_jax.rewards.cosine import cosine_reward
from didr_jax.rewards.preprocess import resize_bicubic, standardise, unit_range
from didr_jax.types import Array


def squash(images: Array, size: int = 224) -> Array:
    """Both sides to `size`, CLIP mean and std: `[b, h, w, 3]` in [-1, 1] -> `[b, size, size, 3]`."""
    return standardise(resize_bicubic(unit_range(images), size, size))


REWARD = cosine_reward(
    "dfn",
    "DFN5B CLIP: 100 · cosine",
    weights="DFN5B-CLIP-ViT-H-14: open_clip_pytorch_model.bin, its tensors as safetensors, or the folder",
    preprocess=squash,
    published="ViT-H-14-quickgelu",
    arch="ViT-H-14-quickgelu",
    centre=35.0,  # nobody published SDXL's mean: near CLIPScore's, and like it in spread [ours]
    spread=5.0,
)
