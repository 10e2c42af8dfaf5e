"""Win rate against a baseline: how often one model's picture outscores the other's, same prompts and same noise."""

import dataclasses

import numpy as np

from didr_jax.types import InputError


@dataclasses.dataclass(frozen=True)
class WinRate:
    """Share of won pairs, ties counted half, and its bootstrap interval over prompts."""

    rate: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    prompts: int
    level: float

    def __str__(self) -> str:
        return (
            f"win rate {self.rate:.4f} ({self.low:.4f} to {self.high:.4f})  [ties ½; {self.wins} won, {self.ties} tied, "
            f"{self.losses} lost; {self.level:.0%} bootstrap over {self.prompts} prompts]"
        )


def win_rate(
    scores: np.ndarray,
    baseline: np.ndarray,
    *,
    tie: float = 0.0,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> WinRate:
    """Compares scores of pairs made of one prompt and one noise.

    Args:
      scores, baseline: `[prompts]`, or `[prompts, n]` with n noises for each prompt; larger is better.
      tie: pairs whose scores differ by no more are tied.
      level: of the interval, percentiles of the bootstrap.
      resamples: of the bootstrap.  Prompts are drawn, not pairs: pictures of one prompt are not independent.
      seed: of the bootstrap.

    Raises:
      InputError: shapes that differ, nothing to compare, scores that are not finite.
    """
    a, b = (np.asarray(x, np.float64) for x in (scores, baseline))
    if a.shape != b.shape or a.ndim not in (1, 2) or a.size == 0:
        raise InputError(f"win rate: scores {list(a.shape)} against {list(b.shape)}; give equal [prompts] or [prompts, n]")
    bad = np.flatnonzero(~(np.isfinite(a) & np.isfinite(b)))
    if bad.size:
        raise InputError(f"win rate: {bad.size} scores are not finite, the first in pair {bad[0]}")
    gap = a - b
    won, lost = gap > tie, gap < -tie
    points = np.where(won, 1.0, np.where(lost, 0.0, 0.5)).reshape(len(a), -1).mean(axis=1)
    rng, n = np.random.default_rng(seed), len(points)
    means = np.array([points[rng.integers(0, n, n)].mean() for _ in range(resamples)])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    wins, losses = int(won.sum()), int(lost.sum())
    return WinRate(float(points.mean()), float(low), float(high), wins, a.size - wins - losses, losses, n, level)
