"""Few-step SDXL at tiny size: our four steps are those of diffusers' schedulers, and they train."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from configs import sdxl  # noqa: E402
from didr_jax.recipes.text_to_image.stable_diffusion import StableDiffusion  # noqa: E402
from didr_jax.types import InputError  # noqa: E402
from tests.parity.oracle import assert_close  # noqa: E402
from tests.text_to_image import runs  # noqa: E402
from tests.text_to_image import tiny_sdxl as tiny  # noqa: E402

TIMESTEPS = (999, 749, 499, 249)
SHAPE = (4, tiny.HEIGHT // 2, tiny.WIDTH // 2)  # of a latent, channels first


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return tiny.settings(tmp_path_factory.mktemp("sdxl"))


def recipe_of(settings, **more):
    return runs.recipe_of(sdxl, StableDiffusion, settings | {"network.generator_timesteps": TIMESTEPS} | more)


@pytest.mark.parametrize(("solver", "scheduler"), [("renoise", diffusers.LCMScheduler), ("ode", diffusers.DDIMScheduler)])
def test_four_steps_are_those_of_diffusers(inputs, solver, scheduler):
    pipeline, settings = inputs
    client = diffusers.StableDiffusionXLPipeline.from_pipe(
        pipeline, scheduler=scheduler.from_config(pipeline.scheduler.config, clip_sample=False, set_alpha_to_one=True)
    )
    client.set_progress_bar_config(disable=True)
    if solver == "ode":  # DDIM's pipeline has no list of timesteps: its own "trailing" spacing gives ours
        client.scheduler = scheduler.from_config(client.scheduler.config, timestep_spacing="trailing", steps_offset=0)
        steps = {"num_inference_steps": 4}
    else:
        steps = {"timesteps": list(TIMESTEPS)}
    noises = torch.randn(4, 2, *SHAPE, generator=torch.Generator().manual_seed(7))
    rest = torch.Generator().manual_seed(7)
    torch.randn(2, *SHAPE, generator=rest)  # the scheduler goes on where the first noise ended
    theirs = client(
        tiny.PROMPTS[:2], height=tiny.HEIGHT, width=tiny.WIDTH, guidance_scale=0.0, latents=noises[0],
        generator=rest, output_type="latent", **steps,
    ).images  # fmt: skip

    task = recipe_of(settings, **{"network.generator_solver": solver, "weights.generator": ""}).task
    c = task.conditions.rows(np.arange(2))
    z = noises.numpy().transpose(1, 0, 3, 4, 2)
    assert z.shape[1:] == task.backbone.noise_shape
    latents = jax.jit(task.generate)(task.backbone.generator.cast("float32").load(), None, z, c)
    # Four evaluations, each divided by alpha: at timestep 999 that is .068.
    assert_close(latents, theirs.numpy().transpose(0, 2, 3, 1), 1e-3, "latents")


@pytest.mark.slow
def test_a_four_step_generator_trains(inputs):
    runs.assert_trains(recipe_of(inputs[1]))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"network.generator_timesteps": (249, 499)}, "config.network: the times of a generator's steps must decrease"),
        ({"align.generator_t_max": 0.7}, "config.align.generator_t_min, generator_t_max"),
    ],
)
def test_steps_that_cannot_be_trained_are_refused(inputs, change, says):
    with pytest.raises(InputError, match=says):
        recipe_of(inputs[1], **change).check("train")
