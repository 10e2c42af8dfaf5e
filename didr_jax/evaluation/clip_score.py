"""CLIP score: the cosine between a picture and its prompt, by a named protocol (model, prefix, factor)."""

import os
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from didr_jax.evaluation.clip_features import open_clip
from didr_jax.evaluation.collect import DEFAULT, Network, Options, collect_features, network_input
from didr_jax.evaluation.pictures import Source, open_pictures
from didr_jax.evaluation.protocols import CLIP_SCORE, ClipScoreProtocol, Measured, named
from didr_jax.rewards.cosine import clip_cosine
from didr_jax.text.tokens import Tokenizer, clip_tokenizer
from didr_jax.types import Array, InputError, PyTree
from didr_jax.weights import clip as weights


class ClipScorer:
    """A CLIP and its tokenizer under a row of `protocols.CLIP_SCORE`.

    Attributes:
      row: the protocol.
      tokenize: prompts, prefixed, to `{"ids": int32 [b, n]}`.
      network: `(params, {"pictures": [b, n, n, 3], "ids"}) -> scores [b, 1]`.
    """

    def __init__(
        self,
        path: str | os.PathLike | None,
        protocol: str | ClipScoreProtocol,
        tokenizer: str | os.PathLike | None = None,
    ):
        """Opens a Hugging Face folder or an open_clip file; `tokenizer`: a folder with one, None: the same folder."""
        row = self.row = named(CLIP_SCORE, protocol)
        (vision, text), loaded = open_clip(weights.load_clip, path, row)
        tokens: Tokenizer = clip_tokenizer(tokenizer or path, text.positions, text.vocab)
        self.tokenize = lambda prompts: tokens([row.prefix + prompt for prompt in prompts])
        cosine = clip_cosine(vision, text, dtype=jnp.float32, remat="none")

        def apply(params: PyTree, batch: PyTree) -> Array:
            pixels = network_input(row.pixels, batch["pictures"])
            value = cosine(params, pixels, {"ids": batch["ids"]})[:, None]
            return row.factor * (jnp.maximum(value, 0) if row.floor else value)

        self.network = Network(row, loaded, apply, 1)

    def __call__(self, pictures: Source, prompts: Sequence[str], options: Options = DEFAULT) -> tuple[Measured, np.ndarray]:
        """Scores pictures against their prompts, in order: the mean with its standard deviation, and each score `[n]`.

        Raises:
          InputError: as many prompts as pictures are wanted.
        """
        count, picture = open_pictures(pictures)
        if count != len(prompts):
            raise InputError(f"CLIP score: {count} pictures and {len(prompts)} prompts; give one prompt for each picture")
        ids = self.tokenize(prompts)["ids"]
        read = lambda i: {"pictures": self.row.prepare(picture(i)), "ids": ids[i]}
        scores = collect_features(self.network, read, count, options)[:, 0].astype(np.float64)
        notes = (f"{count} pictures", f"prefix {self.row.prefix!r}", f"x{self.row.factor:g}")
        return Measured("CLIP score", self.row.name, float(scores.mean()), float(scores.std()), notes), scores
