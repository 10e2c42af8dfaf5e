"""Prompt to image: the Z-Image recipe, our samplers and the reference of --mode=benchmark against `ZImagePipeline`, from one folder and one noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from configs import zimage as config_file  # noqa: E402
from didr_jax.recipes.text_to_image.benchmark_models import multi_step  # noqa: E402
from didr_jax.recipes.text_to_image.task import Task  # noqa: E402
from didr_jax.recipes.text_to_image.zimage import ZImage  # noqa: E402
from tests.parity.oracle import QUICK, assert_close, nchw  # noqa: E402
from tests.text_to_image import tiny_zimage as tiny  # noqa: E402


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """(diffusers' pipeline, {config key: value} of our task on its folder)."""
    pipeline, settings = tiny.settings(tmp_path_factory.mktemp("zimage"), **tiny.RAGGED)
    return pipeline, settings | {"weights.generator": ""}


@pytest.fixture(scope="module")
def ours(inputs):
    """(our task, its frozen parameters, its decoder compiled)."""
    task = task_of(inputs)
    return task, {name: each.load() for name, each in task.frozen().items()}, jax.jit(task.decode, compiler_options=QUICK)


def task_of(inputs, **network):
    config = config_file.get_config()
    config.update_from_flattened_dict(inputs[1])
    config.network.update(network)
    return Task(config, ZImage)


def with_scheduler(pipeline, values):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(dict(values))
    client = diffusers.ZImagePipeline.from_pipe(pipeline, scheduler=scheduler)
    client.set_progress_bar_config(disable=True)
    return client


@pytest.mark.parametrize(("steps", "guidance"), [(1, 0.0), (1, 4.0), (4, 4.0)])
def test_prompt_to_image(inputs, ours, steps, guidance):
    """Both captions are of one batch and of different padded lengths; the schedule's own grid places the steps."""
    task, frozen, decode = ours
    pipeline = with_scheduler(inputs[0], {"shift": 3.0})
    prompts, shape = tiny.RAGGED["prompts"][:2], task.backbone.event_shape
    noise = np.random.default_rng(steps).normal(size=(2, *shape)).astype(np.float32)
    theirs = lambda kind: pipeline(
        list(prompts), tiny.HEIGHT, tiny.WIDTH, steps, guidance_scale=guidance, latents=nchw(noise),
        max_sequence_length=tiny.RAGGED["max_length"], output_type=kind,
    ).images  # fmt: skip

    c = {"text": jax.tree.map(jnp.asarray, task.table(list(prompts)).everything["text"])}
    no_c = task.networks().unconditional(frozen, c)
    assert c["text"]["length"].tolist() == [11, 33] and no_c["text"]["length"].tolist() == [5, 5]

    # ZImagePipeline's scale is w − 1
    draw = jax.jit(lambda frozen, z, c: multi_step(task, frozen, z, c, steps, guidance + 1), compiler_options=QUICK)
    latents = draw({name: frozen[name] for name in ("base", "no_text")}, noise, c)
    assert_close(latents, theirs("latent").numpy().transpose(0, 2, 3, 1), what="latents")
    images = decode(frozen, latents)
    assert_close(images / 2 + 0.5, theirs("np"), what="image")
    assert images.std() > 0.1


@pytest.mark.parametrize("solver", ["ode", "renoise"])
def test_four_steps_are_those_of_the_exported_scheduler(inputs, ours, solver):
    task = task_of(inputs, generator_steps=4, generator_solver=solver)
    client = with_scheduler(inputs[0], task.backbone.scheduler_json)
    height, width, channels = task.backbone.event_shape
    torch.manual_seed(0)
    noises = torch.stack([torch.randn(2, channels, height, width) for _ in range(4)])
    torch.manual_seed(0)
    torch.randn(2, channels, height, width)  # a stochastic scheduler goes on where the first noise ended
    want = client(
        tiny.RAGGED["prompts"][:2], tiny.HEIGHT, tiny.WIDTH, 4, guidance_scale=0.0, latents=noises[0],
        max_sequence_length=tiny.RAGGED["max_length"], output_type="latent",
    ).images  # fmt: skip
    z, c = noises.numpy().transpose(1, 0, 3, 4, 2), task.table(tiny.RAGGED["prompts"][:2]).everything
    assert z.shape[1:] == task.backbone.noise_shape
    latents = jax.jit(task.generate, compiler_options=QUICK)(ours[1]["base"], None, z, c)
    assert_close(latents, want.numpy().transpose(0, 2, 3, 1), what="latents")
