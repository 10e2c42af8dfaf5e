"""Means of a prompt set's scores, over everything and over its groups, with standard errors over prompts."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from didr_jax.suites.prompts import Prompt

ALL = "all"
RESAMPLES = 1000


class Mean(NamedTuple):
    """Of a figure: its mean over prompts of the mean over each one's pictures; its standard error, by a bootstrap over
    prompts; how many pictures had none that is finite, and are left out."""

    mean: float
    error: float
    unknown: int = 0


class Row(NamedTuple):
    """A group of prompts.

    Attributes:
      heading: what divides the prompts, e.g. "style"; empty for all of them.
      group: its name.
      prompts: how many.
      figures: `{figure: Mean}`.
      chunks: `{figure: (mean, standard deviation)}` of the means of equal parts, in order; empty where the set has none.
    """

    heading: str
    group: str
    prompts: int
    figures: dict[str, Mean]
    chunks: dict[str, tuple[float, float]]

    def content(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "heading": self.heading,
            "group": self.group,
            "prompts": self.prompts,
            "figures": {name: mean._asdict() for name, mean in self.figures.items()},
            "chunks": {name: {"mean": mean, "std": std} for name, (mean, std) in self.chunks.items()},
        }


def mean_of(values: np.ndarray, seed: int = 0) -> Mean:
    """Of `values [prompts, pictures of each]`."""
    known = np.isfinite(values)
    some = known.any(axis=1)
    if not some.any():
        return Mean(np.nan, np.nan, int(values.size))
    each = np.nanmean(np.where(known, values, np.nan)[some], axis=1)
    rng, n = np.random.default_rng(seed), len(each)
    means = [each[rng.integers(n, size=n)].mean() for _ in range(RESAMPLES)]
    return Mean(float(each.mean()), float(np.std(means)), int((~known).sum()))


def chunk_means(values: np.ndarray, chunks: int) -> tuple[float, float]:
    """(mean, standard deviation over the chunks, ddof 0) of the means of `chunks` equal parts of `values [n, pictures]`."""
    means = [float(part.mean()) for part in np.array_split(values, min(chunks, len(values)))]
    return float(np.mean(means)), float(np.std(means))


def rows_of(prompts: Sequence[Prompt], scores: Mapping[str, np.ndarray], chunks: Mapping[str, int] | None = None) -> list[Row]:
    """A row a group, heading by heading as the prompts have them, and one of all.

    Args:
      prompts: n.
      scores: `{figure: [n, pictures of each]}`.
      chunks: see `Suite.chunks`; the row of all has none.
    """
    places: dict[tuple[str, str], list[int]] = {}
    for heading in dict.fromkeys(heading for prompt in prompts for heading in prompt.groups):
        for i, prompt in enumerate(prompts):
            if heading in prompt.groups:
                places.setdefault((heading, prompt.groups[heading]), []).append(i)
    rows = [_row(heading, group, which, scores, chunks or {}) for (heading, group), which in places.items()]
    return [*rows, _row("", ALL, list(range(len(prompts))), scores, {})]


def _row(heading: str, group: str, which: list[int], scores: Mapping[str, np.ndarray], chunks: Mapping[str, int]) -> Row:
    figures = {name: mean_of(values[which]) for name, values in scores.items()}
    parts = {name: chunk_means(scores[name][which], n) for name, n in chunks.items() if name in scores}
    return Row(heading, group, len(which), figures, parts)


def text_of(rows: Sequence[Row]) -> list[str]:
    """Lines of a table: mean ± standard error; beneath, the chunks."""
    names = list(rows[-1].figures)
    label = lambda row: f"{row.heading} {row.group}".strip()
    width = max(len("group"), *(len(label(row)) for row in rows))
    cells = lambda mean: f"{mean.mean:.4f} ± {mean.error:.4f}" + (f" ({mean.unknown} not finite)" if mean.unknown else "")
    columns = {name: max(len(name), *(len(cells(row.figures[name])) for row in rows)) for name in names}
    lines = [f"{'group':<{width}}  {'prompts':>7}" + "".join(f"  {name:>{columns[name]}}" for name in names)]
    for row in rows:
        lines.append(
            f"{label(row):<{width}}  {row.prompts:>7}"
            + "".join(f"  {cells(row.figures[name]):>{columns[name]}}" for name in names)
        )
    for name in names:
        told = [f"{row.group} {row.chunks[name][0]:.2f} ± {row.chunks[name][1]:.4f}" for row in rows if name in row.chunks]
        lines += [f"{name}, mean and standard deviation of chunk means: {'; '.join(told)}"] if told else []
    return lines
