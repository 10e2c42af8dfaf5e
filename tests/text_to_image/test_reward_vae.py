"""`network.reward_vae`: what trains looks through a tiny decoder, what is logged through the pipeline's VAE."""

import json

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from configs import sdxl  # noqa: E402
from didr_jax.recipes.text_to_image.report import PromptJudge  # noqa: E402
from didr_jax.recipes.text_to_image.stable_diffusion import StableDiffusion  # noqa: E402
from didr_jax.types import InputError  # noqa: E402
from didr_jax.weights.files import read_tensors, write_safetensors  # noqa: E402
from tests.parity.oracle import assert_close, nchw, nhwc, randomise  # noqa: E402
from tests.text_to_image import runs  # noqa: E402
from tests.text_to_image import tiny_sdxl as tiny  # noqa: E402


def save_tiny_vae(folder, levels=2, **options):
    """An AutoencoderTiny of pictures twice (`levels=2`) as large as its latents; returns it."""
    sizes = dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), (6,) * levels)
    blocks = dict.fromkeys(("num_encoder_blocks", "num_decoder_blocks"), (1,) * levels)
    model = randomise(diffusers.AutoencoderTiny(**sizes, **blocks, **options), seed=9)
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(settings of a tiny run whose one reward is redness, the tiny VAE in torch)."""
    root = tmp_path_factory.mktemp("sdxl")
    theirs = save_tiny_vae(root / "tiny")
    alone = {"rewards.hps": "", "rewards.pickscore": "", "rewards.held_out": (), "network.reward_vae": str(root / "tiny"),
             "image.height": 8, "image.width": 12}  # fmt: skip
    return tiny.settings(root)[1] | alone, theirs


def test_what_trains_looks_through_the_tiny_one_and_what_is_logged_through_the_pipelines(made):
    settings, theirs = made
    task = runs.recipe_of(sdxl, StableDiffusion, settings).task
    frozen, networks = runs.loaded(task.frozen()), task.networks()
    x0 = np.random.default_rng(0).normal(size=(2, *task.backbone.event_shape)).astype("f")
    c = task.conditions.rows(np.arange(2))
    mean = lambda image: (image := np.clip(image, -1, 1))[..., 0].mean((1, 2)) - image.mean((1, 2, 3))

    z = nchw(x0).requires_grad_()
    seen = theirs.decode(z).sample
    kept = seen.clamp(-1, 1)  # a clipped pixel has no gradient
    (kept[:, 0].mean((1, 2)) - kept.mean((1, 2, 3))).sum().backward()

    def both(x0):
        reward = networks.reward(frozen, x0, c)
        return reward.sum(), (reward, networks.terms(frozen, x0, c)["reward"], task.decode(frozen, x0))

    gradient, (values, logged, image) = jax.jit(jax.grad(both, has_aux=True), compiler_options=runs.HASTE)(x0)
    assert_close(values, mean(nhwc(seen)))
    assert_close(gradient, nhwc(z.grad))
    assert_close(logged, mean(np.asarray(image)))
    assert np.abs(logged - values).min() > 1e-3  # they do differ
    assert "reward_vae" not in PromptJudge(task, 2, seed=0).weights  # nor is it there to be evaluated with


@pytest.mark.slow
def test_a_run_trains_with_it(made):
    runs.assert_trains(runs.recipe_of(sdxl, StableDiffusion, made[0]))


def test_the_reward_that_trains_is_decoded_in_bfloat16_and_the_logged_one_is_not(made):
    """Where no tiny VAE is given, and nothing else is said, there is one set of weights and two ways to compute with it."""
    task = runs.recipe_of(
        sdxl,
        StableDiffusion,
        made[0],
        network__reward_vae="",
        network__reward_vae_dtype=sdxl.get_config().network.reward_vae_dtype,
    ).task
    frozen = {"vae": task.backbone.image.weights.load()}
    assert "reward_vae" not in task.frozen() and frozen["vae"]["decoder"]["conv_in"]["kernel"].dtype == jax.numpy.float32
    x0 = np.random.default_rng(0).normal(size=(1, *task.backbone.event_shape)).astype("f")
    decode = lambda to_train: jax.jit(lambda x0: task.decode(frozen, x0, to_train), compiler_options=runs.HASTE)(x0)
    half, whole = np.asarray(decode(True)), np.asarray(decode(False))
    assert half.dtype == whole.dtype == np.float32 and 1e-4 < np.abs(half - whole).max() < 0.1


def test_a_plan_counts_it_and_what_it_saves(made):
    recipe = lambda **more: runs.recipe_of(sdxl, StableDiffusion, made[0], **more).planned()
    with_it, without = (recipe(**more).align({}) for more in ({}, {"network__reward_vae": ""}))
    assert "reward_vae" in with_it.frozen and "reward_vae" not in without.frozen
    with pytest.raises(InputError, match="no such folder: /nowhere"):
        recipe(network__reward_vae="/nowhere").check("compile")
    published = runs.config_of(sdxl, {"network.reward_vae": "madebyollin/taesdxl"})  # no base: the published one's shapes
    tiny_side = StableDiffusion(published).reward_image
    assert sum(np.prod(a.shape) for a in jax.tree.leaves(tiny_side.weights.shapes)) == 1_222_531


@pytest.mark.parametrize(
    "options, fragments",
    [
        (None, ["config.network.reward_vae", "no such folder: /nowhere", "AutoencoderTiny"]),
        ({"latent_channels": 16}, ["config.network.reward_vae", "latent channels 16, the pipeline's VAE has 4", "taesdxl"]),
        ({"levels": 3}, ["config.network.reward_vae", "factor 4, the pipeline's VAE has 2"]),
        ({"upsampling_scaling_factor": 3}, ["AutoencoderTiny", "upsampling_scaling_factor=3"]),
    ],
)
def test_one_that_is_not_for_these_latents_is_refused_before_work(made, tmp_path, options, fragments):
    if options is not None:
        save_tiny_vae(tmp_path, **options)
    path = "/nowhere" if options is None else str(tmp_path)
    message = runs.refusal(runs.config_of(sdxl, made[0] | {"network.reward_vae": path}))
    assert all(fragment in message for fragment in fragments), message


def test_weights_that_do_not_fit_are_refused_by_name(made, tmp_path):
    save_tiny_vae(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = dict(read_tensors(path))
    tensors["decoder.layers.2.conv.1.weight"] = np.array(tensors.pop("decoder.layers.2.conv.2.weight"))
    write_safetensors(path, {name: np.array(w) for name, w in tensors.items()})
    message = runs.refusal(runs.config_of(sdxl, made[0] | {"network.reward_vae": str(tmp_path)}))
    assert f"config.network.reward_vae = {tmp_path}" in message and "decoder.layers.2.conv.2.weight" in message
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    message = runs.refusal(runs.config_of(sdxl, made[0] | {"network.reward_vae": str(tmp_path)}))
    assert "AutoencoderKL, but a AutoencoderTiny is needed" in message
