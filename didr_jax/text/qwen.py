"""Tokens of Z-Image's text encoder: the prompt as a chat message, through transformers' Qwen tokenizer."""

from collections.abc import Sequence

import numpy as np

from didr_jax.types import InputError


def tokenize(tokenizer, prompts: Sequence[str], max_length: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """As `ZImagePipeline` does: one user message, thinking enabled, generation prompt added, cut and padded.

    The empty prompt, Z-Image's negative, goes through the template like any other.

    Args:
      tokenizer: of transformers, with a chat template.
      prompts: b strings.
      max_length: tokens per prompt.

    Returns:
      ids [b, max_length] int32 and mask [b, max_length] bool, true on tokens; padding is on the right.

    Raises:
      InputError: the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("the tokenizer has no chat template: give the tokenizer folder that came with Z-Image")
    messages = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=True
        )
        for prompt in prompts
    ]
    # Rotary positions are relative, so the side does not matter to the encoder; the transformer wants captions first.
    out = tokenizer(
        messages,
        padding="max_length",
        padding_side="right",
        max_length=max_length,
        truncation=True,
        return_tensors="np",
    )
    return out["input_ids"].astype(np.int32), out["attention_mask"].astype(bool)
