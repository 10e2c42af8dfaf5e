"""DIDR on Stable Diffusion 1.5: the recipe of configs/sdxl.py with other numbers.

    python run.py --config=configs/sd15.py --workdir=runs/sd15 --config.weights.base=stable-diffusion-v1-5 \
        --config.weights.generator=one_step_unet.safetensors --config.data.prompts=prompts.txt \
        --config.rewards.hps=HPS_v2.1_compressed.pt

Values marked [DMD2] are those of its SD 1.5 run.
"""

import ml_collections

from configs import sdxl


def get_config() -> ml_collections.ConfigDict:
    config = sdxl.get_config()
    config.image.height = config.image.width = 512
    config.network.generator_timesteps = (999,)  # [DMD2]
    config.align.guidance = 1.75  # [DMD2]
    config.align.ta_updates = 10  # [DMD2]
    for part in (config.align.generator_optimizer, config.align.ta_optimizer):
        part.lr = 1e-5  # [DMD2]
    return config
