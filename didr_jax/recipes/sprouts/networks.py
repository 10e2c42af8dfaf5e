"""The CLIP that is trained beside a pipeline of any family, as the config.json that transformers reads, and its tokenizer."""

import functools
import json
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from didr_jax.models.clip import TextConfig, VisionConfig
from didr_jax.recipes.sprouts.album import SIDE
from didr_jax.recipes.sprouts.parts import vocabulary

TOKENS = 32  # of a caption
VOCABULARY = 640  # ids of a tokenizer that is made here: every byte, and every word of a caption

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
