"""Beginning from what another run has left: `init_from=WORKDIR[@STEP]`, the way to try several β from one starting point.

    the last stage     begins with what the same stage there had become: trained parameters, moving averages and, where
                       shapes and optimisers agree, moments.  Steps, learning rates and the data begin anew
    the stages before  are taken as they are, if they are finished there

The other workdir is only read.  What was taken of it is copied once the first step is done, so that the run stands alone.
"""

import dataclasses
import os
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from didr_jax.checks import listed
from didr_jax.exits import CannotSave
from didr_jax.training.checkpoint import Checkpoints
from didr_jax.training.digests import describe
from didr_jax.training.optim import begun_again
from didr_jax.training.run import Run
from didr_jax.training.stages import Stage
from didr_jax.training.startup import is_first_process
from didr_jax.training.workdir import newest_step, read_config, saved_steps
from didr_jax.types import InputError, Weights

COUNTERS = ("step", "skipped", "streak")  # of a state


class Origin(NamedTuple):
    """A workdir and the step of a save there; None: the newest."""

    workdir: str
    step: int | None


def origin_of(config) -> Origin | None:
    """What `config.init_from` says; None if it is empty."""
    if not config.init_from:
        return None
    folder, at, step = config.init_from.rpartition("@")
    return (
        Origin(os.path.expanduser(folder), int(step))
        if at and step.isdecimal()
        else Origin(os.path.expanduser(config.init_from), None)
    )


def pin(config, workdir: str) -> None:
    """Checks `config.init_from`, and writes the number of the newest save into it where it names none.

    A run that has a save of its last stage needs nothing more of the other workdir.

    Raises:
      InputError: no such workdir or save, or an earlier stage that is at another step there than this config's last.
    """
    origin = origin_of(config)
    if origin is None:
        return
    last = config.stages[-1]
    if origin.step is None:
        before = str((read_config(workdir) or ({},))[0].get("init_from") or "")
        if before.rpartition("@")[0] == config.init_from:  # a run that goes on begins where it began
            config.init_from = before
            origin = origin_of(config)
    if newest_step(workdir, last) is not None:
        return
    assert origin is not None
    _check(config, origin, workdir)
    newest = newest_step(origin.workdir, last)
    if jax.process_count() > 1:  # another process may be training there
        newest = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if newest is None else newest)))
    if origin.step is None and newest not in (None, -1):
        config.init_from = f"{config.init_from}@{newest}"


def _check(config, origin: Origin, workdir: str) -> None:
    key, last = f"config.init_from = {config.init_from!r}", config.stages[-1]
    if read_config(origin.workdir) is None:
        raise InputError(f"{key}: {origin.workdir} is not the workdir of a run (it has no config.json)")
    if os.path.realpath(origin.workdir) == os.path.realpath(workdir):
        raise InputError(f"{key} is this run's own workdir; give --workdir another")
    steps = {name: saved_steps(origin.workdir, name) for name in config.stages}
    if not any(steps.values()):
        raise InputError(f"{key}: it has no save of {' or '.join(config.stages)}")
    if origin.step is not None and origin.step not in steps[last]:
        names = [str(each) for each in reversed(steps[last])]
        raise InputError(
            f"{key}: the saves of stage {last!r} there are of the steps {listed(names) or 'none'}; choose one", names
        )
    for name in config.stages[:-1]:
        if steps[name] and steps[name][-1] != config[name].steps:
            raise InputError(
                f"{key}: stage {name!r} is at step {steps[name][-1]} there, and config.{name}.steps = {config[name].steps}; set "
                f"config.{name}.steps={steps[name][-1]} to take it as it is"
            )


def taken(name: str, run: Run) -> dict[str, Weights] | None:
    """The products of a stage before the last that is finished in the other workdir, and has not begun in this one."""
    origin = origin_of(run.config)
    if origin is None or name == run.config.stages[-1] or newest_step(run.workdir, name) is not None:
        return None
    step = newest_step(origin.workdir, name)
    if step is None:
        return None
    run.log.say(f"{name}  taken from {origin.workdir} at step {step}")
    return _saves(origin, name, run).products(step)


def keep(run: Run) -> None:
    """Copies what was `taken` into the workdir; raises CannotSave."""
    origin = origin_of(run.config)
    if origin is None or not is_first_process():
        return
    for name in run.config.stages[:-1]:
        step = newest_step(origin.workdir, name)
        if step is None or newest_step(run.workdir, name) is not None:
            continue
        target = run.path("checkpoints", name, str(step))
        try:
            shutil.rmtree(f"{target}.copying", ignore_errors=True)
            shutil.copytree(os.path.join(origin.workdir, "checkpoints", name, str(step)), f"{target}.copying")
            os.replace(f"{target}.copying", target)
        except OSError as error:
            shutil.rmtree(f"{target}.copying", ignore_errors=True)
            raise CannotSave(
                f"could not copy stage {name} of {origin.workdir} to {target} ({error}); make room and start again"
            ) from error


def begun(stage: Stage, shapes: Any, places: Any, run: Run) -> Any:
    """The state of the last stage before its first step, from that of the other workdir; None: not to be had there.

    Raises:
      InputError: of other networks, or damaged.
    """
    origin = origin_of(run.config)
    if origin is None or stage.name != run.config.stages[-1]:
        return None
    saves = _saves(origin, stage.name, run)
    step = saves.latest() if origin.step is None else origin.step
    if step is None:
        return None
    items = stage.split(shapes)
    about = saves.about(step)
    same = about["leaves"] == {name: describe(tree) for name, tree in items.items()}
    if same and _optimisers(about["config"], stage.name) == _optimisers(run.config.to_dict(), stage.name):
        state, also = _anew(stage.join(saves.restore(step, items)), places), "its optimisers"
    else:
        wanted = stage.made_of(shapes)
        _require_shapes(about["leaves"], wanted, run.config.init_from)
        found = saves.products(step)
        loaded = {name: found[name].fill(tree, jax.tree.map(lambda a: a.sharding, tree)) for name, tree in wanted.items()}
        state, also = stage.init(places, loaded), "fresh optimisers (its own do not agree with this config's)"
    run.log.say(f"{stage.name}  begins from {origin.workdir} at step {step}, with {also}")
    return state


def _saves(origin: Origin, stage: str, run: Run) -> Checkpoints:
    return Checkpoints(os.path.join(origin.workdir, "checkpoints", stage), run.config.checkpoint, say=run.log.say, read_only=True)


def _optimisers(config: Any, stage: str) -> dict[str, str]:
    """Names of the optimisers of a stage."""
    return {key: part["name"] for key, part in config.get(stage, {}).items() if key.endswith("optimizer")}


def _anew(state: Any, places: Any) -> Any:
    """The state with no step done yet."""

    def begin(state):
        fields = vars(state)
        zero = {name: jnp.zeros_like(fields[name]) for name in COUNTERS}
        moments = {name: begun_again(value) for name, value in fields.items() if name.startswith("opt")}
        return dataclasses.replace(state, **zero, **moments)

    return jax.jit(begin, donate_argnums=0, out_shardings=places)(state)


def _require_shapes(leaves: dict, wanted: dict, given: str) -> None:
    sizes = lambda table: {path: text.partition("[")[2] for path, text in table.items()}
    for name, tree in wanted.items():
        here, there = sizes(describe(tree)), sizes(leaves.get(name, {}))
        differing = sorted(path for path in here.keys() | there.keys() if here.get(path) != there.get(path))
        if differing:
            path = differing[0]
            says = lambda table, path=path: f"[{table[path]}" if path in table else "absent"
            raise InputError(
                f"config.init_from = {given!r}: its {name} is of other networks: {path} is {says(there)} there and "
                f"{says(here)} here, {len(differing)} leaves differ"
            )
