"""DIDR on Stable Diffusion 1.5: the recipe of configs/sdxl.py with other numbers.

    python run.py --config=configs/sd15.py --workdir=runs/sd15 --config.weights.base=stable-diffusion-v1-5 \
        --config.weights.generator=one_step_unet.safetensors --config.data.prompts=prompts.txt \
        --config.rewards.hps=HPS_v2.1_compressed.pt

Values marked [DMD2] are those of its published SD 1.5 run (arXiv 2405.14867).
"""

import ml_collections

from didr_jax.recipes.text_to_image.knobs import stable_diffusion


def get_config() -> ml_collections.ConfigDict:
    config = stable_diffusion("sd15", lr=1e-5)  # [DMD2]
    config.image.height = config.image.width = 512
    config.network.generator_timesteps = (999,)  # [DMD2]
    config.align.guidance = 1.75  # [DMD2]
    config.align.ta_updates = 10  # [DMD2]
    return config
