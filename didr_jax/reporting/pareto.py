"""Reward against what it costs: several runs in one plane, with intervals, and which of them no other one beats."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from didr_jax.reporting.contents import Contents
from didr_jax.reporting.curves import PAGE_INK, dress, inline_svg
from didr_jax.reporting.verdict import standard_errors
from didr_jax.training.evaluation import PREFIX

REWARD = "reward"
# What a distance from what was to be kept is called, by the beginning of its name; less is better.
COSTS = ("kl", "frechet", "fid", "to_", "energy_to_", "cmmd")
NORMAL = 1.96  # standard errors of a 95 % interval
MARKERS = "osD^vP*X"


class Point(NamedTuple):
    """A run, or several that differ in their seed alone.

    Attributes:
      label: of the run.
      seeds: how many runs it is.
      cost, reward: (value, low, high); low and high are the value where no interval is known.
      course: `[n, 2]`, cost and reward of the evaluations while it trained.
      start: (cost, reward) that it began with; None: not known.
    """

    label: str
    seeds: int
    cost: tuple[float, float, float]
    reward: tuple[float, float, float]
    course: np.ndarray
    start: tuple[float, float] | None


def costs_of(runs: Sequence[Contents]) -> list[str]:
    """Figures of the last rows of two runs or more, or of the only one, that a reward can be held against."""
    found: dict[str, int] = {}
    for run in runs:
        for name in last_row(run):
            found[name] = found.get(name, 0) + 1
    least = min(2, len(runs))
    return [name for name, count in found.items() if name.startswith(COSTS) and count >= least]


def last_row(run: Contents) -> dict[str, float]:
    """What the run came to: its row after, or, while it is not finished, its last evaluations."""
    if run.rows is not None:
        return run.summary[run.rows.after]
    names = dict.fromkeys(name for record in run.records for name in record if name.startswith(PREFIX))
    return {name.removeprefix(PREFIX): run.figure(name)[-1][1] for name in names}


def point_of(label: str, runs: Sequence[Contents], cost: str) -> Point | None:
    """Of runs that differ in their seed alone; None if one of them lacks the cost or the reward.

    The interval of one run's reward is 95 % over its samples, where the pairs tell; that of several runs is their range.
    """
    rows = [last_row(run) for run in runs]
    if not all(np.isfinite(row.get(name, np.nan)) for row in rows for name in (cost, REWARD)):
        return None
    values = {name: np.array([row[name] for row in rows]) for name in (cost, REWARD)}
    spread = {name: (float(each.mean()), float(each.min()), float(each.max())) for name, each in values.items()}
    error = standard_errors(runs[0].pairs)[1]
    if len(runs) == 1 and np.isfinite(error):
        middle = spread[REWARD][0]
        spread[REWARD] = middle, middle - NORMAL * error, middle + NORMAL * error
    before = [run.summary[run.rows.before] for run in runs if run.rows is not None]
    known = [(row[cost], row[REWARD]) for row in before if cost in row and REWARD in row]
    start = tuple(np.mean(known, axis=0).tolist()) if known else None
    return Point(label, len(runs), spread[cost], spread[REWARD], _course(runs[0], cost), start)


def _course(run: Contents, cost: str) -> np.ndarray:
    """`[n, 2]` of the steps at which both were judged."""
    there = [record for record in run.records if PREFIX + cost in record and PREFIX + REWARD in record]
    return np.array([(record[PREFIX + cost], record[PREFIX + REWARD]) for record in there]).reshape(-1, 2)


def front(points: Sequence[Point]) -> list[int]:
    """Places of those that no other one beats: none has at most its cost and at least its reward, and one of both better."""

    def beaten(a: Point) -> bool:
        return any(
            b.cost[0] <= a.cost[0] and b.reward[0] >= a.reward[0] and (b.cost[0], b.reward[0]) != (a.cost[0], a.reward[0])
            for b in points
        )

    return [i for i, point in enumerate(points) if not beaten(point)]


def pareto(points: Sequence[Point], cost: str, name: str) -> str:
    """Inline SVG of the plane: a marker with its intervals a point, where it came from, and the front as steps.

    Args:
      points: two or more make sense.
      cost: what the first axis is called.
      name: a prefix for names in the SVG that no other drawing of the page has.
    """
    figure, ink = Figure(figsize=(5.6, 4.2)), PAGE_INK
    axis = figure.subplots()
    best = front(points)
    for i, point in enumerate(points):
        colour, marker = ink.lines[i % len(ink.lines)], MARKERS[i % len(MARKERS)]
        if len(point.course) > 1:
            axis.plot(*point.course.T, color=colour, lw=0.8, alpha=0.4)
        if point.start is not None:
            axis.plot(*point.start, marker=marker, color=colour, ms=6, mfc="none", ls="")
        (cost_at, *_), (reward_at, *_) = point.cost, point.reward
        bars = _bar(point.cost), _bar(point.reward)
        axis.errorbar(
            cost_at, reward_at, xerr=bars[0], yerr=bars[1], fmt=marker, color=colour, ms=7, capsize=3, lw=1.4, label=_told(point)
        )  # fmt: skip
    steps = sorted((points[i].cost[0], points[i].reward[0]) for i in best)
    axis.step(*zip(*steps, strict=True), where="post", color=ink.text, lw=0.9, ls=":")
    dress(axis, f"{cost}  (less is better)", "reward")
    axis.grid(color=ink.grid, lw=0.6)
    axis.set_axisbelow(True)
    axis.legend(fontsize=7, frameon=False, labelcolor=ink.text)
    return inline_svg(figure, name, in_words(points, cost))


def _bar(each: tuple[float, float, float]) -> np.ndarray | None:
    value, low, high = each
    return np.array([[value - low], [high - value]]) if high > low else None


def _told(point: Point) -> str:
    return point.label + (f" ({point.seeds} seeds)" if point.seeds > 1 else "")


def in_words(points: Sequence[Point], cost: str) -> str:
    """What the drawing shows."""
    told = (f"{_told(point)}: {point.reward[0]:.4g} at {point.cost[0]:.4g}" for point in points)
    best = ", ".join(points[i].label for i in front(points))
    return f"Reward against {cost}: {'; '.join(told)}. Beaten by none: {best}"


def together(runs: Mapping[str, Contents]) -> dict[str, list[str]]:
    """Labels of runs that differ in their seed alone, under the first one's label."""
    groups: dict[str, list[str]] = {}
    for label, run in runs.items():
        same = lambda other, run=run: _unseeded(runs[other]) == _unseeded(run)
        groups.setdefault(next(filter(same, groups), label), []).append(label)
    return groups


def _unseeded(run: Contents) -> dict:
    return {key: value for key, value in run.config.items() if key not in ("seed", "log", "mesh", "distributed", "checkpoint")}
