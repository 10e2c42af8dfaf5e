"""What the recipe of sprouts asks of a family of pipelines; one subclass a family."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from didr_jax.models.vae import AutoencoderKL
from didr_jax.recipes.sprouts import parts
from didr_jax.schedules import Schedule
from didr_jax.types import Array, PRNGKey, PyTree
from didr_jax.weights.rules import Rule

Told = tuple[Array, dict[str, Array]]  # a loss [b], and what it is made of


class Family:
    """The networks of one kind of pipeline, untrained, and how they are read and written.

    Attributes that a subclass gives:
      vae_json: of the autoencoder, as diffusers reads it; its shift and scale are measured when it is trained.
      vae: that autoencoder.
      latent: shape of a latent, `[h, w, c]`.
      centred: whether latents are shifted to zero mean; otherwise they are scaled only.
      schedule: the noise schedule.
      prediction: what the network predicts, a key of `diffusion.PREDICTIONS`.
      weighting: in whose units its error is measured, another such key.
      times: range of t that the reference is trained at.
      one_step_time: t at which a one-step generator takes unit noise.
      convolves: whether the network has convolutions, for which `config.unroll` lays a solver's steps out flat.
      part: the network's name in a pipeline.
      network_json, table: its config.json and weight names.
      model_index, scheduler: the pipeline's and its scheduler's JSON.
    """

    vae_json: Mapping[str, Any]
    vae: AutoencoderKL
    latent: tuple[int, int, int]
    centred: bool
    schedule: Schedule
    prediction: str
    weighting: str
    times: tuple[float, float]
    one_step_time: float
    convolves: bool
    part: str
    network_json: Mapping[str, Any]
    table: Sequence[Rule]
    model_index: Mapping[str, Any]
    scheduler: Mapping[str, Any]

    def check(self) -> None:
        """Raises InputError for what is needed and not installed."""

    # ------------------------------------------------------------------------------------------- text

    def tokens(self, sentences: Sequence[str]) -> dict[str, np.ndarray]:
        """Of n captions, as the pipeline makes them of prompts: arrays `[n, …]`.  The empty one stands for no text."""
        raise NotImplementedError

    def init_words(self, key: PRNGKey) -> PyTree:
        """Parameters of stage `words`: text encoders, and heads that read captions back from them."""
        raise NotImplementedError

    def words_loss(self, params: PyTree, tokens: PyTree, asked: Array) -> Told:
        """What the text encoders are trained by; `asked [b, 7]`: a part's value, or their number where a caption is silent.

        Small networks learn to look for a word among others slowly, and in one place at once: what a caption asks for shall
        be readable, by a linear map (`read_back`), from what the denoiser is told.
        """
        raise NotImplementedError

    def text(self, words: PyTree, tokens: PyTree) -> PyTree:
        """What the network is told of captions, by the parameters of stage `words`."""
        raise NotImplementedError

    def text_networks(self, words: PyTree) -> dict[str, tuple[PyTree, Sequence[Rule], Mapping[str, Any]]]:
        """The pipeline's text encoders, folder -> (parameters, weight names, config.json)."""
        raise NotImplementedError

    def tokenizers(self) -> dict[str, Any]:
        """The pipeline's tokenizers, folder -> tokenizer of transformers."""
        raise NotImplementedError

    # ---------------------------------------------------------------------------------------- network

    def init_network(self, key: PRNGKey) -> PyTree:
        """Parameters of the network."""
        raise NotImplementedError

    def predict(self, params: PyTree, x_t: Array, t: Array, text: PyTree) -> Array:
        """Its prediction for `x_t [b, h, w, c]` at `t [b]`."""
        raise NotImplementedError


def read_heads(width: int) -> dict[str, Array]:
    """Linear maps from states to logits of each part's values and of "not named", `{part: [width, size + 1]}`."""
    return {part: jnp.zeros((width, size + 1)) for part, size in parts.SIZES.items()}


def read_back(heads: Mapping[str, Array], states: Array, asked: Array) -> Array:
    """Nats `[7, b, k]` of reading what captions asked for, `asked [b, 7]`, from each of `states [b, k, width]`."""
    read = []
    for i, part in enumerate(parts.PARTS):
        guess = states @ heads[part]
        true = jnp.broadcast_to(asked[:, i, None], states.shape[:2])
        read.append(optax.softmax_cross_entropy_with_integer_labels(guess, true))
    return jnp.stack(read)
