"""How far may the input of a denoiser be moved before its answer is worth less?  The scaling of `max_shift` with dimension.

    python benchmarks/shift_scaling.py [--steps 3000] [--dims 4,16,64,256] [--seeds 0]

Per dimension d a perceptron is trained, by denoising score matching, on a mixture of eight Gaussians whose tilt by a linear
reward is exact: the posterior mean moves by x̂(x_t + σLu) − x̂(x_t), u a unit vector, L the shift in units of σ.  As a
reward's gradient does, u lies half along the data, half anywhere.  Wanted are shifts W of up to 64 noise widths; given are those
below a limit L.  Printed, for every d, is the relative rms error of what the network answers at min(W, L), averaged over W
and t, and the best L with its neighbours within 2 %: a rule L = c·dᵖ holds if it passes through those.
"""

import argparse

import checkout  # noqa: F401  (finds the packages)
import jax
import jax.numpy as jnp
import numpy as np
from estimators import SCHEDULE, table
from learned_denoiser import learned

from didr_jax.closed_form import GaussianMixture
from didr_jax.diffusion import add_noise, signal_and_noise

LENGTHS = 2.0 ** np.arange(-2, 7)  # L and W, in units of σ
TIMES = (0.3, 0.5, 0.7, 0.9, 0.95)
POINTS = 64


def mixture(d: int, seed: int) -> GaussianMixture:
    """Eight Gaussians whose entries have about unit variance."""
    rng = np.random.default_rng([d, seed])
    return GaussianMixture.of(rng.normal(size=(8, d)) * 0.95, std=0.3)


def errors(exact, network, law, d: int, seed: int) -> np.ndarray:
    """Relative rms error for every limit L, mean over what is wanted."""
    keys = jax.random.split(jax.random.key(seed + 1), 4)
    t = jnp.repeat(jnp.asarray(TIMES), POINTS)
    x_t = add_noise(SCHEDULE, law.sample(keys[0], len(t)), jax.random.normal(keys[1], (len(t), d)), t)
    _, σ = signal_and_noise(SCHEDULE, t, x_t)
    unit = lambda v: v / jnp.linalg.norm(v, axis=-1, keepdims=True)
    along = unit(law.sample(keys[2], len(t)) - law.sample(keys[3], len(t)))
    anywhere = unit(jax.random.normal(keys[3], x_t.shape))
    moved = lambda denoiser, u: np.stack(
        [jax.jit(lambda x: denoiser(x, t) - denoiser(x_t, t))(x_t + L * σ * u) for L in LENGTHS]  # noqa: B023
    )
    u = unit(along + anywhere)
    truth, answer = moved(exact, u), moved(network, u)
    square = lambda x: (x**2).sum(-1).reshape(len(TIMES), POINTS).mean(1)
    wanted = range(len(LENGTHS))
    rows = [[np.sqrt(square(answer[min(w, limit)] - truth[w]) / square(truth[w])) for w in wanted] for limit in wanted]
    return np.mean(rows, (1, 2))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=3000, help="training steps of each network")
    parser.add_argument("--dims", default="4,16,64,256")
    parser.add_argument("--seeds", default="0", help="of laws and networks")
    args = parser.parse_args()
    header = ["d", *(f"L = {L:g}" for L in LENGTHS), "best L", "within 2 %"]
    rows = []
    for d in map(int, args.dims.split(",")):
        each = []
        for seed in map(int, args.seeds.split(",")):
            law = mixture(d, seed)
            network = learned(law, args.steps, width=256, batch=256, seed=seed)
            each.append(errors(law.denoiser(SCHEDULE), network, law, d, seed))
        mean = np.mean(each, 0)
        good = LENGTHS[mean <= 1.02 * mean.min()]
        rows.append([str(d), *(f"{e:.2f}" for e in mean), f"{LENGTHS[mean.argmin()]:g}", f"{good.min():g} to {good.max():g}"])
        print(rows[-1], flush=True)
    print("\n" + table(header, rows))


if __name__ == "__main__":
    main()
