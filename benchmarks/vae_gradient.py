"""How far the reward's gradient turns if the VAE or the reward compute in bfloat16, or a tiny VAE decodes: by noise level.

    python benchmarks/vae_gradient.py                  # the sprouts that ship, their VAE and preference; 3 minutes on 2 cores
    python benchmarks/vae_gradient.py --vae=sdxl       # VAE of SDXL's size (flux: of Z-Image's) with random weights
    python benchmarks/vae_gradient.py --tiny=FOLDER    # and by an AutoencoderTiny made for the sprouts' VAE

For each sample the gradient ∇r(x̂) where an estimator asks for it, at the reference's x̂(x_t, t); printed is the mean of its
cosine with the one in float32, the smallest in brackets, and the mean of its length over the other's.  A random VAE has no
reference: there x̂ is the posterior mean of latents that are standard normal, α x_t/(α² + σ²).
"""

import checkout  # noqa: F401  (finds the packages)
from absl import app, flags

VAE = flags.DEFINE_enum("vae", "sprouts", ["sprouts", "sdxl", "flux"], "whose architecture; but for sprouts' with random weights")
TINY = flags.DEFINE_string("tiny", "", "folder of a tiny VAE; empty: none")
SAMPLES = flags.DEFINE_integer("samples", 32, "images a noise level")
SIDE = flags.DEFINE_integer("side", 64, "pixels of an image's side, of a random VAE")
LEVELS = flags.DEFINE_list("levels", ["0.1", "0.3", "0.5", "0.7", "0.9"], "times t of the flow, that is σ")
SEED = flags.DEFINE_integer("seed", 0, "of everything random")

# row -> what it changes in the config that computes in float32
ROWS = {
    "VAE bfloat16": {"network.reward_vae_dtype": "bfloat16"},
    "reward bfloat16": {"rewards.dtype": "bfloat16"},
    "both bfloat16": {"network.reward_vae_dtype": "bfloat16", "rewards.dtype": "bfloat16"},
}
PUBLISHED = {"sdxl": "sdxl", "flux": "zimage"}


def random_weights(shapes):
    """Of a network: kernels that keep the variance, scales of 1, biases of 0."""
    import jax
    import jax.numpy as jnp

    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
    keys = jax.random.split(jax.random.key(SEED.value), len(leaves))

    def fill(key, path, a):
        if a.ndim > 1:
            return (jax.random.normal(key, a.shape) * (a.size / a.shape[-1]) ** -0.5).astype(a.dtype)
        return jnp.full(a.shape, float(path[-1].key == "scale"), a.dtype)

    return tree.unflatten([fill(key, path, a) for key, (path, a) in zip(keys, leaves, strict=True)])


def task_of(changes):
    """The sprouts' task, with the VAE that the flags name."""
    from configs import sprouts
    from didr_jax.models.published import PIPELINES
    from didr_jax.recipes.text_to_image.task import Task
    from didr_jax.recipes.text_to_image.zimage import ZImage

    class Backbone(ZImage):
        def architecture(self, part):
            return (
                PIPELINES[PUBLISHED[VAE.value]][part] if part == "vae" and VAE.value in PUBLISHED else super().architecture(part)
            )

    config = sprouts.get_config()
    if VAE.value != "sprouts":
        config.image.height = config.image.width = SIDE.value
    config.rewards.clipscore, config.rewards.held_out = "", ()
    config.update_from_flattened_dict(changes)
    return Task(config, Backbone)


def gradients(changes, points, tokens):
    """∇r `[b, ...]` at each of `points`, in one configuration."""
    import jax

    task = task_of(changes)
    side = task.backbone.reward_image
    weights = {side.name: side.weights, "rewards": task.judge.params}
    frozen = {name: weights[name].load() for name in weights if name != "vae" or VAE.value == "sprouts"}
    if "vae" in weights and "vae" not in frozen:
        frozen["vae"] = random_weights(weights["vae"].shapes)
    total = lambda frozen, x0: task.score(frozen, x0, {"tokens": tokens}, to_train=True).total.sum()
    gradient = jax.jit(jax.grad(total, argnums=1))
    return [gradient(frozen, x0) for x0 in points]


def main(argv):
    import jax
    import jax.numpy as jnp
    import numpy as np

    from didr_jax.diffusion import add_noise, signal_and_noise

    task, n = task_of({}), SAMPLES.value
    z_key, noise_key = jax.random.split(jax.random.key(SEED.value))
    c = task.table(task.prompts[:n]).everything
    shape, schedule = task.backbone.event_shape, task.backbone.schedule
    x0 = z = jax.random.normal(z_key, (n, *shape))
    noise, frozen = jax.random.normal(noise_key, (n, *shape)), {}
    if VAE.value == "sprouts":
        frozen = {name: weights.load() for name, weights in task.frozen().items() if name not in task.finishing()}
        generator = task.pair("generator", frozen, task.start("generator").load())
        x0 = jax.jit(task.generate)(*generator, z, c)

    def mean_at(level):
        t = jnp.full(n, float(level))
        x_t = add_noise(schedule, x0, noise, t)
        if VAE.value == "sprouts":
            return jax.jit(task.predict)(frozen["base"], None, x_t, t, c)
        α, σ = signal_and_noise(schedule, t, x_t)
        return α * x_t / (α**2 + σ**2)

    points = [mean_at(level) for level in LEVELS.value]
    rows = ROWS | ({"tiny VAE": {"network.reward_vae": TINY.value}} if TINY.value else {})
    truth = gradients({}, points, c["tokens"])
    print(f"{VAE.value}, {n} samples, latents {shape}\n\n| | " + " | ".join(f"t = {level}" for level in LEVELS.value) + " |")
    print("|---|" + "--:|" * len(LEVELS.value), flush=True)
    flat = lambda g: np.asarray(g, np.float64).reshape(n, -1)
    for name, changes in rows.items():
        cells = []
        for a, b in zip(map(flat, gradients(changes, points, c["tokens"])), map(flat, truth), strict=True):
            lengths = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
            cosine = (a * b).sum(1) / (lengths[0] * lengths[1])
            cells.append(f"{cosine.mean():.4f} ({cosine.min():.4f}), {(lengths[0] / lengths[1]).mean():.3f}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    app.run(main)
