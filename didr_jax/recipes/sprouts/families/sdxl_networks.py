"""The networks of a small `StableDiffusionXLPipeline`, as the config.json files that diffusers and transformers read.

Built as the published ones are: two CLIP text towers over CLIP's own vocabulary, which is most of their weights, a UNet that
attends to text where it is coarse, and an autoencoder of 4 channels.  A latent has 16 × 16 of them, for small lines.
"""

import functools
from typing import Any

from didr_jax.recipes.sprouts.album import SIDE
from didr_jax.recipes.sprouts.families.clip_vocabulary import END, SIZE, START, TOKENS, published_tokenizer

VAE = {
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [16, 32, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_size": SIDE,
}
_TOWER: dict[str, Any] = {
    "model_type": "clip_text_model",
    "vocab_size": SIZE,
    "max_position_embeddings": TOKENS,
    "num_hidden_layers": 3,
    "bos_token_id": START,
    "eos_token_id": END,
}
TEXT_ENCODERS: dict[str, dict[str, Any]] = {
    "text_encoder": {
        **_TOWER,
        "architectures": ["CLIPTextModel"],
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_attention_heads": 2,
        "projection_dim": 64,
        "hidden_act": "quick_gelu",
        "pad_token_id": END,
    },
    "text_encoder_2": {
        **_TOWER,
        "architectures": ["CLIPTextModelWithProjection"],
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_attention_heads": 3,
        "projection_dim": 96,  # of the pooled embedding, which only this one has
        "hidden_act": "gelu",
        "pad_token_id": 0,
    },
}
TOKENIZER_OF = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
CONTEXT = sum(tower["hidden_size"] for tower in TEXT_ENCODERS.values())
POOLED = TEXT_ENCODERS["text_encoder_2"]["projection_dim"]
PROJECTED = {"text_encoder_2": POOLED}
_TIME = 8  # channels of each of the six sizes and corners that the UNet is told
UNET = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": SIDE // 4,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [48, 96],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "transformer_layers_per_block": [1, 1],
    "attention_head_dim": [2, 4],  # a misnomer of diffusers': heads
    "norm_num_groups": 16,
    "cross_attention_dim": CONTEXT,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": _TIME,
    "projection_class_embeddings_input_dim": 6 * _TIME + POOLED,
}
SCHEDULER = {  # SDXL's, but for what is predicted
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "interpolation_type": "linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
MODEL_INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "_diffusers_version": "0.36.0",
    "force_zeros_for_empty_prompt": True,
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


@functools.cache
def tokenizers() -> dict[str, Any]:
    """By folder; they differ in what they pad with, and the states of padding are part of what the UNet is told."""
    return {"tokenizer": published_tokenizer(pad_token="<|endoftext|>"), "tokenizer_2": published_tokenizer(pad_token="!")}
