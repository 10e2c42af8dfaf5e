"""Sprouts, from nothing: every network of a small Z-Image pipeline, a CLIP, a reward and a judge, on drawn pictures.

    pip install dicebear-core==10.7.0 dicebear-styles==10.6.0 resvg-py==0.5.0
    python run.py --config=configs/sprouts_pipeline.py --workdir=runs/sprouts_pipeline
    python run.py --mode=export --workdir=runs/sprouts_pipeline

About an hour on two CPU cores (docs/sprouts.md).  configs/sprouts_distill.py and configs/sprouts.py go on from there.
"""

import ml_collections

from didr_jax.config import fit
from didr_jax.recipes.sprouts.knobs import MUON, from_nothing


def get_config() -> ml_collections.ConfigDict:
    config = from_nothing()
    config.recipe = "sprouts"
    config.stages = ("vae", "words", "judge", "reference", "clip", "preference", "one_step")

    config.vae = fit(steps=3000, lr=2e-3, batch_size=8)
    config.vae.kl = 3e-4  # weight of the divergence from the standard normal, per entry of a latent
    config.vae.contrast = 8.0  # how much more an error weighs where the picture has lines
    config.words = fit(steps=400, lr=3e-3, batch_size=64)
    config.clip = fit(steps=500, lr=1e-3, batch_size=64)
    config.preference = fit(steps=300, lr=3e-4, batch_size=64)
    config.judge = fit(steps=700, lr=2e-3, batch_size=64)
    config.reference = fit(steps=4000, lr=4e-3, batch_size=32)
    config.reference.condition_dropout = 0.1  # share of samples trained with the empty prompt, for guidance
    config.one_step = fit(steps=600, lr=2e-3, batch_size=32)
    config.one_step.pairs = 4096  # ends of the reference's flow
    config.one_step.solver_steps = 10  # of the flow
    for name in ("reference", "one_step"):
        config[name].optimizer.update(MUON)
    for name in config.stages:
        config[name].optimizer.decay = True
        config[name].optimizer.warmup = 100
        config[name].ema = 0.998
    return config
