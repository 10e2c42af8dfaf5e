"""The networks of a sprouts pipeline, as the config.json files that diffusers and transformers read, and their tokenizers.

Sizes are what two CPU cores train within an hour and half precision keeps within a few megabytes.
"""

import functools
import json
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from didr_jax.models.clip import TextConfig, VisionConfig
from didr_jax.models.qwen3 import Qwen3Config
from didr_jax.models.vae import VAEConfig
from didr_jax.models.zimage_config import ZImageConfig
from didr_jax.recipes.sprouts.album import SIDE
from didr_jax.recipes.sprouts.parts import vocabulary

TOKENS = 32  # of a prompt, template included; Z-Image pads captions to a multiple of 32 in any case
VOCABULARY = 640  # ids of either text encoder: every byte, and every word of a caption

VAE = {
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 16,
    "block_out_channels": [16, 32, 64, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "mid_block_add_attention": False,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "sample_size": SIDE,
    "scaling_factor": 1.0,  # these two are measured once it is trained
    "shift_factor": 0.0,
}
TEXT_ENCODER = {
    "architectures": ["Qwen3Model"],
    "model_type": "qwen3",
    "vocab_size": VOCABULARY,
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
TRANSFORMER = {
    "_class_name": "ZImageTransformer2DModel",
    "all_patch_size": [2],
    "all_f_patch_size": [1],
    "in_channels": 16,
    "dim": 128,
    "n_layers": 5,
    "n_refiner_layers": 1,
    "n_heads": 4,
    "n_kv_heads": 4,
    "norm_eps": 1e-5,
    "qk_norm": True,
    "cap_feat_dim": 96,
    "rope_theta": 256.0,
    "t_scale": 1000.0,
    "axes_dims": [8, 12, 12],
    "axes_lens": [128, 32, 32],
}
SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}
MODEL_INDEX = {
    "_class_name": "ZImagePipeline",
    "_diffusers_version": "0.36.0",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen3Model"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "transformer": ["diffusers", "ZImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
EMBED = 64  # width of CLIP's common space
CLIP: dict[str, Any] = {
    "architectures": ["CLIPModel"],
    "model_type": "clip",
    "projection_dim": EMBED,
    "logit_scale_init_value": 2.6592,
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": 8,
        "projection_dim": EMBED,
        "hidden_act": "gelu",
    },
    "text_config": {
        "model_type": "clip_text_model",
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": TOKENS,
        "projection_dim": EMBED,
        "hidden_act": "gelu",
    },
}

CHAT_TEMPLATE = (  # Qwen's, of one round
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)


def vae_config(shift: float = 0.0, scale: float = 1.0) -> VAEConfig:
    return VAEConfig.from_json({**VAE, "shift_factor": shift, "scaling_factor": scale})


def text_encoder_config() -> Qwen3Config:
    return Qwen3Config.from_json(TEXT_ENCODER)


def transformer_config() -> ZImageConfig:
    return ZImageConfig.from_json(TRANSFORMER)


def clip_configs() -> tuple[VisionConfig, TextConfig]:
    """(image, text) of `CLIP` with its tokenizer."""
    vision, text = CLIP["vision_config"], CLIP["text_config"]
    sizes = lambda c: (c["hidden_size"], c["num_hidden_layers"], c["num_attention_heads"], c["intermediate_size"])
    return (
        VisionConfig(*sizes(vision), patch=vision["patch_size"], image_size=SIDE, embed=EMBED),
        TextConfig(*sizes(text), len(clip_tokenizer()), TOKENS, embed=EMBED, eos=clip_tokenizer().eos_token_id),
    )


def clip_json() -> dict:
    """`CLIP` with what its tokenizer says."""
    words = clip_tokenizer()
    ids = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    return {**CLIP, "text_config": {**CLIP["text_config"], "vocab_size": len(words), **ids}}


# ---------------------------------------------------------------------------------------- tokenizers


@functools.cache
def chat_tokenizer():
    """Byte pairs learned from the words of captions, with Qwen's special tokens and chat template."""
    from transformers import PreTrainedTokenizerFast

    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(_lines(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=TOKENS,
    )


def _lines() -> list[str]:
    """What byte pairs are learned from: every word as often, within a line and as the template has it."""
    return [f"a {word}" for word in vocabulary()] * 8 + ["user\n", "assistant\n"] * 32


@functools.cache
def clip_tokenizer():
    """CLIP's kind of tokenizer, with byte pairs learned from the words of captions."""
    from transformers import CLIPTokenizer

    inner = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, end_of_word_suffix="</w>", show_progress=False)
    inner.train_from_iterator(vocabulary() * 8, trainer)
    merges = [tuple(pair) for pair in json.loads(inner.to_str())["model"]["merges"]]
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*symbols, *(symbol + "</w>" for symbol in symbols), *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=merges, model_max_length=TOKENS)
