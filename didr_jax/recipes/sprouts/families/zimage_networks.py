"""The networks of a small `ZImagePipeline`, as the config.json files that diffusers and transformers read, and its tokenizer.

Sizes are what two CPU cores train within an hour and half precision keeps within a few megabytes.
"""

import functools

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from didr_jax.recipes.sprouts.album import SIDE
from didr_jax.recipes.sprouts.networks import VOCABULARY
from didr_jax.recipes.sprouts.parts import vocabulary

TOKENS = 32  # of a prompt, template included; Z-Image pads captions to a multiple of 32 in any case

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

CHAT_TEMPLATE = (  # Qwen's, of one round
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)


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
