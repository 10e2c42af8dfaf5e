"""The one-step UNet of the SDXL twin, distilled from the multi-step reference by the recipe of SDXL, without a reward.

After the commands of configs/sprouts_sdxl_pipeline.py:

    python run.py --config=configs/sprouts_sdxl_distill.py --workdir=runs/sprouts_sdxl_distill
    python run.py --mode=export --workdir=runs/sprouts_sdxl_distill
"""

import ml_collections

from didr_jax.recipes.sprouts.knobs import MADE_SDXL, small_sdxl


def get_config(folder: str = MADE_SDXL) -> ml_collections.ConfigDict:
    config = small_sdxl(folder)
    config.weights.generator = f"{folder}/generator/unet"  # by regression
    config.data.prompts = f"{folder}/prompts/distill.txt"  # captions of all kinds

    config.align.steps = 300
    config.align.generator_optimizer.lr = 3e-4
    config.align.objective = "dmd2"

    config.eval.every = 100
    return config
