"""What a text-to-image recipe asks of the model that it trains; one implementation a family of models."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from didr_jax.few_step import FewStep
from didr_jax.schedules import Schedule
from didr_jax.types import Array, InputError, PyTree
from didr_jax.weights.engine import check_fit, to_flax
from didr_jax.weights.files import Tensors
from didr_jax.weights.rules import Rule


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A latent diffusion model, its text encoder and its image decoder, read from a pipeline folder.

    Attributes:
      schedule: the noise schedule it was trained with.
      prediction: what the network predicts, a key of `diffusion.PREDICTIONS`.
      event_shape: of one latent, `[h, w, c]`.
      few_step: where its generator is evaluated.
      network: `(params, x_t [b, h, w, c], t [b], text) -> prediction`, float32.
      shapes: of the network's parameters, nothing allocated.
      table: weight names of the network.
      sources: tensors of the `base` and of the initial `generator`, still on disk; one object if they are the same.
      part: the network's name in a pipeline, which prefixes the names of adapters.
      config_json: of the network, as diffusers reads it.
      zero_text: guidance's other branch is zero embeddings; otherwise the embedding of the empty prompt.
      load_vae: `() -> params`.
      decode: `(vae params, x0) -> images [b, H, W, 3]`, about [-1, 1], unclipped, float32.
      text_digest: `() -> str`, of all that embeddings depend on besides the prompts.
      load_encoder: `() -> (prompts -> text)`, where `text` is {name: array [b, ...]}.
      clip_tokenizer: a folder with a CLIP tokenizer for rewards that bring none; None if there is none.
      scheduler_json: of the scheduler that the exported generator is sampled with; None: the user's to choose.
      warnings: lines about what can be done and is probably not meant.
      vae_shapes: of what `load_vae` loads; only for plans, as is
      text_shapes: of the text of one prompt, {name: [1, ...]}.
    """

    schedule: Schedule
    prediction: str
    event_shape: tuple[int, ...]
    few_step: FewStep
    network: Callable[[PyTree, Array, Array, PyTree], Array]
    shapes: PyTree
    table: Sequence[Rule]
    sources: Mapping[str, Tensors]
    part: str
    config_json: Mapping[str, Any]
    zero_text: bool
    load_vae: Callable[[], PyTree]
    decode: Callable[[PyTree, Array], Array]
    text_digest: Callable[[], str]
    load_encoder: Callable[[], Callable[[Sequence[str]], PyTree]]
    clip_tokenizer: str | None
    scheduler_json: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    vae_shapes: PyTree = None
    text_shapes: PyTree = None

    @property
    def shared(self) -> bool:
        """Whether the generator begins with the base's own weights."""
        return self.sources["generator"] is self.sources["base"]

    def check(self) -> None:
        """Raises InputError naming every tensor of a source that does not fit."""
        for name, tensors in self.sources.items():
            try:
                check_fit(tensors, self.table, self.shapes)
            except InputError as error:
                raise InputError(f"config.weights.{name}: {error}") from None

    def load(self, source: str, dtype: Any, shardings: Any = None) -> PyTree:
        """The parameters of a source in `dtype`, straight into their places."""
        dtype = jax.numpy.dtype(dtype)
        return to_flax(self.sources[source], self.table, self.shapes, dtype=dtype, shardings=shardings)


def cast(shapes: PyTree, dtype) -> PyTree:
    """Shapes of the same arrays in another dtype."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jax.numpy.dtype(dtype)), shapes)
