"""The estimators where they are known to fail: skew, heavy-tailed and atomic laws, oscillating and non-smooth rewards.

    python benchmarks/hard_laws.py [--all] [--quick]

Four laws with exact denoisers, in 2 to 5 dimensions, each on one noise schedule (`--all`: on all three); truth is the mean
over exact posterior samples.  "own" is given the x0 that x_t was made of, half of them drawn from the law and half from the
tilted law.  A cell is √(E‖error‖² / E‖DRS‖²) of one draw per t, averaged over t and β, and over laws: `mean / worst law`.
Returning zero is 1.  Cost, per sample: evaluations of the denoiser (a backward pass counts 2), and gradients + values of the reward.
"""

import argparse
import functools
from typing import NamedTuple

import checkout  # noqa: F401  (finds the packages)
import jax
import jax.numpy as jnp
import numpy as np
from estimators import table

from didr_jax import schedules
from didr_jax.conjugate import time_of_precision
from didr_jax.diffused_reward import ESTIMATORS, diffused_reward_score
from didr_jax.diffusion import signal_and_noise
from didr_jax.estimators import Estimate
from didr_jax.types import Array

SCHEDULES = {"cosine": schedules.cosine(), "flow": schedules.rectified_flow(), "ddpm": schedules.ddpm()}
SNRS = np.tan(np.pi / 2 * np.array([0.1, 0.3, 0.5, 0.7, 0.9, 0.95]))  # σ/α; that of the cosine schedule at these t
BETAS = [4.0, 1.0, 0.5]
MODES = 8

SETTINGS = {
    "`drp`": Estimate("drp"),
    "`shifted`": Estimate("shifted"),
    "`own`": Estimate("own"),
    "`own`, guard off": Estimate("own", guard=False),
    "`conjugate` (auto)": Estimate("conjugate"),
    "`conjugate`, guard off": Estimate("conjugate", guard=False),
    "`conjugate` K=4 N=40": Estimate("conjugate", 4, 40),
    "`covariance` K=4 N=40": Estimate("covariance", 4, 40),
}


class Law(NamedTuple):
    """Σ_k π_k N(μ_k, Q_k diag(v_k) Q_kᵀ), MODES components: `log_weights [k]`, `means [k, d]`, `variances [k, d]`, `turns [k, d, d]`."""

    log_weights: Array
    means: Array
    variances: Array
    turns: Array

    def components(self, x_t, α, σ):
        """log π_k N(x_t; …) `[b, k]`, and mean `[b, k, d]` and variance (along Q_k) of each component's posterior."""
        spread = α[..., None] ** 2 * self.variances + σ[..., None] ** 2
        z = jnp.einsum("kij,bki->bkj", self.turns, x_t[:, None] - α[..., None] * self.means)
        log_joint = self.log_weights - 0.5 * jnp.sum(z**2 / spread + jnp.log(2 * jnp.pi * spread), -1)
        gain = α[..., None] * self.variances / spread
        return (
            log_joint,
            self.means + jnp.einsum("kij,bkj->bki", self.turns, gain * z),
            self.variances * σ[..., None] ** 2 / spread,
        )

    def denoiser(self, schedule):
        def posterior_mean(x_t, t):
            log_joint, means, _ = self.components(x_t, *signal_and_noise(schedule, t, x_t))
            return jnp.einsum("bk,bkd->bd", jax.nn.softmax(log_joint, -1), means)

        return posterior_mean

    def posterior(self, key, num, x_t, α, σ):
        """`[num, b, d]` exact samples of p(x0 | x_t)."""
        log_joint, means, variances = self.components(x_t, α, σ)
        which, noise = jax.random.split(key)
        k = jax.random.categorical(which, log_joint, shape=(num, len(x_t)))
        rows = jnp.arange(len(x_t))
        z = jnp.sqrt(variances[rows, k]) * jax.random.normal(noise, (num, *x_t.shape))
        return means[rows, k] + jnp.einsum("nbij,nbj->nbi", self.turns[k], z)


class Reward(NamedTuple):
    """A family; a pytree, so that one compiled program serves every member."""

    a: Array
    u: Array
    v: Array
    m: Array
    round: Array | float = 0.0
    ridge: Array | float = 0.0
    tanh: Array | float = 0.0
    waves: Array | float = 0.0
    kinks: Array | float = 0.0
    linear: Array | float = 1.0

    def __call__(self, x):
        u, v, away = x @ self.u, x @ self.v, x - self.m
        r = self.linear * (x @ self.a) - 0.5 * self.round * jnp.sum(away**2, -1) - 0.5 * self.ridge * (away @ self.v) ** 2
        r += self.tanh * (2 * jnp.tanh(u) + jnp.tanh(v - 0.5)) + self.waves * (jnp.sin(3 * u) + jnp.sin(2 * v))
        return r + self.kinks * (1.5 * jnp.abs(u) - jnp.abs(v - 0.5) + (v > 0))


REWARDS = {
    "linear": {},
    "isotropic": {"round": 0.3},
    "anisotropic": {"ridge": 0.8},
    "tanh": {"tanh": 1.0, "linear": 0.0},
    "oscillating": {"waves": 1.0, "linear": 0.0},
    "non-smooth": {"kinks": 1.0, "linear": 0.0},
}


def law(kind, d, seed):
    g = np.random.default_rng(seed)
    count = {"skew": 4, "atoms": 6, "heavy": MODES}[kind]
    weights, means = g.dirichlet(np.full(count, 1.5)), 1.5 * g.normal(size=(count, d))
    variances, turns = (
        g.uniform(0.1, 0.9, (count, d)) ** 2,
        np.stack([np.linalg.qr(g.normal(size=(d, d)))[0] for _ in range(count)]),
    )
    if kind == "atoms":
        variances = np.full((count, d), 1e-6)
    if kind == "heavy":  # two centres, each of four widths
        means = np.repeat(means[:2], 4, 0)
        weights = np.outer(weights[:2] / weights[:2].sum(), [0.4, 0.35, 0.2, 0.05]).ravel()
        variances = np.tile(np.array([0.3, 0.6, 1.2, 3.0]) ** 2, 2)[:, None] * np.ones(d)
    rest = MODES - count
    fill = lambda x, value: np.concatenate([x, np.full((rest, *x.shape[1:]), value)])
    eyes = np.concatenate([turns, np.tile(np.eye(d), (rest, 1, 1))])
    parts = (fill(np.log(weights), -1e9), fill(means, 0.0), fill(variances, 1.0), eyes)
    return Law(*(jnp.asarray(part, jnp.float32) for part in parts))


def reward(d, seed, changes):
    g = np.random.default_rng(100 + seed)
    unit = lambda x: jnp.asarray(x / np.linalg.norm(x), jnp.float32)
    vectors = unit(g.normal(size=d)), unit(g.normal(size=d)), unit(g.normal(size=d)), jnp.asarray(g.normal(size=d), jnp.float32)
    filled = Reward(*vectors)._asdict() | changes
    return Reward(**{name: jnp.asarray(value, jnp.float32) for name, value in filled.items()})


LAWS = {  # kind, dimensions, seed, schedule
    "skew, 2-D": ("skew", 2, 1, "cosine"),
    "skew, 5-D": ("skew", 5, 2, "flow"),
    "atoms, 3-D": ("atoms", 3, 3, "ddpm"),
    "heavy tails, 3-D": ("heavy", 3, 4, "ddpm"),
}


def times(schedule):
    """The t of SNRS."""

    return time_of_precision(schedule, jnp.asarray(1 / SNRS**2, jnp.float32))


@functools.partial(jax.jit, static_argnames=("name", "per_time", "num"))
def problem(name, law, reward, beta, per_time, num):
    """x0, x_t, t and the true tilt for 2·per_time points of each time."""
    schedule, keys = SCHEDULES[name], jax.random.split(jax.random.key(0), 5)
    t = jnp.repeat(times(schedule), 2 * per_time)
    pool = law.posterior(keys[0], 1, jnp.zeros((4000, law.means.shape[1])), jnp.zeros((4000, 1)), jnp.ones((4000, 1)))[0]
    plain = pool[jax.random.randint(keys[1], (len(t) // 2,), 0, len(pool))]
    tilted = pool[jax.random.categorical(keys[2], reward(pool) / beta, shape=(len(t) // 2,))]
    x0 = jnp.stack([plain, tilted], 1).reshape(len(t), -1)
    α, σ = signal_and_noise(schedule, t, x0)
    x_t = α * x0 + σ * jax.random.normal(keys[3], x0.shape)

    def accumulate(state, key):
        top, total, sum_tilted, sum_plain = state
        samples = law.posterior(key, 512, x_t, α, σ)
        exponent = reward(samples) / beta
        new = jnp.maximum(top, exponent.max(0))
        weight, old = jnp.exp(exponent - new), jnp.exp(top - new)
        return (new, total * old + weight.sum(0), sum_tilted * old[:, None] + jnp.einsum("nb,nbd->bd", weight, samples),
                sum_plain + samples.sum(0)), None  # fmt: skip

    zero = jnp.zeros(len(t))
    start = (zero - 1e30, zero, jnp.zeros_like(x0), jnp.zeros_like(x0))
    (_, total, sum_tilted, sum_plain), _ = jax.lax.scan(accumulate, start, jax.random.split(keys[4], num))
    return x0, x_t, t, sum_tilted / total[:, None] - sum_plain / (512 * num)


@functools.partial(jax.jit, static_argnames=("name", "estimate"))
def squared_error(name, estimate, law, reward, beta, x0, x_t, t, truth):
    schedule = SCHEDULES[name]
    α, σ = signal_and_noise(schedule, t, x_t)
    drs = diffused_reward_score(
        reward, law.denoiser(schedule), schedule, x_t, t, beta=beta, estimate=estimate, key=jax.random.key(5), x0=x0
    )
    return jnp.sum((σ**2 / α * drs - truth) ** 2, -1), jnp.sum(truth**2, -1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--all", action="store_true", help="every law on every schedule")
    parser.add_argument("--quick", action="store_true", help="fewer points and samples")
    args = parser.parse_args()
    per_time, num = (8, 4) if args.quick else (32, 32)
    found: dict = {}
    for law_name, (kind, d, seed, own_schedule) in LAWS.items():
        for schedule in SCHEDULES if args.all else [own_schedule]:
            for reward_name, changes in REWARDS.items():
                given = law(kind, d, seed), reward(d, seed, changes)
                for beta in map(jnp.float32, BETAS):
                    points = problem(schedule, *given, beta, per_time, num)
                    for label, estimate in SETTINGS.items():
                        how = Estimate(**{**estimate.__dict__, "max_shift": None, "remat": False})
                        square, size = squared_error(schedule, how, *given, beta, *points)
                        ratio = np.sqrt(
                            np.asarray(square).reshape(len(SNRS), -1).mean(1) / np.asarray(size).reshape(len(SNRS), -1).mean(1)
                        )
                        found.setdefault((label, reward_name), {}).setdefault((law_name, schedule), []).append(ratio.mean())
            print(law_name, schedule, {label: round(float(np.mean([np.mean(v) for (name, _), laws in found.items() if name == label
                  for v in [laws[law_name, schedule]]])), 2) for label in SETTINGS}, flush=True)  # fmt: skip
    rows = []
    for label, how in SETTINGS.items():
        forwards, backwards = ESTIMATORS[how.estimator].evaluations(how.num_steps, how.num_samples)
        gradients, values = ESTIMATORS[how.estimator].rewards(how.num_steps, how.num_samples)
        cells = []
        for name in REWARDS:
            laws = [np.mean(v) for v in found[label, name].values()]
            cells.append(f"{np.mean(laws):.2f} / {max(laws):.2f}")
        rows.append([label, str(forwards + 2 * backwards), f"{gradients} + {values}", *cells])
    print("\n" + table(["estimator", "denoiser", "reward", *REWARDS], rows))


if __name__ == "__main__":
    main()
