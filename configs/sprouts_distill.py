"""The one-step generator of sprouts, distilled from the multi-step reference by the recipe of Z-Image, without a reward.

After the commands of configs/sprouts_pipeline.py:

    python run.py --config=configs/sprouts_distill.py --workdir=runs/sprouts_distill
    python run.py --mode=export --workdir=runs/sprouts_distill
    cp runs/sprouts_distill/export/pytorch_lora_weights.safetensors runs/sprouts_pipeline/export/one_step.safetensors

configs/sprouts.py begins with what came out, as adapters of rank 32: a third of its size.
"""

import ml_collections

from didr_jax.config import game
from didr_jax.recipes.sprouts.knobs import MUON, small_zimage

MADE = "runs/sprouts_pipeline/export"  # where the commands of configs/sprouts_pipeline.py leave it


def get_config() -> ml_collections.ConfigDict:
    config = small_zimage(MADE)
    config.weights.generator = f"{MADE}/generator"  # by regression
    config.data.prompts = f"{MADE}/prompts/distill.txt"  # captions of all kinds

    config.align = game(steps=300, lr=3e-4, batch_size=32)
    config.align.objective = "dmd2"
    config.align.ta_updates = 2
    config.align.ta_weighting = "velocity"
    config.align.ta_optimizer.lr = 1e-3
    for part in (config.align.generator_optimizer, config.align.ta_optimizer):
        part.update(MUON | dict(decay=True))

    config.eval.every = 100
    config.export.adapter_rank = 32
    return config
