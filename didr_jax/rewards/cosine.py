"""Rewards that are the cosine between a picture and its prompt in a CLIP, times a scale."""

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from didr_jax.models.clip import TextConfig, TextTower, VisionConfig, VisionTower
from didr_jax.rewards.base import MODEL, NETWORK_KNOBS, TOKENIZER, Knob, Reading, RewardModel, RewardRecord
from didr_jax.text.cache import digest_files, digest_texts
from didr_jax.text.encoder import TextEncoder
from didr_jax.text.tokens import clip_tokenizer, has_tokenizer
from didr_jax.types import Array, PyTree
from didr_jax.weights.clip import Configs, load_clip, load_clip_apart

Preprocess = Callable[..., Array]  # (images [b, h, w, 3] in [-1, 1], size=) -> pixels [b, size, size, 3]


DIRECTION = "direction"  # of a prompt's features


def unit(x: Array) -> Array:
    """x / ‖x‖ over the last axis, in float32."""
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def clip_cosine(vision: VisionConfig, text: TextConfig, *, dtype: Any, remat: str) -> Callable[[PyTree, Array, PyTree], Array]:
    """`({"vision", "text", ...}, pixels [b, size, size, 3], {"ids": [b, n]}) -> cosine [b]`, float32."""
    seen, read = towers(vision, text, dtype=dtype, remat=remat)
    return lambda params, pixels, tokens: jnp.sum(seen(params, pixels) * read(params, tokens), axis=-1)


def towers(vision: VisionConfig, text: TextConfig, *, dtype: Any, remat: str) -> tuple[Callable, Callable]:
    """`({"vision", ...}, pixels [b, size, size, 3])` and `({"text", ...}, {"ids": [b, n]})` to directions `[b, e]`, float32."""
    vision_tower, text_tower = VisionTower(vision, remat=remat, dtype=dtype), TextTower(text, dtype=dtype)

    def seen(params: PyTree, pixels: Array) -> Array:
        return unit(vision_tower.apply({"params": params["vision"]}, pixels))

    def read(params: PyTree, tokens: PyTree) -> Array:
        return unit(text_tower.apply({"params": params["text"]}, tokens["ids"]).embedding)

    return seen, read


def _own_or_the_pipelines(given: Mapping[str, Any], pipeline: str | None) -> str | None:
    return given["weights"] if has_tokenizer(given["weights"]) else pipeline


CLIP_TOKENIZER = Knob(
    "clip_tokenizer", "a folder; empty: the reward's own, or the pipeline's", otherwise=_own_or_the_pipelines, files=TOKENIZER
)


def cosine_reward(
    name: str,
    about: str,
    *,
    weights: str,
    preprocess: Preprocess,
    published: str,
    arch: str | None = None,
    scale: Callable[[PyTree], Any] = lambda params: 100,
    centre: float,
    spread: float,
    held_out: bool = False,
) -> RewardRecord:
    """The record of scale(params) · cos(image, prompt).

    Args:
      name: its own.
      about: what it scores, and in which units.
      weights: what its knob is to be given.
      preprocess: its images.
      published: its architecture.
      arch: that of open_clip files, which do not say it; None: the caller must.
      scale: of the cosine, from `{"vision", "text", "logit_scale"}`.
      centre, spread: as in `RewardModel`.
      held_out: as in `RewardRecord`.
    """

    def load(
        weights: str | os.PathLike | None,
        tokenizer: str | os.PathLike | None = None,
        *,
        arch: str | Configs | None = arch,
        preprocess: Preprocess = preprocess,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        remat: str = "none",
    ) -> RewardModel:
        """Reads configurations and names of tensors.

        Args:
          weights: a Hugging Face CLIP folder, or an open_clip file with its `arch`.
          tokenizer: a folder with any CLIP tokenizer; None: the same folder.
          arch: of an open_clip file.
          preprocess: of images, where it is not the published one.
          dtype: of the computation.
          param_dtype: of the parameters.
          remat: what the backward pass recomputes of the image tower's blocks (`models.remat`).
        """
        (vision, text), params = load_clip(weights, arch, dtype=param_dtype)
        without_text, of_text = load_clip_apart(weights, arch, dtype=param_dtype)
        seen, read = towers(vision, text, dtype=dtype, remat=remat)
        tokenize = clip_tokenizer(tokenizer or weights, text.positions, text.vocab)
        cosine = lambda params, image, prompt: scale(params) * jnp.sum(image * prompt, axis=-1)
        files = [weights] if weights else []
        shapes = {DIRECTION: jax.ShapeDtypeStruct((1, text.embed or text.width), jnp.float32)}
        reading = Reading(
            TextEncoder(of_text, tokenize, lambda params, tokens: {DIRECTION: read(params, tokens)}, shapes),
            without_text,
            score=lambda params, pixels, features: cosine(params, seen(params, pixels), features[DIRECTION]),
            digest=functools.cache(lambda: digest_texts([digest_files(files), repr((text, dtype, param_dtype))])),
        )
        return RewardModel(
            name,
            params,
            preprocess=functools.partial(preprocess, size=vision.image_size),
            score=lambda params, pixels, tokens: cosine(params, seen(params, pixels), read(params, tokens)),
            tokenize=tokenize,
            centre=centre,
            spread=spread,
            reading=reading,
        )

    return RewardRecord(
        load,
        about,
        knobs={"weights": Knob(name, weights, files=MODEL), "tokenizer": CLIP_TOKENIZER, **NETWORK_KNOBS},
        published={"weights": None, "tokenizer": None, "arch": published},
        held_out=held_out,
    )
