"""What the stages of the pipeline are fed: tokens, latents, and pictures made rougher."""

import jax
import jax.numpy as jnp
import numpy as np

from didr_jax.models.vae import AutoencoderKL
from didr_jax.recipes.sprouts import networks
from didr_jax.recipes.sprouts.album import SIDE, to_float
from didr_jax.text.qwen import tokenize
from didr_jax.training.evaluation import over_rows
from didr_jax.types import Array, PyTree

LATENT = (SIDE // 8, SIDE // 8, 16)


def chat_tokens(sentences: list[str]) -> dict[str, np.ndarray]:
    """As `ZImagePipeline` puts prompts to the text encoder: `{"ids", "mask": [n, TOKENS]}`."""
    ids, mask = tokenize(networks.chat_tokenizer(), sentences, networks.TOKENS)
    return {"ids": ids, "mask": mask}


def clip_ids(sentences: list[str]) -> np.ndarray:
    """`[n, TOKENS]`."""
    settings = dict(padding="max_length", truncation=True, max_length=networks.TOKENS, return_tensors="np")
    return networks.clip_tokenizer()(sentences, **settings)["input_ids"].astype(np.int32)


def roughness(key: jax.Array, n: int) -> dict[str, Array]:
    """How `rough` treats n pictures."""
    blur_key, speck_key, noise_key = jax.random.split(key, 3)
    return {
        "blur": jnp.maximum(jax.random.uniform(blur_key, (n,), minval=-1), 0),
        "speck": 0.15 * jnp.maximum(jax.random.uniform(speck_key, (n,), minval=-1), 0),
        "noise": jax.random.normal(noise_key, (n, SIDE, SIDE, 3)),
    }


def blurred(images: Array) -> Array:
    """Means over 3 × 3 pixels, grey beyond the border."""
    return jax.lax.reduce_window(images, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME") / 9


def rough(images: Array, how: dict[str, Array]) -> Array:
    """Pictures blurred and speckled, half of them each, as a generator in training makes them: judges shall not mind."""
    wide = lambda a: a[:, None, None, None]
    mixed = images + wide(how["blur"]) * (blurred(images) - images)
    return mixed + wide(how["speck"]) * how["noise"]


class Encoded:
    """Latents `[n, 8, 8, 16]` of unit variance and zero mean, by `shift` and `scale` of the raw ones."""

    def __init__(self, raw: np.ndarray):
        self.shift, self.scale = float(raw.mean()), float(1 / raw.std())
        self.latents = ((raw - self.shift) * self.scale).astype(np.float32)


def encoded(vae: AutoencoderKL, params: PyTree, images: np.ndarray, size: int = 256) -> Encoded:
    """Means of the encoder for pictures `uint8 [n, 64, 64, 3]`."""
    return Encoded(raw_means(vae, params, images, size))


def raw_means(vae: AutoencoderKL, params: PyTree, images: np.ndarray, size: int = 256) -> np.ndarray:
    """The same, as the encoder gives them."""
    encode = jax.jit(lambda params, rows: vae.apply({"params": params}, to_float(rows), method="encode")[0])
    return over_rows(encode, params, images, size)
