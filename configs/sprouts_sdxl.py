"""The SDXL twin of sprouts: the recipe of SDXL on a small StableDiffusionXLPipeline, one step at timestep 399.

After the commands of configs/sprouts_sdxl_pipeline.py and configs/sprouts_sdxl_distill.py:

    python run.py --config=configs/sprouts_sdxl.py --workdir=runs/sprouts_sdxl
    python run.py --mode=export --workdir=runs/sprouts_sdxl

Reward, held-out CLIP and judge are those that ship with sprouts.
"""

import ml_collections

from didr_jax.recipes.sprouts.knobs import MADE_SDXL, SHIPPED, cheerful, small_sdxl

DISTILLED = "runs/sprouts_sdxl_distill/export/unet"


def get_config(folder: str = MADE_SDXL) -> ml_collections.ConfigDict:
    config = small_sdxl(folder)
    config.weights.generator = DISTILLED
    cheerful(config, str(SHIPPED))

    config.align.steps = 100
    config.align.beta = 0.5  # p* has .90 cheerful faces where the data has .55
    config.align.ema = 0.98

    config.eval.every = 50
    return config
