"""What a text-to-image recipe asks of the model that it trains; one subclass a family of models."""

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from didr_jax.builders import make_few_step, make_schedule
from didr_jax.few_step import FewStep
from didr_jax.models.published import PIPELINES
from didr_jax.recipes.text_to_image.latents import ImageSide, latent_shape
from didr_jax.schedules import Schedule
from didr_jax.text.encoder import TextEncoder
from didr_jax.types import Array, InputError, PyTree, Weights
from didr_jax.weights.engine import weights_of
from didr_jax.weights.files import Tensors, read_tensors
from didr_jax.weights.folder import part_json, require_parts
from didr_jax.weights.rules import Rule


class Backbone:
    """A latent diffusion model, its text encoder and its image decoder, from a pipeline folder in diffusers' format.

    Every attribute is found when it is first asked for, from the files that it needs and no others; parameters are
    `Weights`, which are read when they are loaded.  Without `weights.base` (plans) the architecture is a published one
    and there is nothing to load.

    Attributes that a subclass gives:
      part: the network's name in a pipeline, which prefixes the names of adapters.
      text_parts: the sub-folders that the text encoder is read from.
      config_parts: sub-folders, besides the network's, whose configs every mode reads.
      zero_text: guidance's other branch is zero embeddings; otherwise the embedding of the empty prompt.
      prediction: what the network predicts, a key of `diffusion.PREDICTIONS`.
      shapes: of the network's parameters.
      table: weight names of the network.
      multiple: pixels that an image's sides must be multiples of.
      text_shapes: of the text of one prompt, {name: [1, ...]}.
      clip_tokenizer: a folder with a CLIP tokenizer for rewards that bring none; None if there is none.
      scheduler_json: of the scheduler that the exported generator is sampled with; None: the user's to choose.
      warnings: lines about what can be done and is probably not meant.
    """

    part: str
    text_parts: Sequence[str]
    config_parts: Sequence[str] = ()
    zero_text: bool
    prediction: str
    shapes: PyTree
    table: Sequence[Rule]
    multiple: int
    text_shapes: Mapping[str, Any]
    clip_tokenizer: str | None = None
    scheduler_json: Mapping[str, Any] | None = None
    warnings: Sequence[str] = ()

    def __init__(self, config):
        self.config = config
        self.folder = Path(config.weights.base)

    def network(self, params: PyTree, x_t: Array, t: Array, text: PyTree, dtype: Any = None) -> Array:
        """The prediction, float32, of `x_t [b, h, w, c]` at `t [b]`, computed in `network.dtype` or another one."""
        raise NotImplementedError

    def encoder(self) -> TextEncoder:
        """Of prompts, to what `network` takes as text."""
        raise NotImplementedError

    def text_digest(self) -> str:
        """Of all that embeddings depend on besides the prompts."""
        raise NotImplementedError

    def check(self) -> None:
        """Raises InputError where the parts are not of one pipeline, or not one that this port does."""

    def generator_source(self) -> Path:
        """Where the initial generator's weights are, file or folder."""
        return Path(self.config.weights.generator or self.folder / self.part)

    # ------------------------------------------------------------------------------ what all share

    @property
    def given(self) -> bool:
        """Whether there is a folder; without, all is for plans."""
        return bool(self.config.weights.base)

    def require(self, parts: Sequence[str]) -> None:
        """Raises InputError unless the folder has these parts."""
        if self.given:
            require_parts(self.folder, "weights.base", parts)

    def architecture(self, part: str) -> Mapping[str, Any]:
        """`config.json` of a part: the folder's, or that of a published pipeline."""
        if not self.given:
            return PIPELINES[self.config.compile.pipeline][part]
        self.require([f"{part}/config.json"])
        return part_json(self.folder, part)

    @functools.cached_property
    def config_json(self) -> Mapping[str, Any]:
        """Of the network, as diffusers reads it."""
        return self.architecture(self.part)

    @functools.cached_property
    def schedule(self) -> Schedule:
        """The noise schedule that the network was trained with."""
        return make_schedule(self.config)

    @functools.cached_property
    def few_step(self) -> FewStep:
        """Where the generator is evaluated."""
        return make_few_step(self.config, self.schedule)

    @functools.cached_property
    def image(self) -> ImageSide:
        """The decoder."""
        return ImageSide(self.config, self.architecture("vae"), self.folder / "vae" if self.given else None)

    @functools.cached_property
    def event_shape(self) -> tuple[int, int, int]:
        """Of one latent, `[h, w, c]`."""
        return latent_shape(self.config.image, self.image.arch, self.multiple)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Of what the generator makes one latent of."""
        return self.few_step.noise_shape(self.event_shape)

    @property
    def shared(self) -> bool:
        """Whether the generator begins with the base's own weights."""
        return self.given and os.path.realpath(self.generator_source()) == os.path.realpath(self.folder / self.part)

    @functools.cached_property
    def base(self) -> Weights:
        """The network of the pipeline: the reference, and the TA's start."""
        return self._source("base", self.folder / self.part)

    @functools.cached_property
    def generator(self) -> Weights:
        """The initial generator."""
        return self.base if self.shared else self._source("generator", self.generator_source())

    def _source(self, name: str, path: Path) -> Weights:
        return weights_of(lambda: open_weights(self.config, path), self.table, self.shapes, where=f"config.weights.{name}")


def open_weights(config, path: Path) -> Tensors:
    """Tensors still on disk.  A folder's variant is `config.weights.variant`; a file is what it is.

    Raises:
      InputError: nothing readable there.
    """
    if not config.weights.base:
        raise InputError("config.weights.base is empty; give --config.weights.base=PATH")
    return read_tensors(path, variant=config.weights.variant or None if path.is_dir() else None)
