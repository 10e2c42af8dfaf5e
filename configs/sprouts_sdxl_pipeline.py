"""The SDXL twin of sprouts, from nothing: every network of a small StableDiffusionXLPipeline, on drawn pictures.

    pip install dicebear-core==10.7.0 dicebear-styles==10.6.0 resvg-py==0.5.0
    pip install --no-deps open-clip-torch==3.3.0
    python run.py --config=configs/sprouts_sdxl_pipeline.py --workdir=runs/sprouts_sdxl_pipeline
    python run.py --mode=export --workdir=runs/sprouts_sdxl_pipeline

For a GPU, or an evening on two CPU cores (docs/sprouts.md).  CLIP, reward and judge are those that ship with sprouts.
configs/sprouts_sdxl_distill.py and configs/sprouts_sdxl.py go on from there.
"""

import ml_collections

from didr_jax.config import fit
from didr_jax.recipes.sprouts.knobs import MUON, from_nothing


def get_config() -> ml_collections.ConfigDict:
    config = from_nothing()
    config.recipe = "sprouts_sdxl"
    config.stages = ("vae", "words", "reference", "one_step")

    config.vae = fit(steps=1500, lr=2e-3, batch_size=8)
    config.vae.kl = 3e-4  # weight of the divergence from the standard normal, per entry of a latent
    config.vae.contrast = 8.0  # how much more an error weighs where the picture has lines
    config.words = fit(steps=400, lr=3e-3, batch_size=64)
    config.reference = fit(steps=4000, lr=4e-3, batch_size=32)
    config.reference.condition_dropout = 0.1  # share of samples trained without a caption, for guidance
    config.one_step = fit(steps=600, lr=2e-3, batch_size=32)
    config.one_step.pairs = 4096  # ends of the reference's solver
    config.one_step.solver_steps = 12  # of each
    for name in config.stages:
        config[name].optimizer.update(MUON | dict(warmup=50, decay=True))
        config[name].ema = 0.998
    return config
