"""Potted plants with faces, 64 × 64, text to image on a laptop: the recipe of Z-Image on a small pipeline that ships.

    python run.py --config=configs/sprouts.py --workdir=runs/sprouts
    python run.py --mode=export --workdir=runs/sprouts

The reward likes cheerful mouths, which captions leave open; the law that it tilts the reference to is known
(docs/sprouts.md).  Other methods: --config.align.objective=dipp; plain reward ascent: refl.
On a pipeline of your own (configs/sprouts_pipeline.py): --config=configs/sprouts.py:runs/sprouts_pipeline/export.
"""

import ml_collections

from didr_jax.recipes.sprouts.knobs import MUON, ONE_STEP, SHIPPED, cheerful, small_zimage
from didr_jax.recipes.text_to_image.knobs import aligned


def get_config(folder: str = str(SHIPPED)) -> ml_collections.ConfigDict:
    config = small_zimage(folder)
    config.weights.generator_adapter = f"{folder}/{ONE_STEP}"

    cheerful(config, folder)

    config.align = aligned(steps=100, lr=4e-4, batch_size=32)
    config.align.ta_updates = 2
    config.align.ta_weighting = "velocity"
    config.align.beta = 0.5  # p* has .90 cheerful faces where the data has .55
    config.align.ema = 0.98
    config.align.ta_optimizer.lr = 8e-3  # not the best denoiser, and the best held: docs/sprouts.md, "The TA's rate"
    for part in (config.align.generator_optimizer, config.align.ta_optimizer):
        part.update(MUON | dict(warmup=10, decay=True))

    config.eval.every = 50
    return config
