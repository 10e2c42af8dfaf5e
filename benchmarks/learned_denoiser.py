"""The estimators on a denoiser that was learned, which is right only where it has seen data.

    python benchmarks/learned_denoiser.py [--steps 3000]

A small network is trained by denoising score matching on each reference of `benchmarks/estimators.py`; the
truth stays that of the exact law, so that every figure includes the network's own error.  The question is how
far `conjugate` may move the network's input (`max_shift`, in units of the noise's norm).
"""

import argparse

import checkout  # noqa: F401  (finds the packages)
import estimators as bench
import jax
import jax.numpy as jnp
import numpy as np
import optax

from didr_jax.diffusion import to_x0
from didr_jax.estimators import Estimate
from didr_jax.objectives import denoising_loss

SETTINGS = [
    ("drp", None),
    ("implicit", None),
    ("conjugate", 0.5),
    ("conjugate", 1.0),
    ("conjugate", 2.0),
    ("conjugate", 4.0),
    ("conjugate", None),
]
REWARDS = ["linear", "ridge", "tanh"]


def network(params, x, t):
    """A perceptron of (x, Fourier features of t)."""
    phase = jnp.pi / 2 * t[:, None] * jnp.array([1.0, 2.0, 4.0, 8.0])
    h = jnp.concatenate([x, jnp.sin(phase), jnp.cos(phase)], -1)
    for weight, bias in params[:-1]:
        h = jax.nn.silu(h @ weight + bias)
    return h @ params[-1][0] + params[-1][1]


def learned(mixture, steps, width=128, batch=512, seed=0):
    """The trained denoiser of a mixture, v-prediction."""
    d = mixture.means.shape[1]
    sizes = [d + 8, width, width, width, d]
    keys = jax.random.split(jax.random.key(seed), len(sizes) - 1)
    params = [(jax.random.normal(k, (m, n)) / m**0.5, jnp.zeros(n)) for k, m, n in zip(keys, sizes[:-1], sizes[1:], strict=False)]
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))

    def denoiser(params, x, t):
        return to_x0("v", network(params, x, t), x, t, bench.SCHEDULE)

    def loss(params, key):
        draw, noise, when = jax.random.split(key, 3)
        x0 = mixture.sample(draw, batch)
        t = jax.random.uniform(when, (batch,), minval=0.01, maxval=0.99)
        given = x0, jax.random.normal(noise, x0.shape), t
        return jnp.mean(denoising_loss(lambda x, t: denoiser(params, x, t), bench.SCHEDULE, *given, "v"))

    def step(carry, key):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, key), state)
        return (optax.apply_updates(params, updates), state), None

    train = jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), jax.random.split(jax.random.key(seed + 1), steps))[0][0])
    params = train(params)
    return lambda x, t: denoiser(params, x, t)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=3000, help="training steps of each network")
    steps = parser.parse_args().steps
    for name in bench.REFERENCES:
        denoiser = learned(bench.REFERENCES[name]()[0], steps)
        columns = {}
        for reward in REWARDS:
            given = bench.problem(name, reward, per_time=12, chunks=32)
            for estimator, max_shift in SETTINGS:
                estimate = Estimate(estimator, max_shift=max_shift, remat=False)
                rms, _ = bench.relative(*bench.errors(denoiser, estimate, 1, *given))
                columns.setdefault((estimator, max_shift), []).extend([rms[1].mean(), rms[3].mean(), rms[3, -1]])
        header = ["estimator", "max_shift"] + [f"{r}: {what}" for r in REWARDS for what in ("β=4", "β=1", "β=1, t=.95")]
        rows = [
            [f"`{e}`", "–" if e != "conjugate" else str(m)] + [f"{v:.2f}" for v in np.array(values)]
            for (e, m), values in columns.items()
        ]
        print(f"\n### `{name}`, learned denoiser: rms, mean over t\n\n" + bench.table(header, rows), flush=True)


if __name__ == "__main__":
    main()
