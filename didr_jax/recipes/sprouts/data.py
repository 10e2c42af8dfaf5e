"""What the stages of a pipeline are fed besides their family's own: CLIP's tokens, latents, and pictures made rougher."""

import jax
import jax.numpy as jnp
import numpy as np

from didr_jax.models.vae import AutoencoderKL
from didr_jax.recipes.sprouts import networks
from didr_jax.recipes.sprouts.album import SIDE, to_float
from didr_jax.training.evaluation import over_rows
from didr_jax.types import Array, PyTree


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
    """Latents `[n, h, w, c]` of unit variance and zero mean, by `shift` and `scale` of the raw ones; if not `centred`, of unit
    root mean square by `scale` alone."""

    def __init__(self, raw: np.ndarray, centred: bool):
        self.shift = float(raw.mean()) if centred else 0.0
        self.scale = float(1 / raw.std()) if centred else float(1 / np.sqrt(np.mean(np.square(raw))))
        self.latents = ((raw - self.shift) * self.scale).astype(np.float32)


def raw_means(vae: AutoencoderKL, params: PyTree, images: np.ndarray, size: int = 256) -> np.ndarray:
    """Means of the encoder, unscaled, for pictures `uint8 [n, 64, 64, 3]`."""
    encode = jax.jit(lambda params, rows: vae.apply({"params": params}, to_float(rows), method="encode")[0])
    return over_rows(encode, params, images, size)
