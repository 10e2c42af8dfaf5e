"""Drawn pictures of several trainings against the reference's: figures, and who is better at the same reward.

`benchmarks/sprouts_frontier.py` says what the columns are and draws the pictures.
"""

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np

from didr_jax.distances import frechet_distance, moments
from didr_jax.recipes.sprouts import judging, parts
from didr_jax.whole_files import whole_file, write_json

LEVELS = 5  # values of a reward at which two objectives are compared
MATCHED = ("reward", "cheerful")  # what is the same where they are: the reward, and the share that it is about
INITIAL, WITHOUT = "initial", "dmd2"  # what training begins with; the objective that all but `refl` are without a reward
AGAINST = ("dipp", "distar", "refl")  # what every `didr` is compared with
BETTER = {  # column -> 1: more is better, -1: less is
    "named": 1, "named_new": 1, "kl_others": -1, "kl_smiles": -1, "to_data": -1, "to_reference": -1, "odd": -1, "spread": 1, "clipscore": 1,
}  # fmt: skip


class Drawn(NamedTuple):
    """Of each caption `[n]` its pictures: `parts [n, draws, 7]`, `features [n, draws, d]`, `reward [n, draws]`, `clipscore`."""

    parts: np.ndarray
    features: np.ndarray
    reward: np.ndarray
    clipscore: np.ndarray

    def rows(self, which: np.ndarray) -> "Drawn":
        return Drawn(*(column[which] for column in self))


class Measures:
    """Figures of drawn pictures against the reference's; all for a choice of captions."""

    def __init__(self, reference: Drawn, prompts: Sequence[str]):
        self._prompts = np.array(prompts)
        self._data = judging.read_judge(judging.SHIPPED / "judge")[1]
        features = _flat(reference.features)
        self._reference = judging.grouped(features, parts.cheerful(_flat(reference.parts)))
        self._roots = {kind: np.linalg.inv(np.linalg.cholesky(cov)) for kind, (_, cov) in self._reference.items()}
        self._edge = np.quantile(self._far(features), 0.99)
        self._spread = _pairs(reference.features)

    def _far(self, features: np.ndarray) -> np.ndarray:
        each = [np.sum(((features - self._reference[kind][0]) @ root.T) ** 2, -1) for kind, root in self._roots.items()]
        return np.minimum(*each)

    def __call__(self, drawn: Drawn, which: np.ndarray | None = None) -> dict[str, float]:
        which = np.arange(len(self._prompts)) if which is None else which
        drawn, prompts = drawn.rows(which), np.repeat(self._prompts[which], drawn.parts.shape[1])
        features, found = _flat(drawn.features), _flat(drawn.parts)
        said = judging.verdict(found, features, list(prompts), self._data)
        law, share = moments(features), float(np.mean(parts.cheerful(found)))
        return {
            "reward": float(np.mean(drawn.reward)),
            "cheerful": said["cheerful"],
            **{name: said[name] for name in ("named", "named_new", "kl_others", "kl_smiles")},
            "to_data": said["frechet"],
            "to_reference": frechet_distance(law, judging.mixed(self._reference, share)),
            "odd": float(np.mean(self._far(features) > self._edge)),
            "spread": _pairs(drawn.features) / self._spread,
            "clipscore": float(np.mean(drawn.clipscore)),
        }


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, *x.shape[2:])


def _pairs(features: np.ndarray) -> float:
    """Mean squared distance of two different pictures of a caption, `features [n, draws, d]`."""
    return 2 * float(np.mean(np.sum(np.var(features, axis=1, ddof=1), -1)))


# -------------------------------------------------------------------------------------- at matched reward


class Trained(NamedTuple):
    """A run: its objective (and estimator, if not the config's), its strength, seed and pictures."""

    label: str
    beta: float
    steps: int
    seed: int
    drawn: Drawn


def curve(points: Sequence[dict[str, float]], column: str, by: str, levels: np.ndarray) -> np.ndarray:
    """`column` where `by` is at `levels`, on the line through the points in the order of `by`; nan outside."""
    x, y = np.transpose(sorted((point[by], point[column]) for point in points))
    return np.interp(levels, x, y, left=np.nan, right=np.nan)


def compared(a: str, b: str, by: str, samples: Sequence[Mapping[str, list[dict]]]) -> dict[str, tuple[float, float, float]]:
    """Of every column a less b, in the direction that is better, at values of `by` that both reach: mean, and its 95 % interval.

    Args:
      samples: of every bootstrap sample, and first of the runs themselves, the points of each objective.
    """
    low = max(min(point[by] for point in samples[0][name]) for name in (a, b))
    high = min(max(point[by] for point in samples[0][name]) for name in (a, b))
    levels, found = np.linspace(low, high, LEVELS + 1)[1:], {}
    for column, sign in BETTER.items():
        gain = [sign * np.nanmean(curve(s[a], column, by, levels) - curve(s[b], column, by, levels)) for s in samples]
        found[column] = (gain[0], *np.nanquantile(gain[1:], (0.025, 0.975)))
    return found


def resampled(runs: Sequence[Trained], start: Drawn, measure: Measures, rng: np.random.Generator | None) -> dict[str, list[dict]]:
    """Points of each objective from drawn captions and seeds, each the mean over the seeds; of all of them without `rng`."""
    n, seeds = len(start.reward), sorted({run.seed for run in runs})
    which = np.arange(n) if rng is None else rng.integers(n, size=n)
    chosen_seeds = seeds if rng is None else list(rng.choice(seeds, len(seeds)))
    often = {seed: chosen_seeds.count(seed) for seed in seeds}
    groups: dict[tuple, list[tuple[Trained, int]]] = {}
    for run in runs:
        groups.setdefault((run.label, run.beta, run.steps), []).append((run, often.get(run.seed, 0)))
    first, found = measure(start, which), {}
    for point, members in groups.items():
        chosen = [(run, times) for run, times in members if times] or [(run, 1) for run, _ in members]
        figures = [measure(run.drawn, which) for run, _ in chosen]
        weights = [times for _, times in chosen]
        found[point] = {name: float(np.average([each[name] for each in figures], weights=weights)) for name in first}
    without = next((figures for (label, _, _), figures in found.items() if label == WITHOUT), first)
    points = {INITIAL: [first]}
    for (label, _, _), figures in found.items():
        points.setdefault(label, [first if label in ("refl", WITHOUT) else without]).append(figures)
    return points


def table(rows: Mapping[str, tuple[dict, dict]]) -> str:
    """Rows of (figures, their half intervals or {})."""
    names = list(next(iter(rows.values()))[0])
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "--:|" * len(names)]
    for label, (figures, errors) in rows.items():
        cells = [f"{value:.3g}" + (f" ± {errors[name]:.2g}" if errors else "") for name, value in figures.items()]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(path: str, points: Mapping[str, list[dict]], reference: dict[str, float]) -> None:
    plot, axes = plt.subplots(2, 3, figsize=(13, 7), squeeze=False)
    for axis, column in zip(axes.flat, ("to_reference", "to_data", "named", "kl_smiles", "odd", "spread"), strict=True):
        for label, line in points.items():
            x, y = np.transpose(sorted((point["reward"], point[column]) for point in line))
            axis.plot(x, y, "o-", ms=4, label=label)
        axis.axhline(reference[column], color="gray", lw=1, ls=":", label="reference")
        axis.set_xlabel("reward")
        axis.set_title(column)
    axes[0][0].legend(fontsize=7)
    plot.tight_layout()
    plot.savefig(path, dpi=100)
    plt.close(plot)


def report(out: str, runs: Sequence[Trained], reference: dict[str, float], samples: Sequence[dict[str, list[dict]]]) -> None:
    names = dict.fromkeys((run.label, run.beta, run.steps) for run in runs)
    rows = {"reference": (reference, {}), INITIAL: (samples[0][INITIAL][0], {})}
    for label in samples[0]:
        for i, (_, beta, steps) in enumerate(name for name in names if name[0] == label):
            point = samples[0][label][i + 1]
            half = {k: 1.96 * float(np.nanstd([sample[label][i + 1][k] for sample in samples[1:]])) for k in point}
            seeds = sum((run.label, run.beta, run.steps) == (label, beta, steps) for run in runs)
            rows[f"{label}, β = {beta:g}, {steps} steps, {seeds} seeds"] = point, half
    ours, others = ([label for label in samples[0] if of(label)] for of in (lambda x: x.startswith("didr"), AGAINST.__contains__))
    matched = {by: {f"{a} against {b}": compared(a, b, by, samples) for a in ours for b in others} for by in MATCHED}
    lines = [table(rows)]
    for by, pairs in matched.items():
        lines += ["", f"| at the same `{by}`, better by | " + " | ".join(BETTER) + " |", "|---|" + "--:|" * len(BETTER)]
        for name, columns in pairs.items():
            cells = [f"{mean:.3g} ({low:.3g}, {high:.3g})" for mean, low, high in columns.values()]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    text = "\n".join(lines) + "\n"
    print(text)
    with whole_file(os.path.join(out, "frontier.md")) as file:
        file.write(text)
    write_json(os.path.join(out, "frontier.json"), {"rows": {k: v[0] for k, v in rows.items()}, "matched": matched})
    picture(os.path.join(out, "frontier.png"), samples[0], reference)
