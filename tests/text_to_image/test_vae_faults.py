"""A decoder that goes wrong for one image: the sample is dropped and counted, the others train on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from configs import sdxl
from didr_jax.recipes.text_to_image.stable_diffusion import StableDiffusion
from tests.text_to_image import runs
from tests.text_to_image import tiny_sdxl as tiny


@pytest.mark.slow
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_an_image_that_is_not_finite_costs_its_own_reward_and_nothing_else(tmp_path_factory, bad):
    _, settings = tiny.settings(tmp_path_factory.mktemp("sdxl"))

    def spoilt(side):
        wrong = lambda image: image * jnp.where(jnp.arange(len(image)) == 0, bad, 1.0)[:, None, None, None]
        return dataclasses.replace(side, apply=lambda params, raw: wrong(side.apply(params, raw)))

    class FirstImageBad(StableDiffusion):
        image = property(lambda self: spoilt(super().image))
        reward_image = property(lambda self: spoilt(super().reward_image))

    recipe = runs.recipe_of(sdxl, FirstImageBad, settings)
    stage = recipe.align({})
    before, frozen = runs.begun(stage), runs.loaded(stage.frozen)
    step = jax.jit(stage.step, compiler_options=runs.HASTE)
    after, metrics = step(before, frozen, stage.batch(0))
    assert metrics["reward/dropped"] == 1 and metrics["skipped"] == 0
    assert metrics["pull"] > 0 and np.isfinite(metrics["reward"])  # of the other sample
    for name in ("generator", "ta", "ema"):
        leaves = jax.tree.leaves(getattr(after, name))
        assert all(np.isfinite(leaf).all() for leaf in leaves)
        assert (
            np.mean([not np.array_equal(a, b) for a, b in zip(leaves, jax.tree.leaves(getattr(before, name)), strict=True)]) > 0.9
        )
