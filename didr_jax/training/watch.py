"""Watching a run for updates and samples that are not finite, and telling which part of it went bad."""

import contextlib
import math
import os

from didr_jax.exits import CannotSave
from didr_jax.training.startup import is_first_process
from didr_jax.whole_files import write_json

# Logged figures in causal order: the first that is not finite is the likeliest source.
PARTS = {
    "reward": "the reward (or the decoder before it)",
    "ta_loss": "the TA's loss",
    "ta_grad_norm": "the TA's gradient",
    "gap": "the score gap (the reference or the TA)",
    "divergence": "the divergence's part of the generator's gradient",
    "pull": "the reward's part of the generator's gradient",
    "loss": "the loss",
    "grad_norm": "the gradient",
}


class Dropped:
    """Samples without a reward since the last look.

    Args:
      threshold: share of the samples above which a warning is due.
      batch_size: samples of a step.
    """

    def __init__(self, threshold: float, batch_size: int):
        self._threshold, self._batch_size = threshold, batch_size
        self._dropped = self._seen = 0

    def count(self, metrics: dict) -> None:
        """Of one more step; one whose reward was not measured does not count."""
        if "reward/dropped" in metrics:
            self._dropped += int(metrics["reward/dropped"])
            self._seen += self._batch_size

    def warnings(self, figures: dict[str, float]) -> list[str]:
        """What is to be said of the samples since the last call, and of the last step's figures."""
        dropped, seen = self._dropped, self._seen
        self._dropped = self._seen = 0
        lines = []
        if seen and dropped / seen > self._threshold:
            lines.append(
                f"{dropped} of {seen} samples had an image or a reward that is not finite and were trained without it; "
                "look at the reward, the decoder and their dtypes"
            )
        if figures.get("pull") == 0:
            lines.append("the reward's gradient is exactly zero for all samples, so that it has no part in the training")
        return lines


def bad_parts(figures: dict[str, float]) -> list[str]:
    """Names of the figures that are not finite, the likeliest source first."""
    order = [*PARTS, *(name for name in figures if name not in PARTS)]
    return [name for name in order if name in figures and not math.isfinite(figures[name])]


def diagnosis(stage: str, step: int, figures: dict[str, float], streak: int) -> str:
    """One line for a run that stops because `streak` steps in a row dropped an update."""
    bad = bad_parts(figures)
    source = PARTS.get(bad[0], bad[0]) if bad else "an update"
    names = ", ".join(bad) or "no logged figure"
    return f"{stage} stopped at step {step}: {streak} steps in a row were not finite; first of all {source} (not finite: {names})"


def write_stopped(workdir: str, stage: str, step: int, figures: dict[str, float], message: str) -> None:
    """`stopped.json`, from process 0: where a run stopped and its figures of that step."""
    if is_first_process():
        text = {name: value if math.isfinite(value) else str(value) for name, value in figures.items()}
        report = {"stage": stage, "step": step, "message": message, "not_finite": bad_parts(figures), "figures": text}
        with contextlib.suppress(CannotSave):  # the message is on the screen as well, and the code tells more than a full disk
            write_json(os.path.join(workdir, "stopped.json"), report)
