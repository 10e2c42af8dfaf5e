"""A text-to-image recipe made of shapes: its stage has the same step, and nothing is read or allocated."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from didr_jax.recipes.text_to_image.backbone import Backbone, cast
from didr_jax.recipes.text_to_image.rewards import outline_mix
from didr_jax.recipes.text_to_image.task import TextToImage
from didr_jax.types import PyTree


class Outline(TextToImage):
    """`TextToImage` whose parameters are `jax.ShapeDtypeStruct`s.

    `align({})` is a `Stage` for `plan.make_plan`: `shapes()` and `frozen` are shapes, `batch(step)` is to be traced,
    and `init` must not be called.
    """

    @functools.cached_property
    def backbone(self) -> Backbone:
        backbone = self._make_backbone(self.config)
        return dataclasses.replace(backbone, load_vae=lambda: backbone.vae_shapes)

    @functools.cached_property
    def mix(self):
        return outline_mix(self.config.align.objective, self.config.rewards)

    def loader(self, source: str, dtype: str, role: str) -> Callable[[], PyTree]:
        return lambda: cast(self.backbone.shapes, dtype)

    def no_text(self) -> PyTree:
        return self.backbone.text_shapes

    def conditions(self) -> Callable:
        row = {"text": self.backbone.text_shapes, "tokens": {} if self.mix is None else self.mix.tokenize([""])}
        return lambda rng, rows: jax.tree.map(lambda a: jnp.zeros((rows, *a.shape[1:]), a.dtype), row)
