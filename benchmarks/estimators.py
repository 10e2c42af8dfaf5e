"""Error of every estimator of the diffused reward score against the truth, at equal cost.

    python benchmarks/estimators.py [--quick] [--out docs]

Two references with exact denoisers (`closed_form`): the plane's four modes of method §3, and six modes of
unequal weight and width in 16 dimensions.  One family of rewards,

    r(x) = a·x − ½ c‖x − m‖² − ½ q (u·(x − m))² + h (tanh w·x + ½ tanh(v·x − ½))

whose isotropic members (q = h = 0) have the truth in closed form; for the others it is the mean over exact
posterior samples.  Points x_t come half from the diffused reference and half from the diffused tilted law,
since training sees both.

Cost is in evaluations of the denoiser: 1 a forward pass, 2 a backward one.  "rms" is the error of one
draw, √(E‖error‖² / E‖DRS‖²) per t; "bias" that of the mean over draws (training averages noise, not bias),
corrected for the draws being few.  Averages over t and β are of these ratios.
"""

import argparse
import functools
import time
from pathlib import Path
from typing import NamedTuple

import checkout  # noqa: F401  (finds the packages)
import jax
import jax.numpy as jnp
import numpy as np

from didr_jax import schedules
from didr_jax.closed_form import GaussianMixture
from didr_jax.diffused_reward import ESTIMATORS, diffused_reward_score
from didr_jax.estimators import Estimate
from didr_jax.types import Array

SCHEDULE = schedules.cosine()
TIMES = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95]
BETAS = [8.0, 4.0, 2.0, 1.0, 0.5]

# (estimator, K, N)
SETTINGS = [
    ("drp", 1, 1), ("drp", 4, 1), ("drp_mc", 4, 3), ("drp_mc", 4, 14), ("stein", 4, 2), ("stein", 4, 10), ("stein", 4, 42),
    ("implicit", 1, 1), ("covariance", 4, 2), ("covariance", 4, 5), ("covariance", 4, 10), ("covariance", 4, 21),
    ("covariance", 4, 42), ("covariance_cv", 4, 2), ("covariance_cv", 4, 10), ("covariance_cv", 4, 42), ("shifted", 1, 1),
    ("conjugate", 1, 1), ("conjugate", 4, 2), ("conjugate", 4, 4), ("conjugate", 4, 10), ("conjugate", 4, 20), ("conjugate", 4, 42),
]  # fmt: skip
QUICK = [("drp", 1, 1), ("covariance_cv", 4, 10), ("shifted", 1, 1), ("conjugate", 1, 1), ("conjugate", 4, 10)]


class Reward(NamedTuple):
    """The family above; a pytree, so that one compiled program serves every member."""

    a: Array
    m: Array
    u: Array
    w: Array
    v: Array
    c: Array | float = 0.0
    q: Array | float = 0.0
    h: Array | float = 0.0

    def __call__(self, x):
        m = self.m
        smooth = jnp.tanh(x @ self.w) + 0.5 * jnp.tanh(x @ self.v - 0.5)
        return x @ self.a - 0.5 * self.c * jnp.sum((x - m) ** 2, -1) - 0.5 * self.q * ((x - m) @ self.u) ** 2 + self.h * smooth


def unit(x):
    return x / jnp.linalg.norm(x)


def plane():
    mixture = GaussianMixture.of([[2, 2], [2, -2], [-2, 2], [-2, -2]], 0.35)
    u, v = jnp.array([0.8, 0.6]), jnp.array([0.6, -0.8])
    return mixture, Reward(jnp.array([1.0, 0.5]), jnp.array([1.5, 2.5]), u, u, v)


def space(d=16, modes=6):
    k = jax.random.split(jax.random.key(3), 8)
    weights = jax.random.uniform(k[0], (modes,), minval=0.3, maxval=1.5)
    stds = jax.random.uniform(k[1], (modes,), minval=0.25, maxval=0.7)
    mixture = GaussianMixture(jnp.log(weights / weights.sum()), 1.3 * jax.random.normal(k[2], (modes, d)), stds**2)
    a, m, u, w, v = (jax.random.normal(key, (d,)) for key in k[3:])
    return mixture, Reward(1.1 * unit(a), m, unit(u), unit(w), unit(v))


REFERENCES = {"plane": plane, "space16": space}
# name -> what it changes in the family
REWARDS = {
    "linear": {},
    "c=.18": {"c": 0.18},
    "c=.5": {"c": 0.5},
    "c=-.05": {"c": -0.05},
    "ridge": {"q": 0.6},  # curvature in one direction only
    "tanh": {"h": 2.0},  # not quadratic; saturates
}
QUICK_REWARDS = ["c=.18", "ridge", "tanh"]


def posterior_samples(mixture, x_t, t, key, num):
    """`[num, b, d]` exact samples of p(x0 | x_t): responsibilities, then the mode's Gaussian."""
    α, σ = SCHEDULE.alpha(t)[:, None], SCHEDULE.sigma(t)[:, None]
    log_joint, v = mixture._log_joint(x_t, α, σ)
    which, noise = jax.random.split(key)
    k = jax.random.categorical(which, log_joint, shape=(num, t.size))
    gain = α * mixture.variances / v
    means = mixture.means + gain[..., None] * (x_t[:, None] - α[..., None] * mixture.means)
    stds = jnp.sqrt(jnp.broadcast_to(mixture.variances * σ**2 / v, v.shape))
    rows = jnp.arange(t.size)
    return means[rows, k] + stds[rows, k][..., None] * jax.random.normal(noise, (num,) + x_t.shape)


@functools.partial(jax.jit, static_argnames=("name", "chunks"))
def exact_tilt(name, reward, x_t, t, beta, chunks):
    """(σ²/α)·DRS; from 256·chunks posterior samples where there is no closed form.

    Half are drawn from the posterior p and half from p tilted by the linear part λ of r/β at its mean
    (for a mixture that is again its posterior, at a shifted x_t, with a known normaliser Z), and weighted
    with the mixture of the two, so that neither narrow posteriors nor rare modes leave the weights uneven.
    """
    mixture, _ = REFERENCES[name]()
    denoiser = mixture.denoiser(SCHEDULE)
    x_hat, variance = denoiser(x_t, t), SCHEDULE.sigma(t) ** 2
    slope = jax.grad(lambda x: jnp.sum(reward(x)))(x_hat) / beta[:, None]
    x_from = x_t + (variance / SCHEDULE.alpha(t))[:, None] * slope
    log_density = lambda x: mixture.log_prob_t(SCHEDULE, x, t) + 0.5 * jnp.sum(x**2, -1) / variance
    log_z = log_density(x_from) - log_density(x_t)

    def closed(x, t, beta):
        tilted = mixture.tilt(_Isotropic(reward), beta)
        return tilted.denoiser(SCHEDULE)(x[None], t[None])[0] - denoiser(x[None], t[None])[0]

    def accumulate(state, key):
        top, total, tilted, plain = state
        keys = jax.random.split(key)
        x0 = jnp.concatenate([posterior_samples(mixture, x, t, k, 128) for x, k in zip((x_t, x_from), keys, strict=False)])
        # not a sum of products: jaxlib 0.10.2 compiles those wrongly (see `estimators.inner`)
        exponent = reward(x0) / beta - jnp.logaddexp(0.0, jnp.einsum("bd,nbd->nb", slope, x0) - log_z)
        new = jnp.maximum(top, exponent.max(0))
        old_scale, weight = jnp.exp(top - new), jnp.exp(exponent - new)
        return (new, total * old_scale + weight.sum(0), tilted * old_scale[:, None] + jnp.einsum("nb,nbd->bd", weight, x0),
                plain + x0.mean(0) / chunks), None  # fmt: skip

    zero = jnp.zeros_like(t)
    start = (zero - 1e30, zero, jnp.zeros_like(x_t), jnp.zeros_like(x_t))
    (_, total, tilted, plain), _ = jax.lax.scan(accumulate, start, jax.random.split(jax.random.key(9), chunks))
    sampled = tilted / total[:, None] - plain + (x_hat + denoiser(x_from, t)) / 2 - x_hat
    return jnp.where((reward.q == 0) & (reward.h == 0), jax.vmap(closed)(x_t, t, beta), sampled)


class _Isotropic:
    """What `GaussianMixture.tilt` reads of a `QuadraticReward`."""

    def __init__(self, reward):
        self.slope, self.curvature, self.center = reward.a, reward.c, reward.m


def points(name, reward, per_time):
    """x_t `[b, d]`, t `[b]`, β `[b]`, laid out as (β, t, marginal, per_time)."""
    mixture, _ = REFERENCES[name]()
    keys = jax.random.split(jax.random.key(0), 4)
    cells = (len(TIMES), per_time)
    pool = mixture.sample(keys[0], 50_000)
    per_beta = []
    for i, beta in enumerate(BETAS):
        chosen = jax.random.categorical(jax.random.fold_in(keys[1], i), reward(pool) / beta, shape=cells)
        plain = mixture.sample(jax.random.fold_in(keys[2], i), cells[0] * cells[1]).reshape(cells + (-1,))
        per_beta.append(jnp.stack([plain, pool[chosen]], 1))
    x0 = jnp.stack(per_beta)  # [β, t, 2, per_time, d]
    t = jnp.broadcast_to(jnp.array(TIMES)[None, :, None, None], x0.shape[:-1]).reshape(-1)
    beta = jnp.broadcast_to(jnp.array(BETAS)[:, None, None, None], x0.shape[:-1]).reshape(-1)
    x0 = x0.reshape(-1, x0.shape[-1])
    noise = jax.random.normal(keys[3], x0.shape)
    return SCHEDULE.alpha(t)[:, None] * x0 + SCHEDULE.sigma(t)[:, None] * noise, t, beta


@functools.cache
def exact_denoiser(name):
    return REFERENCES[name]()[0].denoiser(SCHEDULE)


@functools.partial(jax.jit, static_argnames=("denoiser", "estimate", "draws"))
def errors(denoiser, estimate, draws, reward, x_t, t, beta, truth):
    """E‖error‖², ‖E error‖² and ‖truth‖² per point, of the tilt."""
    scale = (SCHEDULE.sigma(t) ** 2 / SCHEDULE.alpha(t))[:, None]

    def error(key):
        drs = diffused_reward_score(reward, denoiser, SCHEDULE, x_t, t, beta=beta, estimate=estimate, key=key)
        return scale * drs - truth

    if not ESTIMATORS[estimate.estimator].stochastic(estimate.num_steps):
        draws = 1
    e = jax.lax.map(error, jax.random.split(jax.random.key(5), draws))
    square, bias = jnp.sum(e**2, -1).mean(0), jnp.sum(e.mean(0) ** 2, -1)
    if draws > 1:  # the mean of a few draws still has 1/draws of their variance
        bias = bias - (square - bias) / (draws - 1)
    return square, bias, jnp.sum(truth**2, -1)


def problem(name, reward_name, per_time, chunks):
    """A reward, and x_t, t, β and the exact tilt for points of it."""
    reward = REFERENCES[name]()[1]._replace(c=jnp.float32(0), q=jnp.float32(0), h=jnp.float32(0))
    reward = reward._replace(**{k: jnp.float32(v) for k, v in REWARDS[reward_name].items()})
    x_t, t, beta = points(name, reward, per_time)
    return reward, x_t, t, beta, exact_tilt(name, reward, x_t, t, beta, chunks)


def relative(square, bias, size):
    """rms and bias `[β, t]`, from the per-point answers of `errors`."""
    square, bias, size = (np.asarray(v).reshape(len(BETAS), len(TIMES), -1).mean(-1) for v in (square, bias, size))
    return np.sqrt(square / size), np.sqrt(np.maximum(bias, 0) / size)


def measure(name, reward_name, settings, draws, per_time, chunks):
    """{setting: (rms [β, t], bias [β, t])} with the exact denoiser."""
    given = problem(name, reward_name, per_time, chunks)
    exact = lambda setting: Estimate(*setting, max_shift=None, remat=False)
    return {s: relative(*errors(exact_denoiser(name), exact(s), draws, *given)) for s in settings}


def cost(setting):
    forwards, backwards = ESTIMATORS[setting[0]].evaluations(*setting[1:])
    return forwards + 2 * backwards


def label(setting):
    name, K, N = setting
    chain = "" if name in ("shifted", "implicit") or (name, K) == ("conjugate", 1) else f" K={K}"
    return f"`{name}`{chain}" + (f" N={N}" if ESTIMATORS[name].stochastic(K) else "")


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def report(measured, settings):
    """The three tables, as markdown."""
    pair = lambda r: f"{r[0].mean():.2f} / {r[1].mean():.2f}"
    parts = []
    for name in REFERENCES:
        rewards = [r for n, r in measured if n == name]
        rows = [[label(s), str(cost(s))] + [pair(measured[name, r][s]) for r in rewards] for s in settings]
        parts += [f"### `{name}`: rms / bias by reward, mean over t and β", table(["estimator", "cost"] + rewards, rows)]
    r = measured["plane", "c=.18"]
    rows = [
        [label(s), str(cost(s))] + [f"{r[s][0][b].mean():.2f} / {r[s][1][b].mean():.2f}" for b in range(len(BETAS))]
        for s in settings
    ]
    parts += [
        "### `plane`, c=.18: rms / bias by β, mean over t",
        table(["estimator", "cost"] + [f"β={b:g}" for b in BETAS], rows),
    ]
    for name, reward in (("plane", "c=.18"), ("space16", "ridge"), ("space16", "tanh")):
        r = measured[name, reward]
        b4, b1 = BETAS.index(4.0), BETAS.index(1.0)
        rows = [
            [label(s), str(cost(s))] + [f"{r[s][0][b4, i]:.2f} / {r[s][0][b1, i]:.2f}" for i in range(len(TIMES))]
            for s in settings
        ]
        parts += [
            f"### `{name}`, {reward}: rms by t, β=4 / β=1",
            table(["estimator", "cost"] + [f"t={t:g}" for t in TIMES], rows),
        ]
    return "\n\n".join(parts)


def plot(measured, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [("plane", "c=.18"), ("space16", "ridge"), ("space16", "tanh")]
    figure, axes = plt.subplots(2, len(panels), figsize=(13, 7), layout="constrained")
    for (name, reward), top, bottom in zip(panels, *axes, strict=False):
        curves = {}
        for setting, (rms, _) in measured[name, reward].items():
            curves.setdefault(setting[0], []).append((cost(setting), rms))
        for estimator, curve in curves.items():
            (line,) = top.plot(
                [c for c, _ in curve], [max(r.mean(), 1e-3) for _, r in curve], "o-", label=estimator, markersize=4
            )
            if estimator in ("drp", "implicit", "covariance_cv", "shifted", "conjugate"):
                first = curve[0][1][BETAS.index(1.0)]
                bottom.plot(TIMES, np.maximum(first, 1e-3), "-", color=line.get_color(), label=f"{estimator}, cost {curve[0][0]}")
        top.set(title=f"{name}, {reward}", xscale="log", yscale="log", ylim=(8e-4, 30), xlabel="cost (denoiser evaluations)")
        bottom.set(yscale="log", ylim=(8e-4, 30), xlabel="t (β = 1)")
    axes[0, 0].set_ylabel("relative rms error, mean over t, β")
    axes[1, 0].set_ylabel("relative rms error")
    axes[0, 0].legend(fontsize=7)
    axes[1, 0].legend(fontsize=7)
    figure.savefig(path, dpi=90)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer settings, points and draws; writes nothing")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "docs", help="folder of the report")
    args = parser.parse_args()
    settings, rewards = (QUICK, QUICK_REWARDS) if args.quick else (SETTINGS, list(REWARDS))
    sizes = {"draws": 4, "per_time": 3, "chunks": 16} if args.quick else {"draws": 16, "per_time": 12, "chunks": 64}
    start, measured = time.time(), {}
    for name in REFERENCES:
        for reward in rewards:
            measured[name, reward] = measure(name, reward, settings, **sizes)
            print(f"{time.time() - start:5.0f} s  {name} {reward}", flush=True)
    text = report(measured, settings)
    print(text)
    if not args.quick:
        plot(measured, args.out / "estimators.png")
        page = args.out / "estimators.md"
        marker = "<!-- tables: written by benchmarks/estimators.py -->"
        prose = page.read_text().split(marker)[0] if page.exists() else ""
        page.write_text(f"{prose}{marker}\n\n{text}\n")


if __name__ == "__main__":
    main()
