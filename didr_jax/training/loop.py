"""The training loop: one for every stage of every recipe.

A stage is a jitted step, where its state begins, and where its batches come from.  A recipe chains
stages; each leaves a product (the parameters that later stages use).  A stage whose last step is
saved is finished and never redone; an interrupted one goes on from its newest save, exactly, on
whatever mesh and number of processes it then has.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from didr_jax.training import flops
from didr_jax.training.checkpoint import Checkpoints, code_version
from didr_jax.training.chips import peak_here
from didr_jax.training.exits import NotFinite, Preempted, StopRequest
from didr_jax.training.metrics import Progress, RunLog
from didr_jax.training.parallel import check_batches, create, make_mesh, put, put_batch, settle, shardings, with_places
from didr_jax.training.profiling import ProfileWindow
from didr_jax.training.watch import diagnosis, write_stopped
from didr_jax.types import InputError, PyTree


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
      name: of its section in the config and its folder of checkpoints.
      steps: how many.
      batch_size: samples per step, for the log.
      init: makes the state before the first step; traceable, and called only when a run begins: it may read files.
      step: `(state, frozen, batch) -> (state, metrics)`; pure.
      frozen: parameters that the step reads and never changes.
      batch: `step -> batch` of numpy arrays, a function of the step alone.
      batch_axis: which of their dimensions holds the samples.
      product: state -> what later stages use.
      like: shapes of the state; None: those that tracing `init` finds.
    """

    name: str
    steps: int
    batch_size: int
    init: Callable[[], Any]
    step: Callable
    frozen: PyTree
    batch: Callable[[int], PyTree]
    batch_axis: int
    product: Callable[[Any], PyTree]
    like: Any = None

    def shapes(self) -> Any:
        """Of the state, nothing read or computed."""
        return jax.eval_shape(self.init) if self.like is None else self.like

    def compiled(self, places: Any, mesh: Mesh) -> Callable:
        """The step as a jitted function that overwrites its state; `places`: where the state lives."""
        return jax.jit(self.step, donate_argnums=0, out_shardings=(places, NamedSharding(mesh, PartitionSpec())))


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a config trains.

    Attributes:
      stages: name -> builder `(products of earlier stages) -> Stage`.
      figures: `products -> {name: value}` of the generator that `align` left.
      evaluate: `(products, workdir, log) -> None`; writes summary.json and pictures.
      sample: `(products, workdir, log) -> None`; writes samples of the trained generator.
      check: `mode -> None`; raises InputError for what cannot be used, before anything is written.
      export: `(products, workdir, log) -> None`; writes the trained generator for other programs.
      score: `(workdir, log) -> None`; scores given images by the recipe's rewards.
      outline: `() -> Stage`, the main stage made of shapes: nothing is read (`plan`).
    """

    stages: dict[str, Callable[[dict[str, PyTree]], Stage]]
    figures: Callable[[dict[str, PyTree]], dict[str, float]]
    evaluate: Callable[[dict[str, PyTree], str, RunLog], None]
    sample: Callable[[dict[str, PyTree], str, RunLog], None]
    check: Callable[[str], None] = lambda mode: None
    export: Callable[[dict[str, PyTree], str, RunLog], None] | None = None
    score: Callable[[str, RunLog], None] | None = None
    outline: Callable[[], Stage] | None = None


def step_rng(seed: int, stage: str, step: int) -> np.random.Generator:
    """The host's randomness for the batch of one step: a function of its three arguments only."""
    return np.random.default_rng([seed, step, *stage.encode()])


@dataclasses.dataclass(frozen=True)
class Run:
    """What all stages of a run share."""

    config: Any
    workdir: str
    mesh: Mesh
    log: RunLog

    def saves(self, stage: str) -> Checkpoints:
        about = {"stage": stage, "code": code_version(), "jax": jax.__version__, "config": self.config.to_dict()}
        directory = os.path.join(self.workdir, "checkpoints", stage)
        return Checkpoints(directory, self.config.checkpoint, about, self.log.say)

    def places(self, tree: PyTree) -> PyTree:
        return shardings(tree, self.config, self.mesh)

    def like(self, stage: Stage) -> PyTree:
        """The stage's state, abstract and in its places."""
        shapes = stage.shapes()
        return with_places(shapes, self.places(shapes))


def run_stage(stage: Stage, label: str, run: Run, stop: StopRequest) -> PyTree:
    """Runs a stage to its end, from its newest whole save if there is one, and returns its product.

    Raises:
      NotFinite, Preempted, CannotSave: see `exits`; all but the last leave the newest state saved.
    """
    saves = run.saves(stage.name)
    try:
        like = run.like(stage)
        places = jax.tree.map(lambda a: a.sharding, like)
        restored = saves.restore_newest(like)
        if restored is None:
            saves.require_room(like)
            first, state = 0, create(stage.init, places)
        else:
            first, state = restored
            run.log.say(f"{label}  {'finished' if first == stage.steps else 'goes on from'} at step {first}")
        if first < stage.steps:
            state = _loop(stage, label, state, places, first, saves, run, stop)
        return stage.product(state)
    finally:
        saves.close()


def _loop(stage: Stage, label: str, state, places, first: int, saves: Checkpoints, run: Run, stop: StopRequest):
    config = run.config
    step_fn = stage.compiled(places, run.mesh)
    frozen = put(stage.frozen, run.places(stage.frozen))
    progress = Progress(run.log, label, stage.name, first, stage.steps, stage.batch_size)
    window = ProfileWindow(config.profile, stage.name, run.workdir)

    def look(done: int, metrics: dict) -> str | None:
        """Logs the figures of a step if it is their turn; says why to stop, if it is time to."""
        streak = int(metrics["streak"])
        if done % config.log.every == 0 or done in (first + 1, stage.steps):
            progress.report(done, _floats(metrics))
        if streak < config.watch.patience:
            return None
        message = diagnosis(label, done, _floats(metrics), streak)
        write_stopped(run.workdir, stage.name, done, _floats(metrics), message)
        return message

    previous = None  # metrics are read one step late, so that the devices never wait for the host
    for step in range(first, stage.steps):
        window.before(step - first, state)
        batch = put_batch(stage.batch(step), run.mesh, stage.batch_axis)
        if step == first and (peak := peak_here(config.log.peak_tflops)):
            progress.least = flops.count_jaxpr(step_fn.trace(state, frozen, batch).jaxpr.jaxpr) / peak
        state, metrics = settle(step_fn(state, frozen, batch))
        done, last = step + 1, step + 1 == stage.steps
        trouble = look(*previous) if previous else None
        if step == first:
            jax.block_until_ready(metrics)
            progress.started(done)
            _check_best(config.checkpoint.best, metrics, label, run.log)
        if last and not trouble:
            trouble = look(done, metrics)
        asked = stop.poll()
        if done % config.checkpoint.every == 0 or last or asked or trouble:
            saves.save(done, state, _floats(metrics) if config.checkpoint.best else None)
        if trouble or (asked and not last):
            window.close(state)
            saves.wait()
            raise NotFinite(f"{trouble}; saved at step {done}") if trouble else Preempted(_asked(label, done))
        previous = (done, metrics)
    window.close(state)
    return state


def _floats(metrics: dict) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if name != "streak"}


def _asked(label: str, done: int) -> str:
    return f"{label} was asked to stop and is saved at step {done}; the same command goes on"


def _check_best(name: str, metrics: dict, label: str, log: RunLog) -> None:
    if name and name not in metrics:
        log.say(f"{label}  logs no {name!r}, so checkpoint.best keeps nothing here; it logs {', '.join(metrics)}")


def load_products(recipe: Recipe, config, workdir: str) -> dict[str, PyTree]:
    """The products of all stages of a finished run.

    Raises:
      InputError: naming the first stage that is not finished, or a save that cannot be read.
    """
    run = Run(config, workdir, make_mesh(config.mesh), RunLog(workdir))
    products = {}
    with jax.set_mesh(run.mesh):
        for name in config.stages:
            stage = recipe.stages[name](products)
            saves = run.saves(name)
            latest = saves.latest()
            if latest == stage.steps:
                latest, state = saves.restore_newest(run.like(stage))
            saves.close()
            if latest != stage.steps:
                at = f"at step {latest or 0} of {stage.steps}"
                raise InputError(f"--workdir={workdir}: stage {name!r} is not finished ({at}); run --mode=train first")
            products[name] = stage.product(state)
    return products


def train(recipe: Recipe, config, workdir: str, log: RunLog) -> dict[str, PyTree]:
    """Runs all stages of `config.stages` in order and returns their products.

    Raises:
      InputError: the mesh does not fit the devices, or a batch the mesh.
      NotFinite, Preempted, CannotSave: see `exits`.
    """
    run = Run(config, workdir, make_mesh(config.mesh), log)
    check_batches(config, run.mesh)
    products = {}
    with jax.set_mesh(run.mesh), StopRequest() as stop:
        for i, name in enumerate(config.stages):
            label = f"{name} ({i + 1}/{len(config.stages)})"
            products[name] = run_stage(recipe.stages[name](products), label, run, stop)
    return products
