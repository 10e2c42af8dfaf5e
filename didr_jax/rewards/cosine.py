"""The cosine between a picture and its prompt in a CLIP: what HPSv2.1, PickScore and CLIPScore share."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from didr_jax.models.clip import TextConfig, TextTower, VisionConfig, VisionTower
from didr_jax.types import Array, PyTree


def unit(x: Array) -> Array:
    """x / ‖x‖ over the last axis, in float32."""
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def clip_cosine(vision: VisionConfig, text: TextConfig, *, dtype: Any, remat: str) -> Callable[[PyTree, Array, PyTree], Array]:
    """`({"vision", "text", ...}, pixels [b, size, size, 3], {"ids": [b, n]}) -> cosine [b]`, float32."""
    vision_tower, text_tower = VisionTower(vision, remat=remat, dtype=dtype), TextTower(text, dtype=dtype)

    def cosine(params: PyTree, pixels: Array, tokens: PyTree) -> Array:
        image = vision_tower.apply({"params": params["vision"]}, pixels)
        prompt = text_tower.apply({"params": params["text"]}, tokens["ids"]).embedding
        return jnp.sum(unit(image) * unit(prompt), axis=-1)

    return cosine
