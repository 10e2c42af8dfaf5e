"""Is the reward being hacked?  A figure that training does not see falls while the trained reward rises.

An evaluator says which figure is the trained reward r and which others h are to be *kept*: rewards that are held out,
diversity, a judge's accuracy; and by how much each may fall, its tolerance.  Of the evaluations 0 … k so far let p < k − 1
be the one at which h was best.  The alarm is raised for h if there are at least four evaluations from p on and

    h_{k−1}, h_k  <  h_p − max(tolerance, 6 noise(h))       it has fallen, at two evaluations in a row     (1)
    r_{k−1}, r_k  >  r_p + 6 noise(r)                       while the reward rose                          (2)
    τ_b(r_p … r_k, h_p … h_k)  ≤  −½                        and the two moved against each other           (3)

    noise² = (1 + 3/k)² mean(turn²)/TURNING                                                             (4)

where a turn is the smaller of two steps in a row that go opposite ways, and 0 of two that go the same way: on a level course
with independent noise (4) is its variance, with a margin while there are few evaluations, and on a steady one nothing.  All is
a function of the evaluations alone: a resumed run raises the alarm where the whole one would have.

How often it is raised in vain: of runs of forty evaluations with a rising reward and a figure that is nothing but independent
noise, in 1 to 7 of a hundred if the tolerance is zero and in fewer than 1 if it is four standard deviations; a figure that
wanders raises it where it wanders further than its tolerance (`tests/training/test_hacking.py`).  What (1) cannot tell is whether a fall is
the tilt that was asked for: a tolerance is a judgement.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from didr_jax.rankings import kendall_tau

HACKING = ("warn", "stop", "off")  # watch.hacking
MARK = "hacking/"  # of the log's figures: 1 where the alarm is up for a kept figure, 0 where not
UNHARMED = "unharmed"  # the reward, of evaluations at which nothing that is kept has fallen; what `watch.hacking=stop` keeps by
LEAST = 4  # evaluations, the best one among them
TOGETHER = -0.5  # equation (3)
NOISES = 6  # equations (1) and (2)
TURNING = 0.783  # mean(turn²) of independent Gaussian noise of variance 1


class Tolerance(NamedTuple):
    """How far a figure may fall below its best: `fall` in its own unit, and `share` of the best's size."""

    fall: float = 0.0
    share: float = 0.0

    def below(self, best: float) -> float:
        return self.fall + self.share * abs(best)


@dataclasses.dataclass(frozen=True)
class Watched:
    """Names of an evaluator's figures: the trained `reward`, and what is to be `kept`, by how much each may fall."""

    reward: str
    kept: Mapping[str, Tolerance]


class Fallen(NamedTuple):
    """A kept figure and the reward: at the kept one's best, and now."""

    figure: str
    best: float
    now: float
    reward_then: float
    reward_now: float


def noise(values: Sequence[float]) -> float:
    """Of `values [n]` on a course without turns, equation (4); 0 with fewer than three."""
    if len(values) < 3:
        return 0.0
    step = np.diff(np.asarray(values, float))
    turns = np.where(step[1:] * step[:-1] < 0, np.minimum(np.abs(step[1:]), np.abs(step[:-1])), 0)
    return float((1 + 3 / len(step)) * np.sqrt(np.mean(turns**2) / TURNING))


def fallen(series: Sequence[Mapping[str, float]], watched: Watched) -> list[Fallen]:
    """The kept figures for which the alarm is up after the last evaluation of `series`, equations (1) to (3).

    Args:
      series: figures by name, of each evaluation in turn.  Those where one of the two is missing or not finite do not count.
      watched: what is looked at.
    """
    found = []
    for name, tolerance in watched.kept.items():
        pairs = [(figures.get(watched.reward, np.nan), figures.get(name, np.nan)) for figures in series]
        known = np.asarray([pair for pair in pairs if np.isfinite(pair).all()], float)
        if len(known) < LEAST:
            continue
        r, h = known.T
        p = int(np.argmax(h[:-2]))
        least = h[p] - max(tolerance.below(h[p]), NOISES * noise(h))
        down, up = h[-2:].max() < least, r[-2:].min() > r[p] + NOISES * noise(r)
        if len(h) - p >= LEAST and down and up and kendall_tau(r[p:], h[p:]) <= TOGETHER:
            found.append(Fallen(name, h[p], h[-1], r[p], r[-1]))
    return found


def unharmed(series: Sequence[Mapping[str, float]], watched: Watched) -> float | None:
    """The last evaluation's reward; None if something that is kept is further below its best than tolerated."""
    for name, tolerance in watched.kept.items():
        h = np.asarray([figures.get(name, np.nan) for figures in series], float)
        best = np.nanmax(h) if np.isfinite(h).any() else np.nan
        if h[-1] < best - tolerance.below(best):
            return None
    return series[-1].get(watched.reward)


class HackingWatch:
    """The alarm of a stage, evaluation by evaluation.

    Args:
      watched: of each evaluator that has any.
      past: `{step: figures}` of earlier evaluations, of a run that goes on.

    Attributes:
      best_step: of the evaluation, after some training, with the largest reward while nothing was harmed; None: there is none.
    """

    def __init__(self, watched: Iterable[Watched], past: Mapping[int, Mapping[str, float]] | None = None):
        self._watched = list(watched)
        self._series: list[dict[str, float]] = []
        self.best_step: int | None = None
        self._best = -np.inf
        for step, figures in sorted((past or {}).items()):
            self.look(step, figures)

    def look(self, step: int, figures: Mapping[str, float]) -> tuple[dict[str, float], list[Fallen]]:
        """What the log is to say of the evaluation after `step` steps, and for which figures the alarm is up."""
        self._series.append(dict(figures))
        marks: dict[str, float] = {}
        raised: list[Fallen] = []
        for watched in self._watched:
            if watched.reward not in figures:
                continue
            series = [each for each in self._series if watched.reward in each]
            up = fallen(series, watched)
            raised += up
            names = {each.figure for each in up}
            marks |= {MARK + name: float(name in names) for name in watched.kept if name in figures}
            well = unharmed(series, watched)
            if well is None:
                continue
            marks[MARK + UNHARMED] = well
            if step and well > self._best:
                self._best, self.best_step = well, step
        return marks, raised


def in_words(raised: Sequence[Fallen]) -> str:
    """One line."""
    one = raised[0]
    falls = ", ".join(f"{each.figure} fell from {each.best:.4g} to {each.now:.4g}" for each in raised)
    return f"the reward may be hacked: {falls}, while the trained reward rose from {one.reward_then:.4g} to {one.reward_now:.4g}"
