"""Saving and restoring the whole state of a stage, so that nothing trained is lost.

Saves are asynchronous and atomic (orbax writes beside and renames): a process killed at any moment
leaves the previous save intact.  A save is made of items, each of which can be read alone:

    state   what only training needs: trained parameters, optimisers, counters; the data position and all
            randomness follow from the step
    ...     each product of the stage (a moving average, say) under its own name
    meta    what the save says of itself (`save_meta`)

A save that cannot be read back exactly is named, set aside in `corrupt/`, and the one before it is used.
"""

import contextlib
import errno
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from didr_jax.checks import listed
from didr_jax.exits import CannotSave
from didr_jax.training.digests import shapes_of
from didr_jax.training.parallel import with_places
from didr_jax.training.save_meta import changed_leaf, require_format, require_leaves, require_origin, said_of
from didr_jax.training.startup import is_first_process, on_first
from didr_jax.training.workdir import CORRUPT
from didr_jax.types import InputError, PyTree, Weights
from didr_jax.whole_files import probe

_REMEDY = "--mode=train goes on from an older save and makes it again"
STATE = "state"  # the item that holds what only training needs


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    before = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _bytes(tree: PyTree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


class Checkpoints:
    """The saves of one stage, under `directory`, numbered by step.

    Args:
      directory: made if missing.
      section: the policy, `config.checkpoint`.
      about: what every save says of its origin, as JSON holds it; by `BINDING` it is held against it.
      say: prints a line for the user.
      largest: a figure besides `section.best`, the save with the largest value of which is kept too; empty: none.
      read_only: nothing is made, removed or saved, whoever else trains here.
    """

    def __init__(
        self,
        directory: str,
        section,
        about: dict | None = None,
        say: Callable[[str], None] = print,
        *,
        largest: str = "",
        read_only: bool = False,
    ):
        self.directory, self._about, self._say, self._best = os.path.abspath(directory), about or {}, say, section.best
        self._sign = 1 if section.best_mode == "max" else -1
        self._judged_by = {name: sign for name, sign in ((section.best, self._sign), (largest, 1)) if name}
        keep = [checkpoint_managers.LatestN(section.keep)]
        if section.keep_every:
            keep.append(checkpoint_managers.EveryNSteps(section.keep_every))
        for name, sign in self._judged_by.items():
            figure = lambda metrics, name=name, sign=sign: sign * metrics[name] if name in metrics else -math.inf
            keep.append(checkpoint_managers.BestN(get_metric_fn=figure, n=1, keep_checkpoints_without_metrics=False))
        if read_only:
            options = ocp.CheckpointManagerOptions(create=False, read_only=True, save_interval_steps=0)
        else:
            policy = checkpoint_managers.AnyPreservationPolicy(keep)
            # best_fn is what makes orbax write figures down: without, a run that goes on would forget its best save
            options = ocp.CheckpointManagerOptions(
                create=True, preservation_policy=policy, best_fn=figure if self._judged_by else None
            )
        with _silent() if read_only else contextlib.nullcontext():  # of a reader, orbax warns that it reads
            self._manager = ocp.CheckpointManager(self.directory, options=options)

    def latest(self) -> int | None:
        """The step of the newest complete save, or None."""
        return self._manager.latest_step()

    def note(self, step: int) -> str:
        """The `note` of a save; empty if there is none, or it cannot be read."""
        try:
            return str(self._meta(step).get("note", ""))
        except Exception:  # what is wrong with a save is for those to say who read all of it
            return ""

    def steps(self) -> list[int]:
        """The steps of all complete saves, in order."""
        return sorted(self._manager.all_steps())

    def best(self) -> int | None:
        """The step of the complete save that the policy's figure likes best; None if it was recorded for none."""
        found = {step: (self._manager.metrics(step) or {}).get(self._best) for step in self.steps()}
        judged = {step: value for step, value in found.items() if value is not None}
        return max(judged, key=lambda step: self._sign * judged[step], default=None)

    def require_room(self, shapes: PyTree) -> None:
        """Raises InputError, in every process, if one more save of `shapes` would not fit on the disk."""

        def check():
            need = _bytes(shapes)
            free = shutil.disk_usage(self.directory).free
            if free < need:
                raise InputError(
                    f"--workdir: a checkpoint needs {need / 1e9:.3g} GB and {self.directory} has {free / 1e9:.3g} GB "
                    "free; make room or choose another"
                )

        on_first(check)

    def save(self, step: int, items: Mapping[str, PyTree], figures: dict[str, float] | None = None, note: str = "") -> None:
        """Begins to save the items; returns as soon as they have left the devices.

        Args:
          step: its number; nothing happens if it is saved already.
          items: name -> nested dict of arrays.
          figures: what is logged of this step; the policy's best is judged by it.
          note: why the run stops here, if it does so for a fault.

        Raises:
          CannotSave: this save could not be begun, or the one before it not be finished.
        """
        if step == self._manager.latest_step():
            return
        meta = said_of(step, self._about, items, note)
        judged = {name: figures[name] for name in self._judged_by if np.isfinite(figures.get(name, np.nan))} if figures else {}
        with self._writing(step):
            self._probe(_bytes(items))
            contents = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
            args = ocp.args.Composite(**contents, meta=ocp.args.JsonSave(meta))
            self._manager.save(step, args=args, metrics=judged or None)

    def _probe(self, need: int) -> None:
        """Raises OSError where orbax would only find out, minutes later, in one of its threads."""
        if is_first_process():
            probe(os.path.join(self.directory, ".probe"))
            if shutil.disk_usage(self.directory).free < need:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @contextlib.contextmanager
    def _writing(self, step: int | None):
        try:
            yield
        except Exception as error:  # orbax hands on whatever its threads met
            cause = " ".join(str(error).split())[:300]
            with contextlib.suppress(Exception):
                self._manager.reload()
            at = "" if step is None else f" at step {step}"
            raise CannotSave(
                f"could not write a checkpoint to {self.directory}{at} ({type(error).__name__}: {cause}); "
                f"the last good one is of step {self._manager.latest_step()}. Mend that and start again"
            ) from error

    def restore_newest(self, shapes: Mapping[str, PyTree], whole: bool = True) -> tuple[int, dict[str, PyTree]] | None:
        """The newest save that is whole.

        Args:
          shapes: of the items, with the shardings of today's mesh.
          whole: these are all items of a save; otherwise others are left unread.

        Returns:
          (step, items), or None if nothing was ever saved.

        Raises:
          InputError: the newest save is of other networks or optimisers, or of an older version (nothing is
            touched), or there are saves and none can be read.
        """
        damaged: dict[str, str] = {}  # where it is now -> what is wrong with it
        while (step := self._manager.latest_step()) is not None:
            items, problem = self._restore(step, shapes, whole)
            if problem is None:
                return step, items
            aside = self._set_aside(step)
            damaged[aside] = problem
            self._say(f"checkpoint {self.directory}/{step} is damaged ({problem}); moved to {aside}")
        if damaged:
            raise InputError(
                f"no checkpoint of {self.directory} can be read (moved to {listed(list(damaged))}; "
                f"{next(iter(damaged.values()))}); put back a good copy, or start again to train this stage from its beginning",
                list(damaged),
            )
        return None

    def restore(self, step: int, shapes: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """The items of a save, as `restore_newest`; raises InputError if it is damaged, and leaves it where it is."""
        items, problem = self._restore(step, shapes, whole=True)
        if problem is not None:
            raise InputError(f"checkpoint {self.directory}/{step} is damaged ({problem}); choose another")
        return items

    def about(self, step: int) -> dict:
        """What a save says of itself: `leaves` {item: {path: dtype and shape}}, `config`, `code`, …

        Raises:
          InputError: an older version's save, or one that is damaged.
        """
        try:
            return self._meta(step)
        except InputError:
            raise
        except Exception as error:  # whatever orbax and the file system find wrong
            raise InputError(f"checkpoint {self.directory}/{step} is damaged ({_line(error)}); {_REMEDY}") from None

    def products(self, step: int) -> dict[str, Weights]:
        """The products in a save, each read alone and only when it is loaded; their shapes are those that the save tells.

        Raises:
          InputError: an older version's save; and, when loaded, one that cannot be read back exactly.
        """
        leaves = self.about(step)["leaves"]
        return {name: self._product(step, name, shapes_of(leaves[name])) for name in leaves if name != STATE}

    def _product(self, step: int, name: str, saved: PyTree) -> Weights:
        def fill(shapes: PyTree, places) -> PyTree:
            places = places or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            if isinstance(places, jax.sharding.Sharding):
                places = jax.tree.map(lambda _, place=places: place, saved)
            items, problem = self._restore(step, {name: with_places(saved, places)}, whole=False)
            if problem is not None:
                raise InputError(f"checkpoint {self.directory}/{step}: {name} is damaged ({problem}); {_REMEDY}")
            return jax.tree.map(lambda a, wanted: a.astype(wanted.dtype), items[name], shapes)

        return Weights(saved, fill)

    def _meta(self, step: int) -> dict:
        """Raises InputError for a save of an older version, and whatever orbax meets in one that is damaged."""
        meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        require_format(meta, f"{self.directory}/{step}")
        return meta

    def _restore(self, step: int, shapes: Mapping[str, PyTree], whole: bool):
        """(items, None), or (None, what is wrong with the save); the same answer in every process.

        `whole`: the save must hold these items and no others.
        """
        items, problem = None, None
        try:
            meta = self._meta(step)
            require_origin(meta, step, self._about)
            require_leaves(meta, shapes, f"{self.directory}/{step}", whole)
            args = {name: ocp.args.StandardRestore(tree) for name, tree in shapes.items()}
            restored = self._manager.restore(step, args=ocp.args.Composite(**args))
            items = {name: restored[name] for name in shapes}
            wrong = changed_leaf(meta, items)
            problem = f"{wrong} differs from what was saved" if wrong else None
        except InputError:
            raise
        except Exception as error:  # whatever orbax and the file system find wrong
            problem = _line(error)
        if jax.process_count() > 1:
            if multihost_utils.process_allgather(np.asarray(problem is not None)).any() and problem is None:
                problem = "another process cannot read it"
        return (items, None) if problem is None else (None, problem)

    def _set_aside(self, step: int) -> str:
        """Moves a save out of the way, keeping it; returns where to."""
        stage = os.path.basename(self.directory)
        target = os.path.join(os.path.dirname(self.directory), CORRUPT, f"{stage}-{step}-{time.time_ns()}")
        if is_first_process():
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.replace(os.path.join(self.directory, str(step)), target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"{stage}-{step} is set aside")  # the same words, whatever the clocks say
        self._manager.reload()
        return target

    def wait(self) -> None:
        """Blocks until every save that was begun is on disk; raises CannotSave."""
        with self._writing(None):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """As `wait`, and lets go of the directory."""
        try:
            self.wait()
        finally:
            with contextlib.suppress(Exception):
                self._manager.close()
