"""The text conditioning of Stable Diffusion 1.5 and XL, from a pipeline's own encoders and tokenizers.

    SD 1.5   prompt: CLIP ViT-L/14, last hidden states after the final norm
    SDXL     prompt: penultimate hidden states of CLIP ViT-L/14 and OpenCLIP bigG, side by side;
             pooled: bigG's projected embedding

Source: `StableDiffusionPipeline.encode_prompt`, `StableDiffusionXLPipeline.encode_prompt` of diffusers.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from didr_jax.models.clip import TextTower
from didr_jax.text.cache import Arrays
from didr_jax.text.tokens import clip_tokenizer
from didr_jax.weights.clip import load_text

ENCODERS = {False: (("tokenizer", "text_encoder"),),
            True: (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))}  # fmt: skip


def parts(xl: bool) -> list[str]:
    """Names of the sub-folders that `clip_encoder` reads."""
    return [name for pair in ENCODERS[xl] for name in pair]


def _loaded(folder: Path):
    config, weights = load_text(folder)
    return config, weights.load()


def clip_encoder(folder: str | os.PathLike, xl: bool, dtype=jnp.float32) -> Callable[[Sequence[str]], Arrays]:
    """Loads the encoders: b prompts -> `{"prompt": [b, 77, d]}`, and `{"pooled": [b, p]}` for SDXL.

    Args:
      folder: the pipeline.
      xl: SDXL's two encoders rather than SD 1.5's one.
      dtype: of the computation.

    Raises:
      InputError: encoders or tokenizers that cannot be read.
    """
    loaded = [(clip_tokenizer(Path(folder) / t), *_loaded(Path(folder) / e)) for t, e in ENCODERS[xl]]
    towers = [TextTower(config, dtype=dtype) for _, config, _ in loaded]

    @jax.jit
    def encode(params, ids):
        outs = [tower.apply({"params": p}, i) for tower, p, i in zip(towers, params, ids)]
        if not xl:
            return {"prompt": outs[0].last}
        return {"prompt": jnp.concatenate([o.penultimate for o in outs], -1), "pooled": outs[-1].embedding}

    def apply(prompts: Sequence[str]) -> Arrays:
        ids = [tokenize(prompts)["ids"] for tokenize, _, _ in loaded]
        return jax.tree.map(np.asarray, encode([params for _, _, params in loaded], ids))

    return apply
