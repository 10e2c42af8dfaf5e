"""Curves of everything that a stage logged: related figures share a panel, and a smoothed line lies over the raw one."""

import io
import os
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from didr_jax.training.evaluation import PREFIX
from didr_jax.training.hacking import MARK
from didr_jax.training.metrics import read_metrics
from didr_jax.whole_files import whole_file

# What the log says besides figures of the training itself.
UNDRAWN = ("stage", "step", "images_seen", "images_per_second", "utilisation", "seconds", "skipped")
TOGETHER = {name: "gap, divergence and pull" for name in ("gap", "divergence", "pull")}
BANDS = {"pull_to_divergence": (0.1, 1.0)}  # where docs/running.md wants it
PLAIN = ("#1f5fa8", "#b4470f", "#2f7d32", "#7a3aa0")  # of lines in a picture
FEW = 12  # points, below which each is marked and none is smoothed
LEAST_SPAN = 0.2  # of a panel, as a share of its largest value
MOST = 400  # points of a line, above which it is thinned

Line = tuple[np.ndarray, np.ndarray]  # steps and values


class Panel(NamedTuple):
    """`lines {figure: (steps [n], values [n])}` under one title."""

    title: str
    lines: dict[str, Line]


class Ink(NamedTuple):
    """Colours: of text and frame, of the grid and bands, and of lines in turn."""

    text: str = "#222222"
    grid: str = "#dddddd"
    lines: tuple[str, ...] = PLAIN


def panel_of(figure: str) -> str:
    """The title of the panel that a figure is drawn in."""
    base = figure.removeprefix(PREFIX).removeprefix("reward/")
    if base.endswith("grad_norm"):
        return "gradient norms"
    if base.startswith(("to_", "energy_to_")):
        return "distances"
    if base.startswith("tilt"):
        return "tilt"
    return TOGETHER.get(base, base)


def panels(records: Iterable[Mapping]) -> list[Panel]:
    """The panels of a stage's records of metrics.jsonl: the reward's first, what evaluators judged next."""
    lines: dict[str, list] = {}
    for record in records:
        for name, value in record.items():
            if name not in UNDRAWN and not name.startswith(MARK):
                lines.setdefault(name, []).append((record["step"], value))
    found: dict[str, dict[str, Line]] = {}
    for name, points in lines.items():
        steps, values = np.asarray(sorted(points), float).T
        found.setdefault(panel_of(name), {})[name] = (steps, values)
    judged = lambda title: any(name.startswith(PREFIX) for name in found[title])
    rank = {title: (title != "reward", not judged(title), title not in BANDS) for title in found}
    return [Panel(title, found[title]) for title in sorted(found, key=rank.__getitem__)]


def smooth(steps: np.ndarray, values: np.ndarray, share: float = 0.04, most: int = MOST) -> Line:
    """The mean of the values near each step, by a Gaussian whose standard deviation is a `share` of the steps' span.

    Centred, so that it neither lags nor leads; at the ends of what points there are; of finite values only.

    Args:
      steps: `[n]`, rising.
      values: `[n]`.
      share: see above.
      most: of points that come back.
    """
    known = np.isfinite(values)
    steps, values = np.asarray(steps, float)[known], np.asarray(values, float)[known]
    if len(steps) < 3:
        return steps, values
    at = np.linspace(steps[0], steps[-1], min(most, len(steps)))
    width = max(share * (steps[-1] - steps[0]), 1e-9)
    near = np.exp(-0.5 * ((at[:, None] - steps[None]) / width) ** 2)
    return at, near @ values / near.sum(1)


def _thinned(line: Line) -> Line:
    """At most `MOST` of its points, evenly."""
    pick = np.unique(np.linspace(0, len(line[0]) - 1, min(len(line[0]), MOST)).round().astype(int))
    return line[0][pick], line[1][pick]


def _draw(axis, panel: Panel, ink: Ink) -> None:
    band = BANDS.get(panel.title)
    if band:
        axis.axhspan(*band, color=ink.grid, alpha=0.5, lw=0)
    for i, (name, (steps, values)) in enumerate(panel.lines.items()):
        colour, judged = ink.lines[i % len(ink.lines)], name.startswith(PREFIX)
        label = f"{name.removeprefix(PREFIX)}, judged" if judged else name
        if judged or len(steps) < FEW:
            axis.plot(steps, values, color=colour, lw=1.6, marker="o", ms=3.2, label=label)
        else:
            axis.plot(*_thinned((steps, values)), color=colour, lw=0.7, alpha=0.3)
            axis.plot(*smooth(steps, values), color=colour, lw=1.8, label=label)
    finite = np.concatenate([values[np.isfinite(values)] for _, values in panel.lines.values()])
    if len(finite) and finite.min() > 0 and finite.max() > 30 * finite.min():
        axis.set_yscale("log")
    elif len(finite) and np.ptp(finite) < LEAST_SPAN * np.abs(finite).max():  # noise is not to look like news
        middle, half = (finite.min() + finite.max()) / 2, LEAST_SPAN * np.abs(finite).max() / 2
        axis.set_ylim(middle - half, middle + half)
    axis.set_title(panel.title, fontsize=10, color=ink.text, loc="left")
    axis.set_xlabel("step", fontsize=8, color=ink.text)
    axis.tick_params(labelsize=8, colors=ink.text, which="both")
    axis.grid(color=ink.grid, lw=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color(ink.text)
    if len(panel.lines) > 1:
        axis.legend(fontsize=7, frameon=False, labelcolor=ink.text)


def _by_stage(records: list[dict]) -> dict[str, list[dict]]:
    stages = dict.fromkeys(record["stage"] for record in records)
    return {stage: [record for record in records if record["stage"] == stage] for stage in stages}


def curves(workdir: str) -> None:
    """`curves_STAGE.png` for each stage in metrics.jsonl: its panels in two rows."""
    for stage, records in _by_stage(read_metrics(workdir)).items():
        drawn = panels(records)
        if not drawn:
            continue
        columns = -(-len(drawn) // 2)
        figure = Figure(figsize=(3.6 * columns, 2.6 * min(len(drawn), 2) + 0.4))
        axes = figure.subplots(min(len(drawn), 2), columns, squeeze=False)
        for axis in axes.flat[len(drawn) :]:
            axis.set_axis_off()
        for axis, panel in zip(axes.flat, drawn, strict=False):
            _draw(axis, panel, Ink())
        figure.suptitle(stage, fontsize=11)
        figure.tight_layout()
        with whole_file(os.path.join(workdir, f"curves_{stage}.png"), binary=True) as file:
            figure.savefig(file, format="png", dpi=100)


# ------------------------------------------------------------------------------------- for a page

# Colours that stand for those of the page, which has a light and a dark set.
STAND_INS = {"#010101": "currentColor", "#020202": "var(--grid)"} | {f"#03030{i}": f"var(--line-{i})" for i in range(1, 5)}
PAGE_INK = Ink("#010101", "#020202", tuple(name for name in STAND_INS if name.startswith("#0303")))


def drawings(records: list[dict]) -> dict[str, list[tuple[str, str]]]:
    """`{stage: [(what a panel shows in words, inline SVG)]}` of the records of metrics.jsonl, in the colours of the page."""
    found: dict[str, list[tuple[str, str]]] = {}
    for stage, lines in _by_stage(records).items():
        for i, panel in enumerate(panels(lines)):
            figure = Figure(figsize=(3.6, 2.5))
            _draw(figure.subplots(), panel, PAGE_INK)
            found.setdefault(stage, []).append((_in_words(panel), inline_svg(figure, f"{stage}-{i}", _in_words(panel))))
    return found


def _in_words(panel: Panel) -> str:
    course = lambda values: f"from {values[0]:.4g} to {values[-1]:.4g}"
    told = (f"{name} {course(smooth(*line)[1])}" for name, line in panel.lines.items() if np.isfinite(line[1]).any())
    return f"{panel.title} against the step: {'; '.join(told)}"


def dress(axis, x: str, y: str) -> None:
    """Gives the axes of a drawing of the page their names, colours and sizes."""
    axis.set_xlabel(x, fontsize=9, color=PAGE_INK.text)
    axis.set_ylabel(y, fontsize=9, color=PAGE_INK.text)
    axis.tick_params(labelsize=8, colors=PAGE_INK.text)
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(PAGE_INK.text)


def histogram(sets: Mapping[str, tuple[np.ndarray, np.ndarray | None]], title: str, name: str) -> str:
    """Inline SVG of weighted histograms over common bins.

    Args:
      sets: `{label: (values [n], weights [n] or None)}`.
      title: of the axis.
      name: a prefix for names in the SVG that no other drawing of the page has.
    """
    everything = np.concatenate([values[np.isfinite(values)] for values, _ in sets.values()])
    low, high = (float(np.quantile(everything, share)) for share in (0.002, 0.998))
    bins = np.linspace(low, high, 41)
    figure = Figure(figsize=(7.2, 2.8))
    axis = figure.subplots()
    for (label, (values, weights)), colour in zip(sets.items(), PAGE_INK.lines, strict=False):
        weights = np.ones(len(values)) if weights is None else weights
        axis.hist(np.clip(values, bins[0], bins[-1]), list(bins), weights=weights / weights.sum(), histtype="step", color=colour, lw=1.8,
                  label=label)  # fmt: skip
    dress(axis, title, "share")
    axis.legend(fontsize=8, frameon=False, labelcolor=PAGE_INK.text)
    means = (f"{label} mean {np.average(values, weights=weights):.4g}" for label, (values, weights) in sets.items())
    return inline_svg(figure, name, f"Histogram of the {title}: {'; '.join(means)}")


def inline_svg(figure: Figure, name: str, words: str) -> str:
    """A figure as an SVG element that can stand in a page: named in words, its inner names its own, its colours the page's."""
    figure.tight_layout()
    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    for colour, variable in STAND_INS.items():
        svg = svg.replace(colour, variable)
    label = words.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', f' role="img" aria-label="{label}"', svg, count=1)
