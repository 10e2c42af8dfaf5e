"""Architectures of published pipelines, for plans that are made without their files.

As `config.json` of diffusers says them, with what differs from its class's defaults.  Sources: the model cards'
repositories (stabilityai/stable-diffusion-xl-base-1.0, stable-diffusion-v1-5/stable-diffusion-v1-5,
Tongyi-MAI/Z-Image, and of tiny VAEs those named beside them); the numbers of parameters that follow from them are held against the published ones in tests/test_plan.py.
"""

from typing import Any

Part = dict[str, Any]

_VAE: Part = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}

_TINY_VAE: Part = {}  # madebyollin/taesdxl, taesd: all as in AutoencoderTiny's defaults

SDXL: dict[str, Part] = {
    "unet": {
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "vae": _VAE | {"scaling_factor": 0.13025},
    "reward_vae": _TINY_VAE,
}

SD15: dict[str, Part] = {
    "unet": {"cross_attention_dim": 768},
    "vae": _VAE | {"scaling_factor": 0.18215},
    "reward_vae": _TINY_VAE,
}

ZIMAGE: dict[str, Part] = {
    "transformer": {},  # all as in ZImageTransformer2DModel's defaults
    "vae": _VAE | {
        "latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159,
        "use_quant_conv": False, "use_post_quant_conv": False,
    },
    "reward_vae": _TINY_VAE | {"latent_channels": 16},  # madebyollin/taef1
}  # fmt: skip

PIPELINES = {"sdxl": SDXL, "sd15": SD15, "zimage": ZIMAGE}
