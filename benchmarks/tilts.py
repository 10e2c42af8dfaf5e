"""Reward against fidelity: the laws that DI++ and every tilt of `didr_jax.tilts` tend to, at matched reward.

    python benchmarks/tilts.py [--laws 3]

No network and no sample: each law is the minimiser of its functional over densities on a grid of the plane, found by
mirror descent (log p falls by the functional's first variation) at the β whose reward is as asked.
References are skew mixtures, drawn by seed: three or four correlated Gaussians of unequal weights.  Rewards are linear,
saturating (tanh), curved in one direction, and oscillating; each is raised by three quarters of a standard deviation over the reference.

For each law: Fréchet distance to the reference, KL to it, and the share off its support, which is where the reference
has less density than on 99.9 % of its own mass.  `least KL` is no method but a bound: the law with the least KL among all
laws with this reward and DI++'s Fréchet distance or less.  Intervals are over laws, by bootstrap, of the ratio to DI++
(KL: to `global`).
"""

import argparse
import time

import checkout  # noqa: F401  (finds the packages)
import numpy as np
import scipy.fft
import scipy.linalg

from didr_jax.distances import frechet_distance

HALF, NUM = 7.0, 72  # the plane's square and its grid; the narrowest Gaussian is 1.3 cells wide
AXIS = np.linspace(-HALF, HALF, NUM, endpoint=False)
X = np.stack(np.meshgrid(AXIS, AXIS, indexing="ij"), -1)
FREQUENCY = 2 * np.pi * np.hypot(np.fft.fftfreq(NUM, AXIS[1] - AXIS[0])[:, None], np.fft.rfftfreq(NUM, AXIS[1] - AXIS[0]))
TIMES = np.linspace(0.02, 0.8, 5)  # of the cosine schedule, as configs/digits.py draws them
NOISE = np.tan(np.pi / 2 * TIMES)  # s = σ/α: x_t/α = x0 + s ε
TINY = 1e-13
STEPS, MOMENTUM = 100, 0.9
RISE = 0.75  # of the reward, in its standard deviations under the reference

# tilt, t0, anchor
METHODS = {
    "`dipp`": None,
    "`anchored`, t0=.5, a=2": ("anchored", 0.5, 2.0),
    "`local`, t0=.5": ("local", 0.5, 0.0),
    "`advantage`, t0=.35": ("advantage", 0.35, 0.0),
    "`global`": ("global", 1.0, 0.0),
}


def blurred(f, s):
    """E_ε f(x + s ε)."""
    return scipy.fft.irfft2(scipy.fft.rfft2(f) * np.exp(-0.5 * (FREQUENCY * s) ** 2), s=f.shape)


def log(p):
    return np.log(np.maximum(p, TINY))


def law_of(log_density):
    p = np.exp(log_density - log_density.max())
    return p / p.sum()


class Problem:
    """A reference, a reward in units of its standard deviation, and w(t)."""

    def __init__(self, reference, reward):
        self.p = reference
        spread = np.sqrt((reference * reward**2).sum() - (reference * reward).sum() ** 2)
        self.r = (reward - (reference * reward).sum()) / spread
        self.log_p = np.log(np.maximum(reference, 1e-40))
        self.moments = moments(reference)
        self.log_p_t = [log(blurred(reference, s)) for s in NOISE]
        falling = np.sort(reference.ravel())[::-1]
        self.edge = falling[np.searchsorted(np.cumsum(falling), 0.999)]
        # w = s² w', where DMD2's w' is 1/mean|x0 − x̂_ref|: here its mean over the reference, up to a constant
        rms = [np.sqrt(posterior_variance(reference, s)) for s in NOISE]
        self.w = NOISE**2 / rms
        self.w /= self.w.sum()

    def figures(self, q):
        divergence = np.sum(q * (log(q) - log(self.p)))
        return frechet_distance(moments(q), self.moments), divergence, q[self.p < self.edge].sum()

    def value(self, strength, s, log_p_t):
        """V_t on the grid of x_t/α, `tilts` equation (1)."""
        exponent = strength * self.r
        top = exponent[self.p > 1e-9].max()
        return log(blurred(self.p * np.exp(np.minimum(exponent - top, 0)), s)) - log_p_t + top


def moments(p):
    mean = np.einsum("ij,ijk->k", p, X)
    return mean, np.einsum("ij,ijk,ijl->kl", p, X - mean, X - mean)


def posterior_variance(p, s):
    """E‖x0 − E[x0 | x0 + sε]‖²."""
    density = np.maximum(blurred(p, s), TINY)
    means = np.stack([blurred(p * X[..., i], s) for i in range(2)], -1) / density[..., None]
    return max((p[..., None] * X**2).sum() - (density[..., None] * means**2).sum(), 1e-4)


def strength_for(problem, law):
    """`law(1/β)` at the strength at which its mean reward is RISE; None if no strength reaches it."""
    low, high = 0.0, 30.0
    if (law(high) * problem.r).sum() < RISE:
        return None
    for _ in range(25):
        middle = (low + high) / 2
        low, high = (middle, high) if (law(middle) * problem.r).sum() < RISE else (low, middle)
    return law(high)


def tilted(problem, kind, t0):
    """The laws that are known: p* and p_adv of `tilts` (2) and (5)."""
    s0 = np.tan(np.pi / 2 * t0)
    log_p_t0 = log(blurred(problem.p, s0))

    def law(strength):
        baseline = blurred(problem.value(strength, s0, log_p_t0), s0) if kind == "advantage" else 0
        return law_of(problem.log_p + strength * problem.r - baseline)

    return strength_for(problem, law)


def descended(problem, method):
    """The minimiser of DI++'s functional ∫ w KL(p_t ‖ p_ref,t) − E r/β (method None), or of `tilts` (3) or (4)."""
    kind, t0, anchor = method or ("dipp", 1.0, 0.0)
    hold = problem.w * np.where((TIMES >= t0) & (kind == "anchored"), 1 + anchor, 1)
    pull = problem.w * ((TIMES <= t0) | (kind != "local"))
    log_q = problem.log_p.copy()

    def law(strength):
        nonlocal log_q
        towards = strength * problem.r
        if method:
            levels = zip(pull, NOISE, problem.log_p_t, strict=True)
            towards = sum(w * blurred(problem.value(strength, s, log_p_t), s) for w, s, log_p_t in levels)
        speed = np.zeros_like(log_q)
        for _ in range(STEPS):
            q = law_of(log_q)
            levels = zip(hold, NOISE, problem.log_p_t, strict=True)
            force = sum(h * blurred(log(blurred(q, s)) - log_p_t, s) for h, s, log_p_t in levels) - towards
            speed = MOMENTUM * speed - force / hold.sum()
            log_q = np.maximum(log_q + speed, -90 + log_q.max())
        return law_of(log_q)

    low, high = 0.0, 0.25 * (1 + 0.3 * anchor)
    while (law(high) * problem.r).sum() < RISE:  # each begins where the last has ended
        low, high = high, 2 * high
        if high > 40:
            return None
    for _ in range(6):
        middle = (low + high) / 2
        low, high = (middle, high) if (law(middle) * problem.r).sum() < RISE else (low, middle)
    return law(high)


def least_kl(problem, distance):
    """Among all laws with the reward and this Fréchet distance or less, the one with the least KL to the reference."""
    mean_r, cov_r = problem.moments
    root = np.real(scipy.linalg.sqrtm(cov_r))

    def law(price):
        log_q, rate = problem.log_p.copy(), 1 / (1 + 4 * price * np.linalg.eigvalsh(cov_r).max())
        q, strength = problem.p, 0.3
        for _ in range(80):
            mean, cov = moments(q)
            to_reference = root @ np.linalg.pinv(np.real(scipy.linalg.sqrtm(root @ cov @ root))) @ root  # of optimal transport
            x = X - mean
            slope = 2 * (X - mean_r) @ (mean - mean_r) + np.einsum("...i,ij,...j", x, np.eye(2) - to_reference, x)
            base = log_q + rate * (problem.log_p - price * slope - log_q)
            for _ in range(5):  # Newton's steps for the strength
                q = law_of(base + rate * strength * problem.r)
                mean_reward = (q * problem.r).sum()
                spread = (q * problem.r**2).sum() - mean_reward**2
                strength += np.clip((RISE - mean_reward) / (rate * spread), -2 / rate, 2 / rate)
            log_q = np.log(np.maximum(q, 1e-40))
        return q

    low, high = 0.0, 1.0
    while frechet_distance(moments(law(high)), problem.moments) > distance and high < 60:
        low, high = high, 3 * high
    for _ in range(5):
        middle = (low + high) / 2
        low, high = (low, middle) if frechet_distance(moments(law(middle)), problem.moments) <= distance else (middle, high)
    return law(high)


def reference(seed):
    """A skew mixture: correlated Gaussians apart from one another, of unequal weights."""
    g = np.random.default_rng(seed)
    k = int(g.integers(3, 5))
    weights, means = g.dirichlet(np.full(k, 3.0)), np.zeros((k, 2))
    while np.min(np.linalg.norm(means[:, None] - means, axis=-1) + 9 * np.eye(k)) < 1.6 or np.abs(means).max() > 3.5:
        means = 1.8 * g.normal(size=(k, 2))
    p = np.zeros((NUM, NUM))
    for weight, mean in zip(weights, means, strict=True):
        turn, long, short = g.uniform(0, np.pi), g.uniform(0.5, 0.8), g.uniform(0.25, 0.35)
        along = (X - mean) @ np.array([np.cos(turn), np.sin(turn)])
        across = (X - mean) @ np.array([-np.sin(turn), np.cos(turn)])
        p += weight * np.exp(-0.5 * (along / long) ** 2 - 0.5 * (across / short) ** 2) / (long * short)
    return p / p.sum()


def rewards(seed):
    g = np.random.default_rng(1000 + seed)
    u = g.normal(size=2)
    u /= np.linalg.norm(u)
    along, across = X @ u, X @ np.array([-u[1], u[0]])
    return {
        "linear": along,
        "tanh": 2 * np.tanh(0.9 * along) + np.tanh(across - 0.5),
        "ridge": along - 0.3 * (along - g.normal()) ** 2,
        "oscillating": np.sin(2.5 * along) + 0.5 * np.sin(2 * across),
    }


def solve(problem, method):
    if method and method[0] in ("global", "advantage"):
        return tilted(problem, *method[:2])
    return descended(problem, method)


def interval(ratios):
    """Median and 95 % bootstrap interval of it."""
    g, ratios = np.random.default_rng(0), np.asarray(ratios)
    medians = np.median(ratios[g.integers(0, len(ratios), (2000, len(ratios)))], axis=1)
    return f"{np.median(ratios):.2f} [{np.quantile(medians, 0.025):.2f}, {np.quantile(medians, 0.975):.2f}]"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--laws", type=int, default=3, help="how many references; each meets four rewards")
    start, rows = time.time(), []
    for seed in range(parser.parse_args().laws):
        p = reference(seed)
        for name, reward in rewards(seed).items():
            problem = Problem(p, reward)
            found = {label: solve(problem, method) for label, method in METHODS.items()}
            row = {label: problem.figures(q) for label, q in found.items() if q is not None}
            row["least KL"] = problem.figures(least_kl(problem, row["`dipp`"][0]))
            rows.append((f"{seed} {name}", row))
            print(f"{time.time() - start:5.0f} s  {seed} {name}: ", end="")
            print("; ".join(f"{label} {f:.3f} {d:.3f} {o:.4f}" for label, (f, d, o) in row.items()), flush=True)
    print("\n| law and reward | " + " | ".join(METHODS) + " | least KL |\n" + "|---" * (len(METHODS) + 2) + "|")
    for name, row in rows:
        cell = lambda figures: "–" if figures is None else "{:.3f} / {:.2f} / {:.2f}".format(*figures[:2], 100 * figures[2])
        print(f"| {name} | " + " | ".join(cell(row.get(label)) for label in (*METHODS, "least KL")) + " |")
    print(
        "\n| | reached | Fréchet, of DI++'s | off the support, of DI++'s | KL, of DI++'s | KL, of `global`'s |\n"
        + "|---" * 6
        + "|"
    )
    for label in (*METHODS, "least KL"):
        both = [(row[label], row["`dipp`"], row["`global`"]) for _, row in rows if label in row]
        pairs = ((0, 1), (2, 1), (1, 1), (1, 2))  # (figure, in units of whose)
        cells = [interval([each[0][i] / max(each[other][i], 1e-9) for each in both]) for i, other in pairs]
        print(f"| {label} | {len(both)} of {len(rows)} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
