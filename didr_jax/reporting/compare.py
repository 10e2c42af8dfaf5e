"""`didr-jax compare RUN…`: several runs on one page that needs nothing else: what each came to, reward against its cost with
intervals, the same noise through all of them, their rewards while they trained, and how their configs differ."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from didr_jax.config import flatten
from didr_jax.exits import CannotSave
from didr_jax.reporting.contents import Contents, read_workdir
from didr_jax.reporting.curves import PAGE_INK, dress, inline_svg
from didr_jax.reporting.data_uri import data_uri
from didr_jax.reporting.page import SMALL, now, template
from didr_jax.reporting.pareto import NORMAL, REWARD, costs_of, last_row, pareto, point_of, together
from didr_jax.reporting.verdict import direction, standard_errors
from didr_jax.training.evaluation import PREFIX
from didr_jax.types import InputError
from didr_jax.whole_files import whole_file

PICTURES = 8  # noises that are shown through every run


def write_comparison(workdirs: Sequence[str], out: str) -> str:
    """Draws the page; its path.

    Raises:
      InputError: fewer than two runs, one twice, or one that has not begun.
      CannotSave: the disk is full.
    """
    if len({os.path.realpath(workdir) for workdir in workdirs}) < max(2, len(workdirs)):
        raise InputError("compare: name two or more different workdirs, e.g. didr-jax compare runs/a runs/b")
    page = render(dict(zip(labels(workdirs), map(read_workdir, workdirs), strict=True)))
    with whole_file(out) as file:
        file.write(page)
    return out


def labels(workdirs: Sequence[str]) -> list[str]:
    """The shortest ends of their paths that tell them apart."""
    parts = [os.path.realpath(workdir).strip("/").split("/") for workdir in workdirs]
    for depth in range(1, max(map(len, parts)) + 1):
        ends = ["/".join(each[-depth:]) for each in parts]
        if len(set(ends)) == len(ends):
            return ends
    raise AssertionError("they are different folders")


def render(runs: Mapping[str, Contents]) -> str:
    """The page as HTML of runs by label."""
    groups, costs = together(runs), costs_of(list(runs.values()))
    columns = list(dict.fromkeys(name for run in runs.values() for name in last_row(run)))
    return template("compare.html").render(
        drawn=now(),
        runs=runs,
        rows={label: last_row(run) for label, run in runs.items()},
        errors={label: standard_errors(run.pairs)[1] for label, run in runs.items()},
        columns=columns,
        way={column: direction(column) or (-1 if column in costs else 0) for column in columns},
        groups={label: members for label, members in groups.items() if len(members) > 1},
        level=f"{NORMAL:g}",
        planes=[plane for cost in costs if (plane := _plane(runs, groups, cost)) is not None],
        course=_course(runs),
        strips=_strips(runs),
        settings=_differences(runs),
    )


def _plane(runs: Mapping[str, Contents], groups: Mapping[str, Sequence[str]], cost: str) -> dict[str, str] | None:
    found = [point_of(label, [runs[each] for each in members], cost) for label, members in groups.items()]
    points = [point for point in found if point is not None]
    return {"cost": cost, "svg": pareto(points, cost, f"plane-{cost}")} if points else None


def _course(runs: Mapping[str, Contents]) -> str | None:
    """The reward as it was judged while they trained."""
    lines = {label: np.array(run.figure(PREFIX + REWARD), float) for label, run in runs.items()}
    lines = {label: line for label, line in lines.items() if len(line) > 1}
    if not lines:
        return None
    figure = Figure(figsize=(7.2, 3.0))
    axis = figure.subplots()
    for i, (label, line) in enumerate(lines.items()):
        style = ("-", "--", "-.", ":")[i // len(PAGE_INK.lines) % 4]
        axis.plot(*line.T, color=PAGE_INK.lines[i % len(PAGE_INK.lines)], ls=style, lw=1.6, marker="o", ms=3, label=label)
    dress(axis, "step", "reward, judged")
    axis.grid(color=PAGE_INK.grid, lw=0.6)
    axis.legend(fontsize=8, frameon=False, labelcolor=PAGE_INK.text)
    told = "; ".join(f"{label} from {line[0, 1]:.4g} to {line[-1, 1]:.4g}" for label, line in lines.items())
    return inline_svg(figure, "course", f"Reward against the step: {told}")


def _strips(runs: Mapping[str, Contents]) -> list[dict[str, Any]]:
    """The same noise and condition through every run that shows it; none where runs were judged on different ones."""
    pairs = {label: run.pairs for label, run in runs.items() if run.pairs is not None and len(run.pairs.which)}
    if len(pairs) < 2:
        return []
    first = next(iter(pairs.values()))
    found = []
    for place, number in enumerate(first.which):
        caption = str(first.captions[place])
        there = {label: np.flatnonzero(each.which == number) for label, each in pairs.items()}
        same = all(len(at) and str(pairs[label].captions[at[0]]) == caption for label, at in there.items())
        before = [pairs[label].before[at[0]] for label, at in there.items() if len(at)]
        if not same or any(each.shape != before[0].shape or (each != before[0]).any() for each in before):
            continue  # another noise, or another start
        sides = {"before": data_uri(before[0])} | {label: data_uri(pairs[label].after[at[0]]) for label, at in there.items()}
        small = max(before[0].shape[:2]) <= SMALL
        found.append({"caption": caption or f"number {number}", "number": int(number), "sides": sides, "small": small})
        if len(found) == PICTURES:
            break
    return found


def _differences(runs: Mapping[str, Contents]) -> dict[str, list[str]]:
    """`{key: its value in each run}` of the settings that are not the same in all."""
    flat = [flatten(run.config) for run in runs.values()]
    keys = dict.fromkeys(key for each in flat for key in each)
    rows = {key: [str(each.get(key, "–")) for each in flat] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser("didr-jax compare", description="Several runs on one self-contained page.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a workdir")
    parser.add_argument("--out", default="compare.html", help="the page to write")
    given = parser.parse_args(arguments)
    try:
        print(f"wrote {write_comparison(given.runs, given.out)}")
    except InputError as error:
        print(f"didr_jax: {error}", file=sys.stderr)
        return 2
    except CannotSave as error:
        print(f"didr_jax: {error}", file=sys.stderr)
        return error.code
    return 0
