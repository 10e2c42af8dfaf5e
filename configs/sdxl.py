"""DIDR on Stable Diffusion XL: a diffusers folder in, an aligned one-step UNet for diffusers out.

    python run.py --config=configs/sdxl.py --workdir=runs/sdxl \
        --config.weights.base=stable-diffusion-xl-base-1.0 \
        --config.weights.generator=dmd2_sdxl_1step_unet_fp16.bin \
        --config.data.prompts=prompts.txt --config.rewards.hps=HPS_v2.1_compressed.pt

then the same with --mode=export (docs/sdxl.md).  What it shares with SD 1.5 is in
didr_jax/recipes/text_to_image/knobs.py.  Values marked [DMD2] are those of its published SDXL run (arXiv 2405.14867).
"""

import ml_collections

from didr_jax.recipes.text_to_image.knobs import stable_diffusion


def get_config() -> ml_collections.ConfigDict:
    config = stable_diffusion("sdxl", lr=5e-7)  # [DMD2]
    config.network.generator_timesteps = (399,)  # [DMD2]; (999, 749, 499, 249) for four steps
    config.align.guidance = 8.0  # [DMD2]
    return config
