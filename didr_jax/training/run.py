"""What all stages and modes of a run share: its config, its workdir, its devices and its log."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from didr_jax.checks import listed
from didr_jax.training.checkpoint import Checkpoints
from didr_jax.training.hacking import MARK, UNHARMED
from didr_jax.training.metrics import RunLog
from didr_jax.training.parallel import shardings, state_shardings, with_places
from didr_jax.training.redact import redacted
from didr_jax.training.save_meta import code_version
from didr_jax.types import InputError, PyTree, Weights

LATEST, BEST = "latest", "best"  # saves, besides their numbers

Products = Mapping[str, Mapping[str, Weights]]  # stage -> what it leaves to later stages and to reports, by name


class StageMissing(InputError):
    """What is asked for needs a stage that the config does not train."""


class Finished(dict[str, Mapping[str, Weights]]):
    """`Products` of the stages so far; asking for another raises StageMissing."""

    def __missing__(self, stage: str):
        known = ", ".join(self) or "none"
        raise StageMissing(f"stage {stage!r} is needed and not before this in config.stages (done: {known}); add it there")


@dataclasses.dataclass(frozen=True)
class Run:
    """One run.  Everything is loaded into its place by the rules of `config.mesh`.

    `claim`: of the workdir, to be made when the first step is done: `(stage, steps done before it) -> lines for the log`
    (`claims.Claim.record`).
    `name`: of the run, which no other has, the same in every process (`claims.RUN`); saves are bound to it.  Empty: they are not.
    `picked`: the saves that `saved_products` chose, `{stage: (step, digests of the products)}`.
    `redraw(must)` is called after evaluations, and where a run ends early (then it must): what the run shows of itself may be
    drawn again; None: nothing is.
    """

    config: Any
    workdir: str
    mesh: Mesh
    log: RunLog
    claim: Callable[[str, int], Iterable[str]] = lambda stage, step: ()
    redraw: Callable[[bool], None] | None = None
    name: str = ""
    picked: dict[str, tuple[int, Mapping[str, int]]] = dataclasses.field(default_factory=dict)

    def path(self, *names: str) -> str:
        """Of a file in the workdir."""
        return os.path.join(self.workdir, *names)

    def saves(self, stage: str, read_only: bool = False) -> Checkpoints:
        about = {"stage": stage, "code": code_version(), "jax": jax.__version__, "config": redacted(self.config.to_dict())}
        if self.name and not (self.config.init_from and stage != self.config.stages[-1]):  # those are another run's, copied
            about["run"] = self.name
        largest = MARK + UNHARMED if self.config.watch.hacking == "stop" else ""
        section, folder = self.config.checkpoint, self.path("checkpoints", stage)
        return Checkpoints(folder, section, about, self.log.say, largest=largest, read_only=read_only)

    def places(self, tree: PyTree) -> PyTree:
        """A sharding for every leaf."""
        return shardings(tree, self.config, self.mesh)

    def placed(self, state: PyTree) -> PyTree:
        """The same shapes, of a training state, with their shardings."""
        return with_places(state, state_shardings(state, self.config, self.mesh))

    def load(self, weights: Mapping[str, Weights]) -> dict[str, PyTree]:
        """The arrays of each, on the devices."""
        return {name: each.load(self.places({name: each.shapes})[name]) for name, each in weights.items()}


def check_step(step: str) -> None:
    """Raises InputError unless `step` is a number, "latest", "best" or empty."""
    if step and step not in (LATEST, BEST) and not step.isdecimal():
        raise InputError(f"--step={step}: give the step of a save, {LATEST} or {BEST}")


def saved_products(run: Run, step: str = "") -> Products:
    """What the stages of a run left, still on disk: each is read when, and if, it is loaded.

    Args:
      run: whose workdir is read; another process may train in it.
      step: which save of the last stage: its number, "latest", or "best" by `config.checkpoint.best`, of an unfinished
        run too; empty: that of the last step.

    Raises:
      InputError: naming the first stage that is not finished, a step that is not saved, or a save that is not this
        version's.
    """
    check_step(step)
    products = Finished()
    last = run.config.stages[-1]
    for name in run.config.stages:
        saves = run.saves(name, read_only=True)
        if name == last and step and saves.latest() is not None:
            chosen = chosen_step(saves, step, name, run)
            products[name] = saves.products(chosen)
        else:
            chosen, hint = run.config[name].steps, f", or see what it has with --step={LATEST}" if name == last else ""
            products[name] = left_by(saves, name, run, "run --mode=train first", hint)
        run.picked[name] = chosen, _digests(saves.about(chosen))
    return products


def left_by(saves: Checkpoints, stage: str, run: Run, remedy: str, if_begun: str = "") -> Mapping[str, Weights]:
    """The products of a stage; raises InputError, with a remedy, if it is not finished."""
    latest, steps = saves.latest(), run.config[stage].steps
    if latest == steps:
        return saves.products(steps)
    at = f"at step {latest or 0} of {steps}"
    raise InputError(f"--workdir={run.workdir}: stage {stage!r} is not finished ({at}); {remedy}{if_begun if latest else ''}")


def chosen_step(saves: Checkpoints, step: str, stage: str, run: Run) -> int:
    """The number of the save that `step`, as `saved_products` takes it, is; raises InputError if it is not there."""
    chosen = _chosen(saves, step, stage, run.config.checkpoint.best)
    run.log.say(f"{stage}  at step {chosen} of {run.config[stage].steps}")
    return chosen


def _digests(about: Mapping[str, Any]) -> dict[str, int]:
    """Of each item of a save: the last of its running digests."""
    return {item: list(leaves.values())[-1] for item, leaves in about["digests"].items() if leaves}


def _chosen(saves: Checkpoints, step: str, stage: str, figure: str) -> int:
    """The number of a save that is there."""
    steps = saves.steps()
    names = [str(each) for each in reversed(steps)]
    there = f"stage {stage!r} has saves of the steps {listed(names)}"
    if step == LATEST:
        return steps[-1]
    if step == BEST:
        if (best := saves.best()) is not None:
            return best
        why = f"none of them has a recorded {figure!r}" if figure else "config.checkpoint.best names no figure to judge them by"
        raise InputError(f"--step={BEST}: {there}, and {why}; choose one, or {LATEST}", names)
    if int(step) not in steps:
        raise InputError(f"--step={step}: {there}; choose one of them, {LATEST} or {BEST}", names)
    return int(step)
