"""What the configs of sprouts share: those that make a pipeline from nothing, and those that distill or align it by the
recipes `zimage` and `stable_diffusion`.

A folder of sprouts is what `--mode=export` of `configs/sprouts_pipeline.py` writes: pipeline/, clip/, preference/, judge/
and prompts/.  `SHIPPED` is one, and has the one-step generator beside them, as adapters on the pipeline's transformer.
"""

from pathlib import Path

import ml_collections

from didr_jax.config import base
from didr_jax.recipes.text_to_image.knobs import stable_diffusion, text_to_image

SHIPPED = Path(__file__).resolve().parents[2] / "assets" / "sprouts"
MADE_SDXL = "runs/sprouts_sdxl_pipeline/export"  # where the commands of configs/sprouts_sdxl_pipeline.py leave it
ONE_STEP = "one_step.safetensors"  # adapters, in a folder of sprouts
# Of networks of this size: Z-Image's looks at captions after 150 steps; with adamw, after 500.
MUON = dict(name="muon", muon_rms=1.0, b1=0.95)


def from_nothing() -> ml_collections.ConfigDict:
    """The config of a pipeline, without its recipe, stages and their numbers."""
    config = base()
    config.unroll = True

    config.data = ml_collections.ConfigDict()
    config.data.cache = "~/.cache/didr_jax"  # where drawn pictures are kept
    config.data.train = 10_000  # pictures
    config.data.held_out = 1_500  # of another seed: every network is measured on them
    config.data.judge = 6_000  # of another still, for the judge
    config.data.pairs = 3_000  # pictures, of those to train on, that are also drawn with another mouth

    config.eval = ml_collections.ConfigDict()
    config.eval.num = 1000  # held-out pictures, and captions that the reference draws
    config.eval.seed = 1234  # of the evaluation's noise
    config.eval.reference_steps = 24  # solver steps of the reference

    config.export = ml_collections.ConfigDict()
    config.export.dtype = "float16"  # of the weights of --mode=export
    return config


def small_zimage(folder: str) -> ml_collections.ConfigDict:
    """The config, for a folder of sprouts, without the generator, rewards and training numbers of `align`."""
    config = _small(text_to_image(), folder)
    config.recipe = "zimage"
    config.compile.pipeline = "zimage"
    config.schedule.name = "rectified_flow"
    config.schedule.shift = 1.0  # times are uniform

    config.data.max_length = 32  # tokens of a prompt, template included
    config.data.encoder_dtype = "float32"  # of the text encoder's parameters and computation: bfloat16 | float32

    config.network.generator_steps = 1  # 1 to 8, at the times that ZImagePipeline visits
    config.lora.layers = (r"attention/to_(q|k|v|out)$",)
    return config


def small_sdxl(folder: str) -> ml_collections.ConfigDict:
    """The same of the SDXL twin, whose folder is `MADE_SDXL` or one like it; with the training numbers that it has whatever the
    objective."""
    config = _small(stable_diffusion("sdxl", lr=4e-4), folder)
    config.network.generator_timesteps = (399,)

    config.unroll = True
    config.align.batch_size = 32
    config.align.ta_updates = 2
    config.align.ta_weighting = "v"  # as the reference was trained (families/sdxl.py)
    config.align.ta_optimizer.lr = 1e-3
    for part in (config.align.generator_optimizer, config.align.ta_optimizer):
        part.update(MUON | dict(warmup=10, decay=True))
    return config


def _small(config: ml_collections.ConfigDict, folder: str) -> ml_collections.ConfigDict:
    """What is the same for every family."""
    config.weights.base = f"{folder}/pipeline"
    config.data.prompts = f"{folder}/prompts/align.txt"  # captions that do not name the mouth
    config.data.dtype = "float32"
    config.data.batch_size = 256
    config.image.height = config.image.width = 64

    config.network.dtype = config.network.frozen_dtype = config.network.reward_vae_dtype = "float32"
    config.network.remat = config.network.vae_remat = config.rewards.remat = "none"
    config.network.vae_attention = "xla"

    config.eval.prompts = f"{folder}/prompts/eval.txt"  # one in eight names a pair that no training saw
    config.eval.num = 512
    config.eval.batch_size = 128
    config.eval.pictures = 48
    config.eval.columns = 12
    config.eval.judge = "didr_jax.recipes.sprouts.judging:judge"

    config.log.every = 5
    config.checkpoint.every = 50
    config.export.dtype = "float16"
    return config


def cheerful(config: ml_collections.ConfigDict, folder: str) -> None:
    """Sets the reward of a folder, 1 for a cheerful mouth and 0 for another, and its CLIP, held out."""
    config.rewards.aesthetic = f"{folder}/preference/head.safetensors"
    config.rewards.clip = f"{folder}/preference"
    config.rewards.clipscore = f"{folder}/clip"
    config.rewards.held_out = ("clipscore",)
    config.rewards.weights.aesthetic = 1.0
