"""The programs of a step: one for each shape in which batches come (texts of some prompts are longer)."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax

from didr_jax.training import flops
from didr_jax.training.introduction import heartbeat
from didr_jax.training.metrics import Progress
from didr_jax.training.parallel import settle
from didr_jax.types import PyTree

Pace = Callable[[flops.Operations], float]


class Programs:
    """Runs a jitted step, and says so where it has to be compiled once more.

    Args:
      step: `(state, frozen, batch) -> (state, metrics)`, jitted.
      pace: the least seconds of all devices for operations, see `chips.pace_here`; None: not known.
      progress: is told what a step takes at that pace, and left out of what compiling takes.
      say: told of every program but the first.
      label: of the stage.
    """

    def __init__(self, step: Callable, pace: Pace | None, progress: Progress, say: Callable[[str], None], label: str):
        self._step, self._pace, self._progress, self._say, self._label = step, pace, progress, say, label
        self._least: dict[tuple, float | None] = {}

    def __call__(self, state: Any, frozen: PyTree, batch: PyTree) -> tuple[Any, dict]:
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(batch))
        known, first = shapes in self._least, not self._least
        if not known:
            count = lambda: flops.count_jaxpr(self._step.trace(state, frozen, batch).jaxpr.jaxpr)  # type: ignore[attr-defined]
            self._least[shapes] = self._pace(count()) if self._pace else None
        self._progress.least = self._least[shapes]
        with contextlib.ExitStack() as held:
            if not known and not first:
                self._say(f"{self._label}  a batch of another shape, {len(self._least)} of them now: compiling for it")
                held.enter_context(self._progress.paused())
                held.enter_context(heartbeat(self._say, f"{self._label}  still compiling"))
            return settle(self._step(state, frozen, batch))
