"""The families of pipelines that sprouts can be trained in: what they write is what diffusers and transformers read."""

import importlib.util
from pathlib import Path

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from didr_jax import recipes
from didr_jax.cli import _load
from didr_jax.named_configs import config_path
from didr_jax.recipes.sprouts import parts
from didr_jax.recipes.sprouts.families import clip_vocabulary, sdxl, sdxl_networks, zimage
from didr_jax.recipes.sprouts.families.family import read_back
from didr_jax.types import InputError
from didr_jax.weights.engine import to_torch
from didr_jax.weights.vae import VAE_TABLE

FAMILIES = {"zimage": zimage.ZImage, "sdxl": sdxl.SDXL}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return FAMILIES[request.param]()


def written(shapes, table):
    """{name: shape} of the tensors of a file."""
    blank = jax.tree.map(lambda a: np.broadcast_to(np.float32(0), a.shape), shapes)
    return {name: tuple(tensor.shape) for name, tensor in to_torch(blank, table).items()}


def of_torch(kind, config):
    """{name: shape} of what a class of diffusers or transformers makes of a config.json."""
    with torch.device("meta"):
        model = kind.from_config(config) if issubclass(kind, diffusers.ModelMixin) else kind(kind.config_class(**config))
    return {name.removeprefix("text_model."): tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def test_the_networks_have_the_tensors_that_diffusers_and_transformers_make_of_their_configs(family):
    """The class of each is the one that model_index.json names."""
    key = jax.random.key(0)
    vae = jax.eval_shape(family.vae.init, key, jnp.zeros((1, 64, 64, 3)))["params"]
    files = {
        "vae": (vae, VAE_TABLE, family.vae_json),
        family.part: (jax.eval_shape(family.init_network, key), family.table, family.network_json),
        **family.text_networks(jax.eval_shape(family.init_words, key)),
    }
    for part, (shapes, table, config) in files.items():
        library, name = family.model_index[part]
        ours = {name.removeprefix("text_model."): shape for name, shape in written(shapes, table).items()}
        assert ours == of_torch(getattr({"diffusers": diffusers, "transformers": transformers}[library], name), config), part


def test_the_noise_is_that_of_the_pipelines_scheduler(family):
    """σ/α of each timestep, as diffusers has it."""
    scheduler = getattr(diffusers, family.scheduler["_class_name"]).from_config(family.scheduler)
    t = jnp.array([0.999, 0.399, 0.001])
    if family.scheduler["_class_name"] == "EulerDiscreteScheduler":
        of_timestep = np.asarray(((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod) ** 0.5)
        theirs = of_timestep[[999, 399, 1]]
    else:
        sigma = np.asarray(scheduler.sigmas)[[1, 601, 999]]  # of timesteps 999, 399 and 1
        theirs = sigma / (1 - sigma)
    np.testing.assert_allclose(family.schedule.sigma(t) / family.schedule.alpha(t), theirs, rtol=1e-3)


def test_what_was_asked_for_is_read_back_where_the_heads_find_it():
    drawn = parts.draw_parts(np.random.default_rng(0), 4)
    asked = parts.asked(drawn, np.ones(drawn.shape, bool))
    sizes, width = np.array(list(parts.SIZES.values())), max(parts.SIZES.values())
    states = np.eye(width, dtype=np.float32)[asked] * 20.0  # of each picture: its seven values
    read = jax.jit(read_back)
    blind = read({part: np.zeros((width, size + 1), np.float32) for part, size in parts.SIZES.items()}, states, asked)
    np.testing.assert_allclose(blind, np.broadcast_to(np.log(sizes + 1)[:, None, None], blind.shape), rtol=1e-6)
    seeing = read({part: np.eye(width, size + 1, dtype=np.float32) for part, size in parts.SIZES.items()}, states, asked)
    own = np.asarray(seeing)[np.arange(7), :, np.arange(7)]  # of a part from its own value
    assert (own < 1e-4).all() and np.max(seeing) > 10


def test_the_unet_is_told_nothing_by_a_silent_caption_and_something_by_another():
    """StableDiffusionXLPipeline's unconditional branch is zeros, not the empty prompt's embedding."""
    family = sdxl.SDXL()
    words = jax.tree.map(lambda a: np.full(a.shape, 0.01, np.float32), jax.eval_shape(family.init_words, jax.random.key(0)))
    ids = np.full((2, clip_vocabulary.TOKENS), clip_vocabulary.END)
    ids[:, :3] = clip_vocabulary.START, 320, 1000
    tokens = {name: ids for name in sdxl_networks.TEXT_ENCODERS} | {"silent": np.array([True, False])}
    told = jax.jit(family.text)(words, tokens)
    assert told["prompt"].shape == (2, 77, family.unet.config.context_dim)
    assert not np.any(told["prompt"][0]) and not np.any(told["pooled"][0])
    assert np.any(told["prompt"][1]) and np.any(told["pooled"][1])


def test_without_the_vocabulary_training_is_refused_with_the_command_that_mends_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    recipe = recipes.build(_load(config_path("sprouts_sdxl_pipeline")))
    with pytest.raises(InputError, match="pip install --no-deps open-clip-torch=="):
        recipe.check("train")
    pinned = (Path(__file__).resolve().parents[2] / "requirements-vocabularies.txt").read_text()
    assert clip_vocabulary.PACKAGE in pinned.split()


def test_a_pipeline_without_one_of_its_stages_is_not_exported():
    config = _load(config_path("sprouts_pipeline"))
    config.stages = ("vae", "words")
    with pytest.raises(InputError, match="config.stages lacks reference, one_step"):
        recipes.build(config).check("export")
