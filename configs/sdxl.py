"""DIDR on Stable Diffusion XL: a diffusers folder in, an aligned one-step UNet for diffusers out.

    python run.py --config=configs/sdxl.py --workdir=runs/sdxl \
        --config.weights.base=stable-diffusion-xl-base-1.0 \
        --config.weights.generator=dmd2_sdxl_1step_unet_fp16.bin \
        --config.data.prompts=prompts.txt --config.rewards.hps=HPS_v2.1_compressed.pt

then the same with --mode=export (docs/sdxl.md).  Values marked [DMD2] are those of its published SDXL
run (arXiv 2405.14867 and its code); [ours] have no published counterpart.
"""

import ml_collections

from didr_jax.config import game
from didr_jax.recipes.text_to_image.knobs import text_to_image


def get_config() -> ml_collections.ConfigDict:
    config = text_to_image()
    config.recipe = "stable_diffusion"
    config.compile.pipeline = "sdxl"
    config.schedule.name = "ddpm"

    config.network.generator_timesteps = (399,)  # of the generator; (999, 749, 499, 249) for four steps [DMD2]
    config.network.cross_attention = "xla"  # to the text: as network.attention
    config.lora.layers = (r"attn[12]/to_(q|k|v|out)$",)

    config.align = game(steps=10_000, lr=5e-7, batch_size=128)  # steps [ours], the rest [DMD2]
    config.align.guidance = 8.0  # [DMD2]
    config.align.ta_weighting = "eps"  # [DMD2]
    config.align.ta_t_min = 0.0  # timesteps 0 to 999 [DMD2]
    config.align.estimator = "auto"
    config.align.beta = 0.1  # [ours] in units of the mix: bring the logged pull_to_divergence to 0.1-1
    for part in (config.align.generator_optimizer, config.align.ta_optimizer):
        part.warmup = 500  # [DMD2]
        part.weight_decay = 0.01  # [DMD2]
    return config
