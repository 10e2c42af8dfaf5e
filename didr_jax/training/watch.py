"""Watching a run for updates that are not finite, and telling which part of it went bad."""

import contextlib
import math
import os

from didr_jax.training.exits import CannotSave
from didr_jax.training.startup import is_first_process
from didr_jax.training.workdir import write_json

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
