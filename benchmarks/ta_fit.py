"""How well a run's TA knows the generator that it follows, by noise level.

    python run.py --config=configs/sprouts.py --workdir=runs/sprouts
    python benchmarks/ta_fit.py --workdir=runs/sprouts             # a minute

Of the exact TA the error x0 − x̂_ψ is uncorrelated with every function of x_t, so with the gap y = x̂_ψ − x̂_ref, too.
Of any TA

    m = 1 + E⟨x0 − x̂_ψ, y⟩ / E‖y‖²

is the multiple of its gap that would be nearest to the exact one: above 1 it has not gone far enough from the reference,
below 1 too far, and below ½ it is a worse denoiser than the reference.  At least |1 − m| of the gap's length is error (Cauchy
and Schwarz), so that m = 1 is necessary and not sufficient.  The other rows are E‖x0 − x̂‖² an entry.  On the last
generator's samples, with ± half of a 95 % interval over them.
"""

import checkout  # noqa: F401  (finds the packages)
from absl import app, flags, logging

WORKDIR = flags.DEFINE_string("workdir", "runs/sprouts", "a finished run of a text-to-image recipe with one step")
SAMPLES = flags.DEFINE_integer("samples", 512, "pictures a noise level")
LEVELS = flags.DEFINE_list("levels", ["0.1", "0.3", "0.5", "0.7", "0.9", "0.97"], "times t")
SEED = flags.DEFINE_integer("seed", 0, "of everything random")
BATCH = 64  # samples at a time
RESAMPLED = 200  # for an interval


def main(argv):
    logging.set_verbosity(logging.WARNING)
    import jax
    import jax.numpy as jnp
    import numpy as np
    from last_game import last_game

    from didr_jax.diffusion import add_noise
    from didr_jax.training.evaluation import over_rows

    game = last_game(WORKDIR.value, SAMPLES.value, SEED.value, of="generator")
    networks = game.task.networks()

    @jax.jit
    def measured(params, rows):
        c = networks.prepared(params["frozen"], rows["c"])
        x0, t = rows["x0"], rows["t"]
        x_t = add_noise(networks.schedule, x0, rows["noise"], t)
        x_ref = networks.reference(params["frozen"], x_t, t, c)
        x_ta = networks.ta(params["ta"], params["frozen"], x_t, t, c)
        mean = lambda a: jnp.mean(a.reshape(len(t), -1), 1)
        return {
            "owed": mean((x0 - x_ta) * (x_ta - x_ref)),
            "gone": mean((x_ta - x_ref) ** 2),
            "ta": mean((x0 - x_ta) ** 2),
            "reference": mean((x0 - x_ref) ** 2),
        }

    rng, n = np.random.default_rng(SEED.value), len(game.x0)
    chosen = rng.integers(n, size=(RESAMPLED, n))
    rows = {"best multiple of the gap": [], "error of the TA": [], "error of the reference": []}
    for level in LEVELS.value:
        t = np.asarray(networks.schedule.snap(jnp.full(n, float(level))))
        given = {"x0": game.x0, "noise": game.noise, "t": t, "c": game.c}
        found = over_rows(measured, {"ta": game.state.ta, "frozen": game.frozen}, given, BATCH)
        multiple = lambda which, found=found: 1 + found["owed"][which].mean() / found["gone"][which].mean()
        half = 1.96 * np.std([multiple(which) for which in chosen])
        rows["best multiple of the gap"].append(f"{multiple(np.arange(n)):.2f} ± {half:.2f}")
        rows["error of the TA"].append(f"{found['ta'].mean():.4f}")
        rows["error of the reference"].append(f"{found['reference'].mean():.4f}")
    print("| t | " + " | ".join(LEVELS.value) + " |")
    print("|---|" + "--:|" * len(LEVELS.value))
    for name, cells in rows.items():
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    app.run(main)
