"""DIDR on Z-Image: the base as reference, Turbo as the initial generator, an aligned transformer for diffusers out.

    python run.py --config=configs/zimage.py --workdir=runs/zimage \
        --config.weights.base=Z-Image --config.weights.generator=Z-Image-Turbo \
        --config.data.prompts=prompts.txt --config.rewards.hps=HPS_v2.1_compressed.pt \
        --config.rewards.clip_tokenizer=clip-vit-large-patch14

then the same with --mode=export (docs/zimage.md).  The base is Z-Image, never Turbo: guidance on the
reference is not defined for Turbo.  Training both networks in full: network.generator=full, network.ta=full
and a learning rate of 1e-6.  The paper publishes no numbers: all that is set here is [ours] unless it says
whose it is.
"""

import ml_collections

from didr_jax.recipes.text_to_image.knobs import aligned, text_to_image


def get_config() -> ml_collections.ConfigDict:
    config = text_to_image()
    config.recipe = "zimage"
    config.compile.pipeline = "zimage"
    config.schedule.name = "rectified_flow"
    config.schedule.shift = 3.0  # times are drawn, and several steps placed, at 3u / (1 + 2u) for uniform u; Turbo's

    config.data.max_length = 512  # tokens of a prompt, template included (ZImagePipeline)
    config.data.encoder_dtype = "bfloat16"  # of Qwen3's parameters and computation: bfloat16 | float32
    config.data.dtype = "bfloat16"

    config.network.generator_steps = 1  # 1 to 8, at the times that ZImagePipeline visits
    config.network.generator = "lora"
    config.network.ta = "lora"
    config.lora.layers = (r"attention/to_(q|k|v|out)$",)

    config.align = aligned(steps=10_000, lr=3e-5, batch_size=32)  # lr: RTDMD, TDM-R1
    config.align.guidance = 5.0  # ZImagePipeline's guidance_scale is 4 for the same thing
    config.align.ta_weighting = "velocity"
    config.align.ta_t_max = 1.0
    config.align.beta = 0.1  # in units of the mix: bring the logged pull_to_divergence to 0.1-1
    for part in (config.align.generator_optimizer, config.align.ta_optimizer):
        part.warmup = 100

    config.export.dtype = "bfloat16"
    return config
