"""What `align.ta_float32` brings where networks compute in bfloat16: the error of the score gap, by noise level.

    python run.py --config=configs/sprouts.py --workdir=runs/sprouts
    python benchmarks/ta_precision.py --workdir=runs/sprouts          # half a minute

The gap x̂_ψ − x̂_ref of a finished run's last TA at its last generator's pictures, diffused, against the same gap in
float32: the mean over samples of ‖error‖/‖gap‖, and the cosine of the two.  The reference computes in bfloat16 in both
rows, as it does in training; the TA in bfloat16, or in float32 (`align.ta_float32=True`, DMD2's code).
"""

import checkout  # noqa: F401  (finds the packages)
from absl import app, flags, logging

WORKDIR = flags.DEFINE_string("workdir", "runs/sprouts", "a finished run of a text-to-image recipe")
SAMPLES = flags.DEFINE_integer("samples", 64, "pictures a noise level")
LEVELS = flags.DEFINE_list("levels", ["0.1", "0.3", "0.5", "0.7", "0.9"], "times t")
SEED = flags.DEFINE_integer("seed", 0, "of everything random")


def main(argv):
    logging.set_verbosity(logging.WARNING)
    import jax
    import jax.numpy as jnp
    import numpy as np
    from last_game import last_game

    from didr_jax import recipes
    from didr_jax.diffusion import add_noise

    config, task, state, frozen, c, x0, noise = last_game(WORKDIR.value, SAMPLES.value, SEED.value, of="ema")
    n = len(x0)

    def gap(dtype: str, ta_float32: bool):
        config.network.dtype, config.align.ta_float32 = dtype, ta_float32
        networks = recipes.build(config).task.networks()
        ta = networks.ta_in_loss or networks.ta
        return jax.jit(
            lambda x_t, t: (ta(state.ta, frozen, x_t, t, c) - networks.reference(frozen, x_t, t, c)).astype(jnp.float32)
        )

    def gaps(made):
        times = [jnp.full(n, float(level)) for level in LEVELS.value]
        found = [made(add_noise(task.backbone.schedule, x0, noise, t), t) for t in times]
        return [np.asarray(each, np.float64).reshape(n, -1) for each in found]

    truth, length = gaps(gap("float32", False)), lambda a: np.linalg.norm(a, axis=1)
    print("| the TA in the loss | " + " | ".join(f"t = {level}" for level in LEVELS.value) + " |")
    print("|---|" + "--:|" * len(LEVELS.value), flush=True)
    for name, made in (("bfloat16", gap("bfloat16", False)), ("float32", gap("bfloat16", True))):
        cells = []
        for a, b in zip(gaps(made), truth, strict=True):
            cosine = (a * b).sum(1) / (length(a) * length(b))
            cells.append(f"{(length(a - b) / length(b)).mean():.4f}, {cosine.mean():.5f}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    app.run(main)
