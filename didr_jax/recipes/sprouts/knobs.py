"""The recipe `zimage` at the size of sprouts: what `configs/sprouts.py` and `configs/sprouts_distill.py` share.

A folder of sprouts is what `--mode=export` of `configs/sprouts_pipeline.py` writes: pipeline/, clip/, preference/, judge/
and prompts/.  `SHIPPED` is one, and has the one-step generator beside them, as adapters on the pipeline's transformer.
"""

from pathlib import Path

import ml_collections

from didr_jax.recipes.text_to_image.knobs import text_to_image

SHIPPED = Path(__file__).resolve().parents[2] / "assets" / "sprouts"
ONE_STEP = "one_step.safetensors"  # adapters, in a folder of sprouts
# Of transformers of this size: they look at captions after 150 steps; with adamw, after 500.
MUON = dict(name="muon", muon_rms=1.0, b1=0.95)


def small_zimage(folder: str) -> ml_collections.ConfigDict:
    """The config, for a folder of sprouts, without the generator, rewards and training numbers of `align`."""
    config = text_to_image()
    config.recipe = "zimage"
    config.compile.pipeline = "zimage"
    config.schedule.name = "rectified_flow"
    config.schedule.shift = 1.0  # times are uniform

    config.weights.base = f"{folder}/pipeline"
    config.data.prompts = f"{folder}/prompts/align.txt"  # captions that do not name the mouth
    config.data.max_length = 32  # tokens of a prompt, template included
    config.data.encoder_dtype = "float32"  # of the text encoder's parameters and computation: bfloat16 | float32
    config.data.dtype = "float32"
    config.data.batch_size = 256
    config.image.height = config.image.width = 64

    config.network.generator_steps = 1  # 1 to 8, at the times that ZImagePipeline visits
    config.network.dtype = config.network.frozen_dtype = config.network.reward_vae_dtype = "float32"
    config.network.remat = config.network.vae_remat = config.rewards.remat = "none"
    config.network.vae_attention = "xla"
    config.lora.layers = (r"attention/to_(q|k|v|out)$",)

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
