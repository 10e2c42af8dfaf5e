"""How far a captioned reference of sprouts is off, by noise level, with a picture's own caption, another's and none.

    python run.py --config=configs/sprouts_sdxl_pipeline.py --workdir=runs/sprouts_sdxl_pipeline
    python benchmarks/caption_errors.py --workdir=runs/sprouts_sdxl_pipeline       # a minute

E‖x̂0 − x0‖² an entry of latents (whose variance is 1), on held-out pictures with captions that name every part.  Where the
first two rows are alike, a caption is not listened to; what the mean of all pictures would score is 1.
"""

import checkout  # noqa: F401  (finds the packages)
from absl import app, flags, logging

WORKDIR = flags.DEFINE_string("workdir", "runs/sprouts_sdxl_pipeline", "a run of sprouts_pipeline or sprouts_sdxl_pipeline")
PICTURES = flags.DEFINE_integer("pictures", 256, "of the held-out album")
LEVELS = flags.DEFINE_list("levels", ["0.2", "0.4", "0.6", "0.8", "0.9", "0.97"], "times t")
SEED = flags.DEFINE_integer("seed", 0, "of the noise")


def main(argv):
    logging.set_verbosity(logging.WARNING)
    import jax
    import jax.numpy as jnp
    import numpy as np

    from didr_jax import recipes
    from didr_jax.objectives import denoising_loss
    from didr_jax.recipes.sprouts import parts
    from didr_jax.recipes.sprouts.data import raw_means
    from didr_jax.saved_config import get_config
    from didr_jax.training.evaluation import over_rows
    from didr_jax.training.metrics import RunLog
    from didr_jax.training.parallel import make_mesh
    from didr_jax.training.run import Run, saved_products

    config = get_config(f"{WORKDIR.value}/config.json")
    run = Run(config, WORKDIR.value, make_mesh(config.mesh), RunLog(WORKDIR.value))
    recipe = recipes.build(config)
    family, products = recipe.family, saved_products(run)
    params = {name: products[name]["params"].load() for name in ("vae", "words", "reference")}
    scale, album = recipe.latents(params["vae"]), recipe.album("held_out")
    n = min(PICTURES.value, len(album.images))
    x0 = (raw_means(family.vae, params["vae"], album.images[:n]) - scale.shift) * scale.scale
    captions = parts.captions(album.parts[:n], np.ones((n, len(parts.PARTS)), bool))
    told = {"own caption": captions, "another's": captions[1:] + captions[:1], "none": [""] * n}

    @jax.jit
    def off(params, rows):
        text = family.text(params["words"], rows["tokens"])
        denoiser = lambda x_t, t: recipe.denoise(params["reference"], x_t, t, text)
        return denoising_loss(denoiser, family.schedule, rows["x0"], rows["noise"], rows["t"], "x0")

    noise = np.asarray(jax.random.normal(jax.random.key(SEED.value), x0.shape))
    print("| t | " + " | ".join(LEVELS.value) + " |")
    print("|---|" + "--:|" * len(LEVELS.value), flush=True)
    for name, sentences in told.items():
        rows = {"x0": x0, "noise": noise, "tokens": family.tokens(sentences)}
        times = [np.asarray(family.schedule.snap(jnp.full(n, float(level)))) for level in LEVELS.value]
        cells = [f"{over_rows(off, params, rows | {'t': t}, 64).mean():.3f}" for t in times]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    app.run(main)
