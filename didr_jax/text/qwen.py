"""The text conditioning of Z-Image: Qwen3's penultimate hidden states of the prompt as a chat message.

Source: `ZImagePipeline._encode_prompt` of diffusers.
"""

import functools
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from didr_jax.models.config import building
from didr_jax.models.qwen3 import Qwen3, Qwen3Config
from didr_jax.text.encoder import TextEncoder, text_encoder
from didr_jax.text.tokens import Tokens, opened, require_rows
from didr_jax.types import Array, InputError, PyTree
from didr_jax.weights.engine import weights_of
from didr_jax.weights.files import read_tensors
from didr_jax.weights.folder import part_json
from didr_jax.weights.qwen3 import qwen3_table

PARTS = ("tokenizer", "text_encoder")  # of the pipeline, that are read here


def qwen_encoder(folder: str | os.PathLike, max_length: int, dtype=jnp.float32, variant: str | None = None) -> TextEncoder:
    """b prompts -> `{"ids", "mask": [b, max_length]}` -> `{"caption": [b, max_length, d] float32, "length": [b] int32}`.

    Rows of `caption` from `length` on are zero.

    Args:
      folder: the pipeline.
      max_length: tokens per prompt, template included; longer prompts are cut.
      dtype: of parameters and computation.
      variant: of the weights' files.

    Raises:
      InputError: an encoder or a tokenizer that cannot be read.
    """
    tokenizer, path = qwen_tokenizer(Path(folder) / "tokenizer"), Path(folder) / "text_encoder"
    model = Qwen3(config := Qwen3Config.from_json(part_json(folder, "text_encoder")), dtype=dtype)
    require_rows(tokenizer, Path(folder) / "tokenizer", config.vocab_size)
    with building("Qwen3Model"):
        shapes = jax.eval_shape(model.init, jax.random.key(0), *jnp.zeros((2, 1, 1), int))["params"]
    open_tensors = functools.partial(read_tensors, path, variant=variant)

    def tokenize_padded(prompts: Sequence[str]) -> Tokens:
        ids, mask = tokenize(tokenizer, prompts, max_length)
        return {"ids": ids, "mask": mask}

    def encode(params: PyTree, tokens: PyTree) -> dict[str, Array]:
        mask = jnp.asarray(tokens["mask"])
        states = model.apply({"params": params}, tokens["ids"], mask).astype(jnp.float32)
        return {"caption": jnp.where(mask[..., None], states, 0), "length": mask.sum(1)}

    weights = weights_of(open_tensors, qwen3_table(config), shapes, where=str(path)).cast(dtype)
    return text_encoder(weights, tokenize_padded, encode, lambda tokens: jnp.asarray(tokens["mask"]).sum(1))


def qwen_tokenizer(folder: str | os.PathLike):
    """The tokenizer of transformers in `folder`, with its chat template.

    Raises:
      InputError: none there, or one without a template.
    """
    from transformers import AutoTokenizer

    tokenizer = opened(AutoTokenizer, folder)
    _require_template(tokenizer)
    try:
        tokenize(tokenizer, ["a"], 8)
    except Exception as error:  # a template is a program
        reason = " ".join(f"{error or type(error).__name__}".split())[:200]
        raise InputError(f"tokenizer: the chat template of {folder} does not work ({reason}); fetch it again") from error
    return tokenizer


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
    _require_template(tokenizer)
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


def _require_template(tokenizer) -> None:
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("the tokenizer has no chat template: give the tokenizer folder that came with Z-Image")
