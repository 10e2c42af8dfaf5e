"""Potted plants with faces, 64 × 64, text to image on a laptop: the recipe of Z-Image on a pipeline that two cores train.

After the commands of configs/sprouts_pipeline.py and configs/sprouts_distill.py:

    python run.py --config=configs/sprouts.py --workdir=runs/sprouts
    python run.py --config=configs/sprouts.py --workdir=runs/sprouts --mode=export

The reward likes cheerful mouths, which captions leave open; the law that it tilts the reference to is known
(docs/sprouts.md).  Other methods: --config.align.objective=dipp; plain reward ascent: refl.
"""

import ml_collections

from didr_jax.config import game
from didr_jax.recipes.sprouts.knobs import MADE, small_zimage


def get_config() -> ml_collections.ConfigDict:
    config = small_zimage()
    config.weights.generator = "runs/sprouts_distill/export"  # one step

    config.rewards.aesthetic = str(MADE / "preference" / "head.safetensors")  # in the mix: 1 if cheerful, 0 if not
    config.rewards.clip = str(MADE / "preference")
    config.rewards.clipscore = str(MADE / "clip")
    config.rewards.held_out = ("clipscore",)
    config.rewards.weights.aesthetic = 1.0

    config.align = game(steps=150, lr=2e-4, batch_size=32)
    config.align.ta_updates = 2
    config.align.ta_weighting = "velocity"
    config.align.guard = False  # as docs/sprouts.md measured it
    config.align.beta = 0.5  # p* has .90 cheerful faces where the data has .55
    config.align.ema = 0.98
    config.align.ta_optimizer.lr = 1e-3
    for part in (config.align.generator_optimizer, config.align.ta_optimizer):
        part.warmup = 10

    config.eval.every = 50
    return config
