"""Memory of the differentiable path: x_t → K denoising steps → VAE → reward, and back to x_t.

    python benchmarks/path_memory.py                       # full-size SDXL and HPSv2.1, for an H200 that need not be here
    python benchmarks/path_memory.py --topology= --tiny    # a try, on the devices of this process

Compiled, not run: the table holds XLA's temporaries in GiB beside the parameters, one sample, UNet in bfloat16, VAE and
reward in float32.  `remat` is what the backward pass recomputes (didr_jax.models.remat), denoising steps included
unless it is `none`.
"""

import itertools
import time

from absl import app, flags

TOPOLOGY = flags.DEFINE_string("topology", "h200:1", "as config.compile.topology; one device")
STEPS = flags.DEFINE_list("steps", ["1", "2", "4"], "K, denoiser evaluations")
SIZES = flags.DEFINE_list("sizes", ["512", "1024"], "pixels along each side")
REMAT = flags.DEFINE_list("remat", ["blocks", "products", "none"], "of UNet and reward: as config.network.remat")
VAE_REMAT = flags.DEFINE_string("vae_remat", "", "of the decoder; empty: as the others")
ATTENTION = flags.DEFINE_list("attention", ["xla"], "backends of attention to pixels")
EFFORT = flags.DEFINE_float("effort", -1.0, "as config.compile.effort")
VAE_DTYPE = flags.DEFINE_string("vae_dtype", "float32", "of the decoder")
TINY = flags.DEFINE_bool("tiny", False, "a pipeline of a few thousand weights, at 64² and 128²")


def gradient_of_reward(config, num_steps: int):
    """`(x_t, t, params) -> ∂r/∂x_t` and the shapes of its arguments for one sample."""
    import jax
    import jax.numpy as jnp

    from didr_jax.diffusion import to_x0
    from didr_jax.recipes.text_to_image.recipe import TextToImage
    from didr_jax.recipes.text_to_image.stable_diffusion import StableDiffusion
    from didr_jax.sampling import denoise

    task = TextToImage(config, StableDiffusion).planned().task
    backbone, mix = task.backbone, task.mix
    schedule = backbone.schedule

    def reward(x_t, t, params, text, tokens):
        denoiser = lambda x, t: to_x0(backbone.prediction, backbone.network(params["unet"], x, t, text), x, t, schedule)
        x0 = denoise(denoiser, schedule, x_t, t, num_steps=num_steps, remat=config.network.remat != "none")
        image = backbone.reward_image.decode(params, x0)
        return mix.apply(params["rewards"], image, tokens).total.sum()

    params = {"unet": backbone.base.cast("bfloat16").shapes, "vae": backbone.image.weights.shapes, "rewards": mix.params.shapes}
    x_t = jax.ShapeDtypeStruct((1, *backbone.event_shape), jnp.float32)
    return jax.grad(reward), (x_t, jax.ShapeDtypeStruct((1,), jnp.float32), params, backbone.text_shapes, mix.tokenize([""]))


def main(argv):
    import jax
    from jax.sharding import SingleDeviceSharding

    from benchmarks import tiny_sdxl
    from configs import sdxl
    from didr_jax.planning.plan import refusal
    from didr_jax.planning.targets import target
    from didr_jax.training.chips import GIB
    from didr_jax.training.parallel import with_places

    machine = target(TOPOLOGY.value, EFFORT.value)
    place = SingleDeviceSharding(machine.devices()[0])
    sizes = ["64", "128"] if TINY.value else SIZES.value
    print("| side | K | remat | attention | temporaries, GiB | compiled in, s |\n|--:|--:|---|---|--:|--:|")
    for size, remat, attention, steps in itertools.product(sizes, REMAT.value, ATTENTION.value, STEPS.value):
        config = sdxl.get_config()
        config.image.height = config.image.width = int(size)
        config.network.remat = config.rewards.remat = remat
        config.network.vae_remat = VAE_REMAT.value or remat
        config.network.attention, config.network.reward_vae_dtype = attention, VAE_DTYPE.value
        if TINY.value:
            tiny_sdxl.use(config)
        gradient, shapes = gradient_of_reward(config, int(steps))
        arguments = with_places(shapes, jax.tree.map(lambda _: place, shapes))
        begin = time.perf_counter()
        try:
            compiled = jax.jit(gradient).lower(*arguments).compile(compiler_options=dict(machine.options))
            memory = compiled.memory_analysis()
            used = f"{memory.temp_size_in_bytes / GIB:.2f}"
        except jax.errors.JaxRuntimeError as error:
            refused, wanted = refusal(str(error))
            if not refused:
                raise
            used = f"refused ({wanted / GIB:.1f} with parameters)" if wanted else "refused"
        seconds = time.perf_counter() - begin
        print(f"| {size} | {steps} | {remat} | {attention} | {used} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    app.run(main)
