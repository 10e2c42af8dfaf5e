"""What all stages and modes of a run share: its config, its workdir, its devices and its log."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from didr_jax.training.checkpoint import Checkpoints, code_version
from didr_jax.training.hacking import MARK, UNHARMED
from didr_jax.training.metrics import RunLog
from didr_jax.training.parallel import shardings, with_places
from didr_jax.training.redact import redacted
from didr_jax.types import InputError, PyTree, Weights

Products = Mapping[str, Mapping[str, Weights]]  # stage -> what it leaves to later stages and to reports, by name


@dataclasses.dataclass(frozen=True)
class Run:
    """One run.  Everything is loaded into its place by the rules of `config.mesh`.

    `redraw(must)` is called after evaluations, and where a run ends early (then it must): what the run shows of itself may be
    drawn again; None: nothing is.
    """

    config: Any
    workdir: str
    mesh: Mesh
    log: RunLog
    redraw: Callable[[bool], None] | None = None

    def path(self, *names: str) -> str:
        """Of a file in the workdir."""
        return os.path.join(self.workdir, *names)

    def saves(self, stage: str) -> Checkpoints:
        about = {"stage": stage, "code": code_version(), "jax": jax.__version__, "config": redacted(self.config.to_dict())}
        largest = MARK + UNHARMED if self.config.watch.hacking == "stop" else ""
        return Checkpoints(self.path("checkpoints", stage), self.config.checkpoint, about, self.log.say, largest)

    def places(self, tree: PyTree) -> PyTree:
        """A sharding for every leaf."""
        return shardings(tree, self.config, self.mesh)

    def placed(self, shapes: PyTree) -> PyTree:
        """The same shapes with their shardings."""
        return with_places(shapes, self.places(shapes))

    def load(self, weights: Mapping[str, Weights]) -> dict[str, PyTree]:
        """The arrays of each, on the devices."""
        return {name: each.load(self.places({name: each.shapes})[name]) for name, each in weights.items()}


def saved_products(run: Run) -> Products:
    """What the stages of a finished run left, still on disk: each is read when, and if, it is loaded.

    Raises:
      InputError: naming the first stage that is not finished, or a save that is not this version's.
    """
    products = {}
    for name in run.config.stages:
        saves, steps = run.saves(name), run.config[name].steps
        latest = saves.latest()
        if latest is None or latest != steps:
            at = f"at step {latest or 0} of {steps}"
            raise InputError(f"--workdir={run.workdir}: stage {name!r} is not finished ({at}); run --mode=train first")
        products[name] = saves.products(latest)
    return products
