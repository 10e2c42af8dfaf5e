"""The training loop: one for every stage of every recipe.

A stage is a jitted step, where its state begins, and where its batches come from.  A recipe chains
stages; each leaves a product (the parameters that later stages use).  A stage whose last step is
saved is finished and never redone; an interrupted one goes on from its newest save, exactly.
"""

import dataclasses
import os
from typing import Any, Callable

import jax
import numpy as np

from didr_jax.checkpoint import Checkpoints, abstract
from didr_jax.metrics import Progress, RunLog
from didr_jax.types import InputError, PyTree


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
      name: of its section in the config and its folder of checkpoints.
      steps: how many.
      batch_size: samples per step, for the log.
      init: makes the state before the first step; traceable.
      step: `(state, frozen, batch) -> (state, metrics)`; pure.
      frozen: parameters that the step reads and never changes.
      batch: `step -> batch`, a function of the step alone.
      product: state -> what later stages use.
    """

    name: str
    steps: int
    batch_size: int
    init: Callable[[], Any]
    step: Callable
    frozen: PyTree
    batch: Callable[[int], PyTree]
    product: Callable[[Any], PyTree]


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
    """

    stages: dict[str, Callable[[dict[str, PyTree]], Stage]]
    figures: Callable[[dict[str, PyTree]], dict[str, float]]
    evaluate: Callable[[dict[str, PyTree], str, RunLog], None]
    sample: Callable[[dict[str, PyTree], str, RunLog], None]
    check: Callable[[str], None] = lambda mode: None
    export: Callable[[dict[str, PyTree], str, RunLog], None] | None = None
    score: Callable[[str, RunLog], None] | None = None


def step_rng(seed: int, stage: str, step: int) -> np.random.Generator:
    """The host's randomness for the batch of one step: a function of its three arguments only."""
    return np.random.default_rng([seed, step, *stage.encode()])


def run_stage(stage: Stage, label: str, workdir: str, config, log: RunLog) -> PyTree:
    """Runs a stage to its end, from its newest save if there is one, and returns its product."""
    saves = Checkpoints(os.path.join(workdir, "checkpoints", stage.name), config.checkpoint.keep)
    try:
        first = saves.latest()
        if first is None:
            first, state = 0, jax.jit(stage.init)()
        else:
            state = saves.restore(first, abstract(stage.init))
            log.say(f"{label}  {'finished' if first == stage.steps else 'goes on from'} at step {first}")
        if first < stage.steps:
            state = _loop(stage, label, state, first, saves, config, log)
        return stage.product(state)
    finally:
        saves.close()


def _loop(stage: Stage, label: str, state, first: int, saves: Checkpoints, config, log: RunLog):
    step_fn = jax.jit(stage.step, donate_argnums=0)
    progress = Progress(log, label, stage.name, first, stage.steps, stage.batch_size)
    pending = None  # metrics are read one step late, so that the devices never wait for the host
    for step in range(first, stage.steps):
        state, metrics = step_fn(state, stage.frozen, stage.batch(step))
        done = step + 1
        if pending is not None:
            progress.report(pending[0], {name: float(value) for name, value in pending[1].items()})
            pending = None
        if step == first:
            jax.block_until_ready(metrics)
            progress.started(done)
        if done % config.log.every == 0 or done == stage.steps or step == first:
            pending = (done, metrics)
        if done % config.checkpoint.every == 0 or done == stage.steps:
            saves.save(done, state)
    progress.report(pending[0], {name: float(value) for name, value in pending[1].items()})
    return state


def load_products(recipe: Recipe, config, workdir: str) -> dict[str, PyTree]:
    """The products of all stages of a finished run.

    Raises:
      InputError: naming the first stage that is not finished.
    """
    products = {}
    for name in config.stages:
        stage = recipe.stages[name](products)
        saves = Checkpoints(os.path.join(workdir, "checkpoints", name), config.checkpoint.keep)
        latest = saves.latest()
        if latest != stage.steps:
            at = f"at step {latest or 0} of {stage.steps}"
            raise InputError(f"--workdir={workdir}: stage {name!r} is not finished ({at}); run --mode=train first")
        products[name] = stage.product(saves.restore(latest, abstract(stage.init)))
        saves.close()
    return products


def train(recipe: Recipe, config, workdir: str, log: RunLog) -> dict[str, PyTree]:
    """Runs all stages of `config.stages` in order and returns their products."""
    products = {}
    for i, name in enumerate(config.stages):
        label = f"{name} ({i + 1}/{len(config.stages)})"
        products[name] = run_stage(recipe.stages[name](products), label, workdir, config, log)
    return products
