"""What a run tells: lines on the screen, `metrics.jsonl`, and TensorBoard or a tracking service if asked (`trackers`).

`metrics.jsonl` is append-only.  A crash can tear its last line and a resumed run repeats the steps
since its last save; `read_metrics` forgives both.  Of several processes only the first says anything.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from PIL import Image

from didr_jax.training.startup import is_first_process
from didr_jax.training.trackers import Rows, Sink, open_trackers
from didr_jax.whole_files import saving, whole_file

QUIET = 60.0  # seconds between lines of figures on a screen that shall be quiet


def clock(seconds: float) -> str:
    """1:02:03, or 2:03."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def rate_of(per_second: float) -> str:
    """With two digits or more."""
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2g}"


class RunLog:
    """The log of one run in `workdir`.

    Args:
      workdir: where `metrics.jsonl` and the event files go.
      section: `config.log`; None for `metrics.jsonl` alone.
      config: what trackers are told of the run, secrets hidden.

    Raises:
      InputError: a package that the section asks for is not installed.
    """

    def __init__(self, workdir: str, section=None, config: Mapping[str, Any] | None = None):
        self._started = time.monotonic()
        self._workdir, self._file = workdir, None
        self._sinks: list[Sink] = []
        if not is_first_process():
            return
        path = os.path.join(workdir, "metrics.jsonl")
        with saving(path):
            torn = os.path.exists(path) and os.path.getsize(path) > 0 and not _ends_with_newline(path)
            self._file = open(path, "a")
            if torn:
                self._file.write("\n")
            if section is not None:
                self._sinks = open_trackers(workdir, section, config or {})

    def seconds(self) -> float:
        """Since the run was started, this time."""
        return time.monotonic() - self._started

    def say(self, message: str) -> None:
        """A line on the screen, with the time since the run began; nothing where there is no screen any more."""
        if is_first_process():
            with contextlib.suppress(OSError):  # a pipe that was closed, a full disk: metrics.jsonl has the figures
                print(f"[{clock(self.seconds())}] {message}", flush=True)

    def write(self, stage: str, step: int, values: dict) -> None:
        """A line of metrics.jsonl, handed to the system before this returns; raises CannotSave."""
        if self._file is None:
            return
        with saving(self._file.name):
            self._file.write(json.dumps({"stage": stage, "step": step, **values}) + "\n")
            self._file.flush()
        for sink in self._sinks:
            sink.write(stage, step, values)

    def show(self, stage: str, step: int, pictures: dict) -> None:
        """Pictures `{name: uint8 [h, w] or [h, w, 3]}` as `progress/STAGE/STEP_NAME.png`, and to the trackers; raises
        CannotSave."""
        if self._file is None or not pictures:
            return
        for name, picture in pictures.items():
            with whole_file(os.path.join(self._workdir, "progress", stage, f"{step:06d}_{name}.png"), binary=True) as file:
                Image.fromarray(picture).save(file, "PNG")
        for sink in self._sinks:
            sink.show(stage, step, pictures)

    def summarise(self, rows: Rows) -> None:
        """The summary, `{row: {name: float}}`, to the trackers."""
        for sink in self._sinks:
            sink.summarise(rows)

    def close(self) -> None:
        """Ends the log; of a full disk it has spoken before."""
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()
        for sink in self._sinks:
            with contextlib.suppress(OSError):
                sink.close()


class Progress:
    """Rate and time to go of one stage, printed and logged with its metrics.

    `quiet`: one line a minute is printed, and the last; `least`: seconds that a step takes at the devices' peak, if that is
    known; utilisation is measured by it.
    """

    def __init__(self, log: RunLog, label: str, stage: str, first: int, total: int, batch_size: int, quiet: bool = False):
        self._log, self._label, self._stage = log, label, stage
        self._first, self._total, self._batch_size = first, total, batch_size
        self._origin: float | None = None
        self._quiet, self._next = quiet, -math.inf
        self._away = 0.0  # seconds of pauses since then
        self.least: float | None = None

    def started(self, step: int) -> None:
        """Marks the end of compilation, from which the rate is counted."""
        self._first, self._origin = step, time.monotonic()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time that does not count as training."""
        begun = time.monotonic()
        yield
        if self._origin is not None:
            self._origin += time.monotonic() - begun
            self._away += time.monotonic() - begun

    def pauses(self) -> str | None:
        """What evaluation took since the end of compilation, as a line; None if there was none."""
        if self._origin is None or not self._away:
            return None
        share = self._away / (self._away + time.monotonic() - self._origin)
        return f"{self._label}  evaluation took {self._away:.1f} s, {share:.1%} of the time since the first step"

    def report(self, step: int, metrics: dict, quietly: dict | None = None) -> None:
        """Prints and logs `metrics` (floats) of the step that was just finished; logs what is to be told `quietly`."""
        begun = time.monotonic() if self._origin is None else self._origin
        rate = (step - self._first) / max(time.monotonic() - begun, 1e-9)
        images, seen = rate * self._batch_size, step * self._batch_size
        eta = (self._total - step) / max(rate, 1e-9)
        figures = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        speed = f"{rate_of(images)} img/s  {1000 / max(rate, 1e-9):.3g} ms/step  ETA {clock(eta)}"
        speed += f"  {rate * self.least:.1%} of peak" if self.least else ""
        if not self._quiet or step == self._total or time.monotonic() >= self._next:
            self._next = time.monotonic() + QUIET
            speed = speed if step > self._first else "compiled"
            self._log.say(f"{self._label}  {step:>5}/{self._total}  {seen:,} img  {speed}  {figures}")
        told = {"images_seen": seen, "images_per_second": float(f"{images:.4g}"), "seconds": round(self._log.seconds(), 1)}
        told |= {"utilisation": round(rate * self.least, 4)} if self.least and step > self._first else {}
        self._log.write(self._stage, step, metrics | (quietly or {}) | told)


def read_metrics(workdir: str) -> list[dict]:
    """A record for each (stage, step) of metrics.jsonl, in order: its lines as one, later ones winning; lines that are
    torn or damaged left out."""
    lines: dict[tuple[str, int], dict] = {}
    with open(os.path.join(workdir, "metrics.jsonl"), encoding="utf-8", errors="replace") as file:
        for line in file:
            if record := _record(line):
                lines.setdefault((record["stage"], record["step"]), {}).update(record)
    return list(lines.values())


def _record(line: str) -> dict | None:
    """What `RunLog.write` wrote, or None."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(stage := record.get("stage"), str) or not stage.isidentifier():
        return None
    figures = {name: value for name, value in record.items() if name != "stage"}
    return record if type(record.get("step")) is int and all(map(_is_figure, figures.values())) else None


def _is_figure(value) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def _ends_with_newline(path: str) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
