"""CLIPScore: how well an image fits its prompt (Hessel et al. 2104.08718, as text-to-image papers report it).

100 · cos(image, prompt), not floored at 0: DMD2's convention, with ViT-L/14 or ViT-bigG/14.  Images: shortest side to
224, centre crop as torchvision rounds it (openai/CLIP, open_clip).  A useful held-out metric: preference rewards that
are being hacked let it fall.
"""

from didr_jax.rewards.cosine import cosine_reward
from didr_jax.rewards.preprocess import resize_and_crop

REWARD = cosine_reward(
    "clipscore",
    "CLIPScore: 100 · cosine",
    weights="a CLIP folder",
    preprocess=resize_and_crop,
    published="ViT-L-14-quickgelu",
    centre=34.0,
    spread=5.0,
    held_out=True,
)
