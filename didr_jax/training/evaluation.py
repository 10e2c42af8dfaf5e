"""Judging a stage while it trains.

A stage may carry evaluators.  Each runs before the first step, every so many steps, and after the last, in every
process of the run, on what the stage would leave if it ended there (its products: moving averages), spread over the
mesh as they are.  It returns figures, which are logged as `eval/NAME`, and pictures, which go to `progress/`.  It
changes nothing that is trained: with or without evaluators, the states of a run are the same to the last bit.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from didr_jax.training.hacking import Watched
from didr_jax.training.parallel import ROWS, put_batch, to_host
from didr_jax.types import PyTree, Weights

PREFIX = "eval/"  # of evaluators' figures in the log


class Verdict(NamedTuple):
    """`figures {name: float}`, and `pictures {name: uint8 [h, w] or [h, w, 3]}`."""

    figures: dict[str, float]
    pictures: dict[str, np.ndarray] = {}


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """What judges a stage, and how often.

    Attributes:
      every: steps between evaluations; 0: never.
      judge: `(products, frozen) -> Verdict`, called in every process under the run's mesh: `products` are the arrays
        of the stage's products by name, `frozen` those of the stage's and of the evaluator's own `frozen`.
      frozen: what `judge` reads besides the stage's own frozen parameters; loaded when it first runs.
      watched: which of its figures tell that the reward is being hacked; None: none does.
    """

    every: int
    judge: Callable[[Mapping[str, PyTree], Mapping[str, PyTree]], Verdict]
    frozen: Mapping[str, Weights] = dataclasses.field(default_factory=dict)
    watched: Watched | None = None


class Evaluators:
    """The evaluators of a stage at work.

    Args:
      evals: by name; the figures and pictures of all together must have different names.
      steps: the stage's last step.
      frozen: the stage's own, loaded.
      load: `{name: Weights} -> {name: arrays}`.
    """

    def __init__(self, evals: Mapping[str, Evaluator], steps: int, frozen: Mapping[str, PyTree], load: Callable):
        self._evals = {name: each for name, each in evals.items() if each.every}
        self._steps, self._frozen, self._load = steps, dict(frozen), load

    def watched(self) -> list[Watched]:
        """What each of them watches."""
        return [each.watched for each in self._evals.values() if each.watched is not None]

    def due(self, step: int) -> list[str]:
        """Names of those that are to run after `step` steps."""
        turn = lambda every: step % every == 0 or step == self._steps
        return [name for name, each in self._evals.items() if turn(each.every)]

    def run(self, names: Iterable[str], products: Mapping[str, PyTree]) -> Verdict:
        """Their verdicts as one."""
        figures: dict[str, float] = {}
        pictures: dict[str, np.ndarray] = {}
        for name in names:
            each = self._evals[name]
            absent = {key: weights for key, weights in each.frozen.items() if key not in self._frozen}
            self._frozen |= self._load(absent)
            verdict = each.judge(products, self._frozen)
            figures |= {PREFIX + key: float(value) for key, value in verdict.figures.items()}
            pictures |= verdict.pictures
        return Verdict(figures, pictures)


def over_rows(function: Callable[..., PyTree], params: PyTree, rows: PyTree, size: int | None = None) -> PyTree:
    """`function(params, rows)` of many rows, spread over the mesh, as numpy arrays in every process.

    Args:
      function: jitted; `(params, rows [b, ...]) -> pytree of [b, ...]`, each row from its own row alone.
      params: arrays in their places.
      rows: pytree of host arrays `[n, ...]`, the same in every process.
      size: rows at a time; None: all at once.  Made a multiple of what the mesh spreads rows over; the last batch is
        filled up with its last row.
    """
    mesh = jax.sharding.get_mesh()
    ways = 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in ROWS)
    n = len(jax.tree.leaves(rows)[0])
    size = -(-min(size or n, n) // ways) * ways
    parts = []
    for start in range(0, n, size):
        picked = np.minimum(np.arange(start, start + size), n - 1)
        batch = jax.tree.map(lambda column, picked=picked: np.asarray(column[picked]), rows)
        batch = batch if mesh.empty else put_batch(batch, mesh, 0)
        parts.append(jax.tree.map(np.asarray, to_host(function(params, batch))))
    return jax.tree.map(lambda *pieces: np.concatenate(pieces)[:n], *parts)
