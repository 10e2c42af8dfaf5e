"""What a workdir holds, as a report reads it: nothing else is needed, so that it can be drawn again at any time."""

import dataclasses
import os
import re
import shlex
from typing import Any

import numpy as np

from didr_jax.json_files import read_object
from didr_jax.reporting.pairs import Pairs, read_pairs
from didr_jax.reporting.verdict import Verdict, compared, verdict
from didr_jax.training.hacking import MARK, UNHARMED
from didr_jax.training.metrics import read_metrics
from didr_jax.training.workdir import read_config
from didr_jax.types import InputError

FRAMES = 13  # pictures of a slider
PULL = (0.1, 1.0)  # of pull_to_divergence: see docs/running.md
LAG = 1.5  # of ta_lag, above which the TA does not keep up


@dataclasses.dataclass(frozen=True)
class Contents:
    """Of a workdir.

    Attributes:
      config: as it was resolved.
      about: who wrote it: `program`, `flags`, `modes` of the start that trained; empty where it was started from Python.
      summary: a row per model.
      records: of metrics.jsonl, as `read_metrics` gives them.
      pairs: before and after, if there are any.
      frames: `{"STAGE NAME": [(step, path)]}` of progress/.
      stopped: of stopped.json, where the run has not gone on since.
      agreements: of tac.json: how far each reward orders pictures as people do, or a known rule; empty: not measured.
    """

    workdir: str
    config: dict[str, Any]
    about: dict[str, Any]
    summary: dict[str, dict[str, float]]
    records: list[dict]
    pairs: Pairs | None
    frames: dict[str, list[tuple[int, str]]]
    stopped: dict[str, Any]
    agreements: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def objective(self) -> str:
        return self.config.get("align", {}).get("objective", "")

    @property
    def stages(self) -> dict[str, tuple[int, int]]:
        """`{stage: (steps done, steps of all)}`, in order."""
        last: dict[str, int] = {}
        for record in self.records:
            last[record["stage"]] = max(last.get(record["stage"], 0), record["step"])
        names = list(self.config["stages"])
        begun = max((i for i, name in enumerate(names) if name in last), default=0)
        steps = {name: self.config[name]["steps"] for name in names}  # a stage that others followed is finished, wherever it ran
        return {name: (steps[name] if i < begun else last.get(name, 0), steps[name]) for i, name in enumerate(names)}

    @property
    def finished(self) -> bool:
        return bool(self.summary) and all(done == steps for done, steps in self.stages.values())

    def figure(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of one figure of the last stage that logged it."""
        stages = [record["stage"] for record in self.records if name in record]
        return [(r["step"], r[name]) for r in self.records if name in r and r["stage"] == stages[-1]]

    @property
    def kept(self) -> list[str]:
        """What is watched for reward hacking."""
        names = dict.fromkeys(name for record in self.records for name in record if name.startswith(MARK))
        return [name.removeprefix(MARK) for name in names if name != MARK + UNHARMED]

    def alarms(self) -> dict[str, int]:
        """Figures for which the alarm was up at the last evaluation, and since which step."""
        found = {}
        for name in self.kept:
            up = self.figure(MARK + name)
            if up and up[-1][1]:
                last_down = max((i for i, (_, value) in enumerate(up) if not value), default=-1)
                found[name] = up[last_down + 1][0]
        return found

    def verdict(self) -> Verdict:
        if not self.finished:
            done = ", ".join(f"{name} {at} of {steps} steps" for name, (at, steps) in self.stages.items())
            why = "This run stopped before its end" if self.stopped else "This run is not finished"
            bad = bool(self.stopped or self.alarms())
            return Verdict("bad" if bad else "open", why, [f"{done}.", *self._judged()])
        return verdict(self.summary, self.objective, self.pairs, self.alarms(), bool(self.kept))

    def _judged(self) -> list[str]:
        """What evaluators found so far."""
        names = dict.fromkeys(name for record in self.records for name in record if name.startswith("eval/"))
        courses = {name.removeprefix("eval/"): self.figure(name) for name in names}
        told = (f"{name} {course[0][1]:.4g} → {course[-1][1]:.4g}" for name, course in courses.items() if len(course) > 1)
        line = ", ".join(told)
        return [f"Judged so far: {line}."] if line else []

    def warnings(self) -> list[str]:
        """Whatever a reader should know before believing the rest."""
        found = [self.stopped["message"]] if "message" in self.stopped else []
        for name, step in self.alarms().items():
            found.append(f"Reward hacking: {name} fell while the reward rose, since step {step} of the alarm's evaluations.")
        for stage in self.stages:
            dropped = max((r.get("skipped", 0) for r in self.records if r["stage"] == stage), default=0)
            found += [f"{stage}: {dropped:.0f} updates were dropped because they were not finite."] if dropped else []
        ratio = _late(self.figure("pull_to_divergence"))
        if ratio > PULL[1]:
            found.append(f"The reward pulls {ratio:.2g} times as hard as the divergence: above 1 it wins. Raise align.beta.")
        if ratio < PULL[0]:
            found.append(f"The reward pulls {ratio:.2g} times as hard as the divergence: it hardly matters. Lower align.beta.")
        lag = _late(self.figure("ta_lag"))
        if lag > LAG:
            found.append(f"The TA does not keep up (ta_lag {lag:.2g}): raise ta_updates or its learning rate.")
        broken = [f"{label}: {name}" for label, row in self.summary.items() for name, x in row.items() if not np.isfinite(x)]
        found += [f"Not finite: {', '.join(broken)}."] if broken else []
        return found

    def commands(self) -> dict[str, str]:
        """`{what for: command}`: the one that trained, and those of the modes that there are."""
        if "flags" not in self.about:
            return {}
        purposes = {"sample": "Draw samples", "export": "Export", "eval": "Measure again"}
        modes = {purpose: [f"--mode={mode}"] for mode, purpose in purposes.items() if mode in self.about["modes"]}
        flags = {"Train, or go on": [], **modes}
        start = [self.about["program"], *map(shlex.quote, self.about["flags"])]
        return {purpose: " \\\n    ".join([*start, *more]) for purpose, more in flags.items()}

    @property
    def rows(self):
        """Labels of the rows before and after, or None."""
        return compared(self.summary, self.objective)


def _late(points: list[tuple[int, float]]) -> float:
    """Median over the last quarter of a course; nan without one."""
    values = [value for _, value in points[-max(1, len(points) // 4) :]]
    return float(np.median(values)) if values else np.nan


def read_workdir(workdir: str) -> Contents:
    """What a run left so far.

    Raises:
      InputError: no run has begun there, or of another version; a file of it is damaged.
    """
    found = read_config(workdir)
    if found is None or not os.path.exists(os.path.join(workdir, "metrics.jsonl")):
        raise InputError(f"{workdir} has no config.json and metrics.jsonl: name the workdir of a run that has begun")
    (config, about), records, stopped = found, read_metrics(workdir), _json(os.path.join(workdir, "stopped.json"))
    if any(r["stage"] == stopped.get("stage") and r["step"] > stopped["step"] for r in records):
        stopped = {}
    return Contents(
        workdir,
        config,
        about,
        _json(os.path.join(workdir, "summary.json")),
        records,
        read_pairs(workdir),
        _frames(os.path.join(workdir, "progress")),
        stopped,
        _json(os.path.join(workdir, "tac.json")),
    )


def _json(path: str) -> dict[str, Any]:
    return read_object(path, "remove it") if os.path.exists(path) else {}


def _frames(folder: str) -> dict[str, list[tuple[int, str]]]:
    """At most `FRAMES` of each series of progress/, the first and the last among them."""
    found: dict[str, list[tuple[int, str]]] = {}
    for stage in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        for name in sorted(os.listdir(os.path.join(folder, stage))):
            if match := re.fullmatch(r"(\d+)_(.+)\.png", name):
                path = os.path.join(folder, stage, name)
                found.setdefault(f"{stage}: {match[2]}", []).append((int(match[1]), path))
    evenly = lambda n: np.unique(np.linspace(0, n - 1, min(n, FRAMES)).round().astype(int))
    return {series: [frames[i] for i in evenly(len(frames))] for series, frames in found.items()}
