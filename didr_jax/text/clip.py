"""The text conditioning of Stable Diffusion 1.5 and XL, from a pipeline's own encoders and tokenizers.

    SD 1.5   prompt: CLIP ViT-L/14, last hidden states after the final norm
    SDXL     prompt: penultimate hidden states of CLIP ViT-L/14 and OpenCLIP bigG, side by side;
             pooled: bigG's projected embedding

Source: `StableDiffusionPipeline.encode_prompt`, `StableDiffusionXLPipeline.encode_prompt` of diffusers.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jax.numpy as jnp

from didr_jax.models.clip import TextTower
from didr_jax.text.encoder import TextEncoder, text_encoder
from didr_jax.text.tokens import Tokens, clip_tokenizer
from didr_jax.types import Array, InputError, PyTree, Weights
from didr_jax.weights.clip import load_text
from didr_jax.weights.files import Tensors

# (tokenizer, encoder) folders
ENCODERS = {False: (("tokenizer", "text_encoder"),),
            True: (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))}  # fmt: skip


def parts(xl: bool) -> list[str]:
    """Names of the sub-folders that `clip_encoder` reads."""
    return [name for pair in ENCODERS[xl] for name in pair]


def clip_encoder(
    folder: str | os.PathLike, xl: bool, opened: Callable[[str], Callable[[], Tensors]] | None = None, dtype=jnp.float32
) -> TextEncoder:
    """b prompts -> ids `{encoder: [b, 77]}` -> `{"prompt": [b, 77, d]}`, and `{"pooled": [b, p]}` for SDXL.

    Args:
      folder: the pipeline.
      xl: SDXL's two encoders rather than SD 1.5's one.
      opened: what opens the tensors of an encoder, by its folder's name, where they are not in the folder.
      dtype: of the computation.

    Raises:
      InputError: encoders or tokenizers that cannot be read.
    """
    where = lambda encoder: opened(encoder) if opened else None
    loaded = {encoder: load_text(Path(folder) / encoder, where(encoder)) for _, encoder in ENCODERS[xl]}
    rows = {encoder: config.vocab for encoder, (config, _) in loaded.items()}
    tokenizers = {encoder: clip_tokenizer(Path(folder) / tokenizer, rows=rows[encoder]) for tokenizer, encoder in ENCODERS[xl]}
    if xl and loaded["text_encoder_2"][0].embed is None:
        raise InputError(
            f"{folder}/text_encoder_2 has no text_projection.weight, which makes SDXL's pooled embedding; fetch the whole "
            "CLIPTextModelWithProjection"
        )
    towers = {encoder: TextTower(config, dtype=dtype) for encoder, (config, _) in loaded.items()}

    def tokenize(prompts: Sequence[str]) -> Tokens:
        return {encoder: tokenizer(prompts)["ids"] for encoder, tokenizer in tokenizers.items()}

    def encode(params: PyTree, ids: PyTree) -> dict[str, Array]:
        outs = [tower.apply({"params": params[encoder]}, ids[encoder]) for encoder, tower in towers.items()]
        if not xl:
            return {"prompt": outs[0].last}
        return {"prompt": jnp.concatenate([o.penultimate for o in outs], -1), "pooled": outs[-1].embedding}

    return text_encoder(Weights.join({encoder: weights for encoder, (_, weights) in loaded.items()}), tokenize, encode)
