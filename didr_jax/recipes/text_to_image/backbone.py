"""What a text-to-image recipe asks of the model that it trains; one subclass a family of models."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from didr_jax.builders import make_few_step, make_schedule
from didr_jax.few_step import FewStep
from didr_jax.models.published import PIPELINES
from didr_jax.models.tiny_vae import TinyVAEConfig
from didr_jax.models.vae import VAEConfig
from didr_jax.recipes.text_to_image.latents import REWARD_VAE, ImageSide, decoding, image_side, latent_shape, tiny_image_side
from didr_jax.schedules import Schedule
from didr_jax.text.encoder import TextEncoder
from didr_jax.types import Array, InputError, PyTree, Weights
from didr_jax.weights import single_file
from didr_jax.weights.engine import weights_of
from didr_jax.weights.files import Tensors, is_weights, read_tensors
from didr_jax.weights.folder import part_json, require_parts
from didr_jax.weights.rules import Rule


class Backbone:
    """A latent diffusion model, its text encoder and its image decoder, from a pipeline folder in diffusers' format, or from
    a single file and what the folder `weights.rest` has besides.

    Every attribute is found when it is first asked for, from the files that it needs and no others; parameters are
    `Weights`, which are read when they are loaded.  Without `weights.base` (plans) the architecture is a published one
    and there is nothing to load.

    Attributes that a subclass gives:
      part: the network's name in a pipeline, which prefixes the names of adapters.
      text_parts: the sub-folders that the text encoder is read from.
      all_text_parts: those of any pipeline of the family.
      config_parts: sub-folders, besides the network's, whose configs every mode reads.
      zero_text: guidance's other branch is zero embeddings; otherwise the embedding of the empty prompt.
      prediction: what the network predicts, a key of `diffusion.PREDICTIONS`.
      shapes: of the network's parameters.
      table: weight names of the network in diffusers' format.
      single_table: the same in single files, of which they have the tensor `single_name`.
      repository: on the hub, the published pipeline.
      pipeline_class, network_class: of diffusers.
      single_adapters: the dialect of adapters that go with single files, a key of `lora_files.DIALECTS`.
      timesteps: that the exported generator must be given by number; None: its scheduler visits them by itself.
      multiple: pixels that an image's sides must be multiples of.
      text_shapes: of the text of one prompt, {name: [1, ...]}.
      clip_tokenizer: a folder with a CLIP tokenizer for rewards that bring none; None if there is none.
      scheduler_json: of the scheduler that the exported generator is sampled with; None: the user's to choose.
      longest: tokens that texts are padded to where they are of many lengths; None: all are of one length.
      warnings: lines about what can be done and is probably not meant.
    """

    part: str
    text_parts: Sequence[str]
    all_text_parts: Sequence[str]
    config_parts: Sequence[str] = ()
    zero_text: bool
    prediction: str
    shapes: PyTree
    table: Sequence[Rule]
    single_table: Sequence[Rule]
    single_name: str
    repository: str
    pipeline_class: str
    network_class: str
    single_adapters: str
    timesteps: Sequence[int] | None = None
    multiple: int
    text_shapes: Mapping[str, Any]
    clip_tokenizer: str | None = None
    scheduler_json: Mapping[str, Any] | None = None
    longest: int | None = None
    warnings: Sequence[str] = ()

    def __init__(self, config):
        self.config = config
        self.file = Path(config.weights.base) if is_weights(config.weights.base) else None
        self.folder = Path(config.weights.base if self.file is None else config.weights.rest)

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

    @property
    def base_source(self) -> Path:
        """Where the base's network is, file or folder."""
        return self.file or self.folder / self.part

    def generator_source(self) -> Path:
        """Where the initial generator's weights are: a file, a network's folder, or that of a pipeline; empty: the base's own."""
        if not self.config.weights.generator:
            return self.base_source
        path = Path(self.config.weights.generator)
        return path / self.part if (path / self.part).is_dir() else path

    def checkpoint(self) -> Mapping[str, tuple[str, Weights, Sequence[Rule]]]:
        """(prefix, parameters, names) of the parts, besides the network, that a whole checkpoint has; none: there is no such form."""
        return {}

    # ------------------------------------------------------------------------------ what all share

    @property
    def given(self) -> bool:
        """Whether there is a folder; without, all is for plans."""
        return bool(self.config.weights.base)

    def require(self, parts: Sequence[str]) -> None:
        """Raises InputError unless the folder has these parts."""
        if not self.given:
            return
        if self.file is None:
            return require_parts(self.folder, "weights.base", parts)
        if not self.config.weights.rest:
            raise InputError(
                f"config.weights.base = {self.file} is a single file, which has no configs and tokenizers: set config.weights.rest "
                f"to a pipeline folder with them, or to {self.repository}"
            )
        require_parts(self.folder, "weights.rest", parts)

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
    def image(self) -> ImageSide[VAEConfig]:
        """The decoder."""
        return image_side(self.config, self.architecture("vae"), self.opened("vae"))

    @functools.cached_property
    def reward_image(self) -> ImageSide[VAEConfig] | ImageSide[TinyVAEConfig]:
        """What rewards are differentiated through: the decoder in `network.reward_vae_dtype`, or a tiny one."""
        knobs = self.config.network
        if not knobs.reward_vae:
            return dataclasses.replace(self.image, apply=decoding(knobs, self.image.arch, knobs.reward_vae_dtype))
        path, variant = Path(knobs.reward_vae), self.config.weights.variant or None
        if not self.given:
            raw = PIPELINES[self.config.compile.pipeline]["reward_vae"]
        else:
            require_parts(path, REWARD_VAE, ["config.json"], "an AutoencoderTiny as diffusers saves it")
            raw = part_json(path.parent, path.name)
        return tiny_image_side(self.config, raw, lambda: read_tensors(path, variant=variant), self.image.arch)

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
        return self.given and os.path.realpath(self.generator_source()) == os.path.realpath(self.base_source)

    @functools.cached_property
    def base(self) -> Weights:
        """The network of the pipeline: the reference, and the TA's start."""
        return self._source("base", self.base_source)

    @functools.cached_property
    def generator(self) -> Weights:
        """The initial generator."""
        return self.base if self.shared else self._source("generator", self.generator_source())

    def _source(self, name: str, path: Path) -> Weights:
        return weights_of(lambda: self._network(path), self.table_of, self.shapes, where=f"config.weights.{name}")

    def _network(self, path: Path) -> Tensors:
        """Still on disk.  A folder's variant is `config.weights.variant`; a file is what it is."""
        knobs = self.config.weights
        if not self.given:
            raise InputError("config.weights.base is empty; give --config.weights.base=PATH")
        if path.is_dir():
            return read_tensors(path, variant=knobs.variant or None)
        return single_file.network(read_tensors(path, state=knobs.state), self.part, knobs.state)

    def table_of(self, tensors: Tensors) -> Sequence[Rule]:
        """The dialect that a network's names are in."""
        return self.single_table if self.single_name in tensors else self.table

    def in_file(self, part: str) -> bool:
        """Whether the single file is there and has a part besides the network."""
        return self.file is not None and self.file.is_file() and single_file.part(read_tensors(self.file), part) is not None

    def opened(self, part: str) -> Callable[[], Tensors]:
        """Opens the tensors of a part besides the network: of the single file if it has them, else of the folder."""

        def read() -> Tensors:
            if self.file is not None and (found := single_file.part(read_tensors(self.file), part)) is not None:
                return found
            return read_tensors(self.folder / part, variant=self.config.weights.variant or None)

        return read
