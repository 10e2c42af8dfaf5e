"""What a stage of training is, and the two kinds of stage that recipes are made of.

A stage is shapes, and how to fill them: of its state, of the parameters that its step reads and never changes, of
a batch.  Building one reads nothing; what is needed is read when the stage runs, straight into its place.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from didr_jax.builders import settings_of
from didr_jax.diffused_reward import resolve
from didr_jax.objectives import OBJECTIVES, Objective
from didr_jax.training.checkpoint import STATE
from didr_jax.training.evaluation import Evaluator
from didr_jax.training.fit import make_fit_step, no_noise
from didr_jax.training.optim import learning_rate, make_optimizer
from didr_jax.training.parallel import create
from didr_jax.training.pull import Measure, measures_of
from didr_jax.training.state import init_fit, init_game
from didr_jax.training.step import Networks, make_game_step
from didr_jax.types import Array, InputError, PRNGKey, PyTree, Weights

Items = dict[str, PyTree]
WHOLE = slice(None)


class Settled(NamedTuple):
    """What a config leaves to the machine ("auto") as `{key: word}`, and why, in a line; empty: it says all itself."""

    words: Mapping[str, str] = {}
    why: str = ""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
      name: of its section in the config and its folder of checkpoints.
      steps: how many.
      batch_size: samples per step, for the log.
      shapes: of the state, a dataclass of `training.state`.
      init: `(shardings of the state, products) -> state` before the first step; `products`: arrays by name, of another run,
        to begin with; without, the stage's own start.
      step: `(state, frozen, batch) -> (state, metrics)`; pure.
      frozen: the parameters that the step reads and never changes, by name.
      batch: `(step, rows) -> batch` of numpy arrays: those of some samples (an index of `batch_size`), or of all; a
        function of these two alone, which reads nothing of other samples.
      batch_axis: which of their dimensions holds the samples.
      products: what the stage leaves, `{name: field of the state}`; each is saved as an item of its own.
      batch_shapes: of a batch, for plans; None: those of the first one, which can then be made without reading.
      evals: by name, what judges the stage while it runs (`evaluation`).
      rates: learning rates by name, `steps done -> rate of the next update`, for the log.
      about: lines for the log before the first step; only called where the stage runs.
      settled: finds, once, what the config leaves to the machine, which takes seconds; the step asks for it when it is traced.
      measures: of the reward and of each of its parts, how hard they pull at the generator (`training.pull`).
    """

    name: str
    steps: int
    batch_size: int
    shapes: Any
    init: Callable[..., Any]
    step: Callable
    frozen: Mapping[str, Weights]
    batch: Callable[..., PyTree]
    batch_axis: int
    products: Mapping[str, str]
    batch_shapes: PyTree = None
    evals: Mapping[str, Evaluator] = dataclasses.field(default_factory=dict)
    rates: Mapping[str, Callable[[int], float]] = dataclasses.field(default_factory=dict)
    about: Callable[[], Sequence[str]] = tuple
    settled: Callable[[], Settled] = Settled
    measures: Mapping[str, Measure] = dataclasses.field(default_factory=dict)

    def compiled(self, places: Any, mesh: Mesh) -> jax.stages.Wrapped:
        """The step as a jitted function that overwrites its state; `places`: where the state lives."""
        return jax.jit(self.step, donate_argnums=0, out_shardings=(places, NamedSharding(mesh, PartitionSpec())))

    def split(self, state: Any) -> Items:
        """A state, or its shapes, as the items of a save: the products, and all that only training needs."""
        fields = dict(vars(state))
        products = {name: fields.pop(field) for name, field in self.products.items()}
        return {STATE: fields, **products}

    def join(self, items: Items) -> Any:
        """The inverse of `split`."""
        products = {field: items[name] for name, field in self.products.items()}
        return type(self.shapes)(**items[STATE], **products)

    def made_of(self, state: Any) -> Items:
        """The products in a state, or their shapes."""
        return {name: getattr(state, field) for name, field in self.products.items()}


def step_rng(seed: int, stage: str, step: int) -> np.random.Generator:
    """The host's randomness for the batch of one step: a function of its three arguments only."""
    return np.random.default_rng([seed, step, *stage.encode()])


def fit_stage(
    name: str,
    config,
    *,
    start: Weights,
    loss: Callable,
    data: Callable[[np.random.Generator, int], PyTree],
    draw: Callable[[PRNGKey, int], PyTree] = no_noise,
    frozen: Mapping[str, Weights] | None = None,
    evals: Mapping[str, Evaluator] | None = None,
) -> Stage:
    """A stage that fits one network; its product `params` is the moving average of the parameters.

    Args:
      name: of the stage and its config section (`config.fit` knobs).
      config: the whole config.
      start: the parameters to start from.
      loss: `(params, frozen, batch, noise) -> (per-sample loss [b], {name: [b]})`.
      data: `(rng, n) -> batch` of n samples; all of them are drawn in every process, so they should be cheap.
      draw: `(key, n) -> noise` of n samples, on the devices; for a loss that needs any.
      frozen: what the loss reads besides.
      evals: see `Stage`.
    """
    section = config[name]
    tx = make_optimizer(section.optimizer, section.steps)
    make = lambda params: init_fit(params, tx)

    def init(places, products=None):
        params = products["params"] if products else start.load(places.params)
        return create(lambda: make(params), places)

    return Stage(
        name=name,
        steps=section.steps,
        batch_size=section.batch_size,
        shapes=jax.eval_shape(make, start.shapes),
        init=init,
        step=make_fit_step(
            loss,
            tx,
            seed=config.seed,
            ema_decay=section.ema,
            draw=draw,
            micro_batches=section.micro_batches,
            unroll=config.unroll,
        ),
        frozen=frozen or {},
        batch=lambda step, rows=WHOLE: jax.tree.map(
            lambda a: a[rows], data(step_rng(config.seed, name, step), section.batch_size)
        ),
        batch_axis=0,
        products={"params": "ema"},
        evals=evals or {},
        rates={"lr": _rate(section.optimizer, section.steps)},
    )


def _rate(section, updates: int, each: int = 1) -> Callable[[int], float]:
    """Of an optimiser with so many updates in a stage, `each` of them in a step."""
    course = learning_rate(section, updates)
    return lambda step: float(course(step * each))


def _logged(config, steps: int) -> Callable[[Array], Array] | None:
    """Whether the step after so many is logged, or judged by `checkpoint.best` when it is saved; None: all are.

    Of a run that goes on, the first line is one step after its save: it has the reward if it is one of these.
    """
    if config.log.every == 1:
        return None
    every = [config.log.every, *([config.checkpoint.every] if config.checkpoint.best else [])]
    return lambda step: functools.reduce(operator.or_, [(step + 1) % n == 0 for n in every], (step == 0) | (step + 1 == steps))


def game_stage(
    name: str,
    config,
    *,
    networks: Networks,
    generator: Weights,
    ta: Weights,
    conditions: Callable[[np.random.Generator, int], Any],
    read: Callable[[Any, Any], Any] = lambda some, drawn: some,
    frozen: Mapping[str, Weights] | None = None,
    objective: Objective | None = None,
    condition_shapes: PyTree = None,
    recompute_steps: bool = True,
    evals: Mapping[str, Evaluator] | None = None,
    about: Callable[[], Sequence[str]] = tuple,
) -> Stage:
    """A stage that trains a generator against its online score network (TA).

    A "game": each of the two is trained against what the other has become.  Products: `generator`, the moving average
    of the generator, and `ta`.

    Args:
      name: of the stage and its config section (`config.game` knobs).
      config: the whole config.
      networks: what is trained and against what; a stage without reward has `networks.reward = None`.
      generator, ta: the parameters to start from.
      conditions: `(rng, n) -> drawn` of n samples, a pytree of arrays `[n, ...]`: conditions, or which ones they are.
      read: `(some [k, ...], drawn) -> conditions [k, ...]` of some of what was drawn.
      frozen: what the networks read besides their own parameters.
      objective: in place of the one that the section names.
      condition_shapes: of the conditions of one sample, `[1, ...]`, for plans; None: `conditions` reads nothing.
      recompute_steps: `Estimate.remat`: whether a differentiated short denoising recomputes its steps.
      evals, about: see `Stage`; the objective and its numbers are told before `about`.

    Raises:
      InputError: an objective that needs a reward, in a stage that has none: it would be another one without a word.
    """
    section = config[name]
    objective = objective or OBJECTIVES[section.objective]
    if objective.needs_reward and networks.reward is None:
        raise InputError(f"config.{name}.objective = {section.objective!r} needs a reward, and stage {name!r} has none")
    tx_generator = make_optimizer(section.generator_optimizer, section.steps)
    tx_ta = make_optimizer(section.ta_optimizer, section.steps * section.ta_updates)
    updates, n = section.ta_updates + 1, section.batch_size
    make = lambda generator, ta: init_game(generator, ta, tx_generator, tx_ta, section.ema_dtype)

    def init(places, products=None):
        if products:  # averages, whose type may be another one
            as_made = lambda arrays, weights: jax.tree.map(lambda a, made: a.astype(made.dtype), arrays, weights.shapes)
            start = as_made(products["generator"], generator), as_made(products["ta"], ta)
        else:
            start = generator.load(places.generator), ta.load(places.ta)
        return create(lambda: make(*start), places)

    def batch(step, rows=WHOLE):
        drawn = conditions(step_rng(config.seed, name, step), updates * n)
        mine = jax.tree.map(lambda a: a.reshape(updates, n, *a.shape[1:])[:, rows].reshape(-1, *a.shape[1:]), drawn)
        return jax.tree.map(lambda a: a.reshape(updates, -1, *a.shape[1:]), read(mine, drawn))

    def told():
        reward = networks.reward is not None
        numbers = f", estimator {resolve(section.estimator)}, beta {section.beta:g}" if reward and objective.needs_reward else ""
        numbers += (
            "" if section.tilt == "global" else f", {section.tilt} tilt (t0 {section.tilt_t0:g}, anchor {section.tilt_anchor:g})"
        )
        return (
            f"objective {section.objective}{numbers}, guidance {section.guidance:g}, {section.ta_updates} TA updates a step",
            *about(),
        )

    settings = settings_of(section)
    settings = dataclasses.replace(settings, estimate=dataclasses.replace(settings.estimate, remat=recompute_steps))
    generator_times = section.generator_t_min, section.generator_t_max
    many = lambda a: jax.ShapeDtypeStruct((updates, n, *a.shape[1:]), a.dtype)
    return Stage(
        name=name,
        steps=section.steps,
        batch_size=n,
        shapes=jax.eval_shape(make, generator.shapes, ta.shapes),
        init=init,
        step=make_game_step(
            networks,
            objective,
            settings,
            tx_generator,
            tx_ta,
            seed=config.seed,
            guidance=section.guidance,
            ta_weighting=section.ta_weighting,
            ta_times=(section.ta_t_min, section.ta_t_max),
            generator_times=generator_times,
            ema_decay=section.ema,
            micro_batches=section.micro_batches,
            unroll=config.unroll,
            ta_reuse=section.ta_reuse,
            ta_after=section.ta_after,
            due=_logged(config, section.steps),
        ),
        frozen=frozen or {},
        batch=batch,
        batch_axis=1,
        products={"generator": "ema", "ta": "ta"},
        batch_shapes=None if condition_shapes is None else jax.tree.map(many, condition_shapes),
        evals=evals or {},
        rates={
            "lr": _rate(section.generator_optimizer, section.steps),
            "lr_ta": _rate(section.ta_optimizer, section.steps * section.ta_updates, section.ta_updates),
        },
        about=told,
        measures=measures_of(
            networks, objective, settings, guidance=section.guidance, times=generator_times, unroll=config.unroll
        ),
    )
