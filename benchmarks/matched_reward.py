"""Who is better at the same reward: trainings of several objectives, strengths and seeds, with bootstrap intervals.

What a figure is, and of what, a `Study` says: `benchmarks/digits_frontier.py`, `benchmarks/sprouts_frontier.py`.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import matplotlib.pyplot as plt
import numpy as np

from didr_jax.whole_files import whole_file, write_json

LEVELS = 5  # values of a reward at which two objectives are compared
INITIAL, WITHOUT = "initial", "dmd2"  # what training begins with; the objective that all but `refl` are without a reward
AGAINST = ("dipp", "distar", "refl")  # what every `didr` is compared with

Figures = Callable[[np.ndarray | None], dict[str, float]]  # of drawn pictures: those of the rows `which`; None: of all


Columns = TypeVar("Columns", bound=tuple)


def rows_of(columns: Columns, which: np.ndarray) -> Columns:
    """The rows `which` of a named tuple of arrays."""
    return type(columns)(*(column[which] for column in columns))


class Study(NamedTuple):
    """What is compared.

    Attributes:
      better: of each column whether more is better (1) or less (-1).
      matched: columns that are the same where two objectives are compared: one comparison for each.
      plotted: six columns for the picture, over the first of `matched`.
    """

    better: Mapping[str, int]
    matched: tuple[str, ...]
    plotted: tuple[str, ...]


class Trained(NamedTuple):
    """A run: its objective (and what else of it differs), its strength, seed and figures."""

    label: str
    beta: float
    steps: int
    seed: int
    figures: Figures


def curve(points: Sequence[dict[str, float]], column: str, by: str, levels: np.ndarray) -> np.ndarray:
    """`column` where `by` is at `levels`, on the line through the points in the order of `by`; nan outside."""
    x, y = np.transpose(sorted((point[by], point[column]) for point in points))
    return np.interp(levels, x, y, left=np.nan, right=np.nan)


def compared(
    a: str, b: str, by: str, samples: Sequence[Mapping[str, list[dict]]], better: Mapping[str, int]
) -> dict[str, tuple[float, float, float]]:
    """Of every column a less b, in the direction that is better, at values of `by` that both reach: mean, and its 95 % interval.

    Args:
      a, b: objectives.
      by: a column.
      samples: of every bootstrap sample, and first of the runs themselves, the points of each objective.
      better: see `Study`.
    """
    low = max(min(point[by] for point in samples[0][name]) for name in (a, b))
    high = min(max(point[by] for point in samples[0][name]) for name in (a, b))
    levels, found = np.linspace(low, high, LEVELS + 1)[1:], {}
    for column, sign in better.items():
        gain = [sign * np.nanmean(curve(s[a], column, by, levels) - curve(s[b], column, by, levels)) for s in samples]
        found[column] = (gain[0], *np.nanquantile(gain[1:], (0.025, 0.975)))
    return found


def resampled(
    runs: Sequence[Trained], starts: Mapping[int, Figures], rows: int, rng: np.random.Generator | None
) -> dict[str, list[dict]]:
    """Points of each objective from drawn rows and seeds, each the mean over the seeds; of all of them without `rng`.

    Args:
      runs: trainings.
      starts: of each seed, what the runs began with.
      rows: how many there are.
      rng: chooses.
    """
    which = None if rng is None else rng.integers(rows, size=rows)
    seeds = sorted(starts)
    chosen_seeds = seeds if rng is None else [int(seed) for seed in rng.choice(seeds, len(seeds))]
    often = {seed: chosen_seeds.count(seed) for seed in seeds}
    first = _mean([starts[seed](which) for seed in seeds], list(often.values()))
    groups: dict[tuple, list[Trained]] = {}
    for run in runs:
        groups.setdefault((run.label, run.beta, run.steps), []).append(run)
    found = {}
    for point, members in groups.items():
        chosen = [run for run in members if often[run.seed]] or members  # a point whose seeds were not drawn is what it is
        found[point] = _mean([run.figures(which) for run in chosen], [often[run.seed] or 1 for run in chosen])
    without = next((figures for (label, _, _), figures in found.items() if label == WITHOUT), first)
    points = {INITIAL: [first]}
    for (label, _, _), figures in found.items():
        points.setdefault(label, [first if label in ("refl", WITHOUT) else without]).append(figures)
    return points


def _mean(figures: Sequence[dict[str, float]], weights: Sequence[int]) -> dict[str, float]:
    return {name: float(np.average([each[name] for each in figures], weights=weights)) for name in figures[0]}


def table(rows: Mapping[str, tuple[dict, dict]]) -> str:
    """Rows of (figures, their half intervals or {})."""
    names = list(next(iter(rows.values()))[0])
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "--:|" * len(names)]
    for label, (figures, errors) in rows.items():
        cells = [f"{value:.3g}" + (f" ± {errors[name]:.2g}" if errors else "") for name, value in figures.items()]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def right_edge(kept: Sequence[float], values: Sequence[float]) -> float:
    """Of an axis that shows those of `values` that are not far beyond all of `kept`: collapsed runs leave the picture."""
    low, top = min(values), max(kept)
    return top + 0.3 * (top - low) + 0.1


def picture(path: str, points: Mapping[str, list[dict]], reference: dict[str, float], study: Study) -> None:
    plot, axes = plt.subplots(2, 3, figsize=(13, 7), squeeze=False)
    by = study.matched[0]
    found = {label: [point[by] for point in line] for label, line in points.items()}
    right = right_edge(
        [x for label, line in found.items() if label not in AGAINST for x in line], [x for line in found.values() for x in line]
    )
    for axis, column in zip(axes.flat, study.plotted, strict=True):
        for label, line in points.items():
            x, y = np.transpose(sorted((point[by], point[column]) for point in line))
            axis.plot(x, y, "o-", ms=4, label=label)
        inside = [point[column] for line in points.values() for point in line if point[by] <= right]
        edge = 0.1 * (max(inside) - min(inside))
        axis.set_xlim(right=right)
        axis.set_ylim(min(inside) - edge, max(inside) + edge)
        axis.axhline(reference[column], color="gray", lw=1, ls=":", label="reference")
        axis.set_xlabel(by)
        axis.set_title(column)
    axes[0][0].legend(fontsize=7)
    plot.tight_layout()
    plot.savefig(path, dpi=100)
    plt.close(plot)


def report(
    out: str, runs: Sequence[Trained], reference: dict[str, float], samples: Sequence[dict[str, list[dict]]], study: Study
) -> None:
    """Prints and writes the table of all points, who is better where, and the picture."""
    names = dict.fromkeys((run.label, run.beta, run.steps) for run in runs)
    rows = {"reference": (reference, {}), INITIAL: (samples[0][INITIAL][0], {})}
    for label in samples[0]:
        for i, (_, beta, steps) in enumerate(name for name in names if name[0] == label):
            point = samples[0][label][i + 1]
            half = {k: 1.96 * float(np.nanstd([sample[label][i + 1][k] for sample in samples[1:]])) for k in point}
            seeds = sum((run.label, run.beta, run.steps) == (label, beta, steps) for run in runs)
            rows[f"{label}, β = {beta:g}, {steps} steps, {seeds} seeds"] = point, half
    ours, others = ([label for label in samples[0] if of(label)] for of in (lambda x: x.startswith("didr"), AGAINST.__contains__))
    matched = {
        by: {f"{a} against {b}": compared(a, b, by, samples, study.better) for a in ours for b in others} for by in study.matched
    }
    lines = [table(rows)]
    for by, pairs in matched.items():
        lines += [
            "",
            f"| at the same `{by}`, better by | " + " | ".join(study.better) + " |",
            "|---|" + "--:|" * len(study.better),
        ]
        for name, columns in pairs.items():
            cells = [f"{mean:.3g} ({low:.3g}, {high:.3g})" for mean, low, high in columns.values()]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    text = "\n".join(lines) + "\n"
    print(text)
    with whole_file(os.path.join(out, "frontier.md")) as file:
        file.write(text)
    write_json(os.path.join(out, "frontier.json"), {"rows": {k: v[0] for k, v in rows.items()}, "matched": matched})
    picture(os.path.join(out, "frontier.png"), samples[0], reference, study)
