"""What a run tells: lines on the screen, `metrics.jsonl`, and TensorBoard event files if asked.

`metrics.jsonl` is append-only.  A crash can tear its last line and a resumed run repeats the steps
since its last save; `read_metrics` forgives both.
"""

import json
import os
import time


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class RunLog:
    """The log of one run in `workdir`.

    Args:
      workdir: where `metrics.jsonl` and the event files go.
      tensorboard: write event files too.
    """

    def __init__(self, workdir: str, tensorboard: bool = False):
        self._started = time.time()
        path = os.path.join(workdir, "metrics.jsonl")
        torn = os.path.exists(path) and os.path.getsize(path) > 0 and not _ends_with_newline(path)
        self._file = open(path, "a")
        if torn:
            self._file.write("\n")
        self._writer = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(os.path.join(workdir, "tensorboard"))

    def say(self, message: str) -> None:
        """A line on the screen, with the time since the run began."""
        print(f"[{_clock(time.time() - self._started)}] {message}", flush=True)

    def write(self, stage: str, step: int, values: dict) -> None:
        """A line of metrics.jsonl, on disk before this returns."""
        self._file.write(json.dumps({"stage": stage, "step": step, **values}) + "\n")
        self._file.flush()
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{stage}/{name}", value, step)

    def close(self) -> None:
        self._file.close()
        if self._writer is not None:
            self._writer.close()


class Progress:
    """Rate and time to go of one stage, printed and logged with its metrics."""

    def __init__(self, log: RunLog, label: str, stage: str, first: int, total: int, batch_size: int):
        self._log, self._label, self._stage = log, label, stage
        self._first, self._total, self._batch_size = first, total, batch_size
        self._origin = None

    def started(self, step: int) -> None:
        """Marks the end of compilation, from which the rate is counted."""
        self._first, self._origin = step, time.time()

    def report(self, step: int, metrics: dict) -> None:
        """Prints and logs `metrics` (floats) of the step that was just finished."""
        rate = (step - self._first) / max(time.time() - self._origin, 1e-9)
        images = rate * self._batch_size
        eta = (self._total - step) / max(rate, 1e-9)
        figures = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        speed = f"{images:,.0f} img/s  ETA {_clock(eta)}" if step > self._first else "compiled"
        self._log.say(f"{self._label}  {step:>5}/{self._total}  {speed}  {figures}")
        seen = {"images_seen": step * self._batch_size, "images_per_second": round(images, 2)}
        self._log.write(self._stage, step, metrics | seen)


def read_metrics(workdir: str) -> list[dict]:
    """The lines of metrics.jsonl in order, the last of each (stage, step), torn lines left out."""
    lines = {}
    with open(os.path.join(workdir, "metrics.jsonl")) as file:
        for line in file:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            lines[record["stage"], record["step"]] = record
    return list(lines.values())


def _ends_with_newline(path: str) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
