"""From a config section to a `train.Stage`: the two kinds of stage that recipes are made of."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from didr_jax.builders import settings_of
from didr_jax.objectives import OBJECTIVES, Objective
from didr_jax.training.loop import Stage, step_rng
from didr_jax.training.optim import make_optimizer
from didr_jax.training.state import init_fit, init_game
from didr_jax.training.step import Networks, make_fit_step, make_game_step, no_noise
from didr_jax.types import PRNGKey, PyTree


def fit_stage(
    name: str,
    config,
    *,
    init_params: Callable[[], PyTree],
    loss: Callable,
    data: Callable[[np.random.Generator, int], PyTree],
    draw: Callable[[PRNGKey, int], PyTree] = no_noise,
    frozen: PyTree = None,
) -> Stage:
    """A stage that fits one network; its product is the moving average of the parameters.

    Args:
      name: of the stage and its config section (`config.fit` knobs).
      config: the whole config.
      init_params: makes the parameters to start from; traceable.
      loss: `(params, frozen, batch, noise) -> (per-sample loss [b], {name: [b]})`.
      data: `(rng, n) -> batch` of n samples.
      draw: `(key, n) -> noise` of n samples, on the devices; for a loss that needs any.
      frozen: what the loss reads besides.
    """
    section = config[name]
    tx = make_optimizer(section.optimizer, section.steps)
    return Stage(
        name=name,
        steps=section.steps,
        batch_size=section.batch_size,
        init=lambda: init_fit(init_params(), tx),
        step=make_fit_step(
            loss,
            tx,
            seed=config.seed,
            ema_decay=section.ema,
            draw=draw,
            micro_batches=section.micro_batches,
            unroll=config.unroll,
        ),
        frozen=frozen,
        batch=lambda step: data(step_rng(config.seed, name, step), section.batch_size),
        batch_axis=0,
        product=lambda state: state.ema,
    )


def game_stage(
    name: str,
    config,
    *,
    roles: Networks,
    init_generator: Callable[[], PyTree],
    init_ta: Callable[[], PyTree],
    conditions: Callable[[np.random.Generator, int], Any],
    frozen: PyTree,
    wrap: Callable[[Objective], Objective] = lambda objective: objective,
    like: tuple[PyTree, PyTree] | None = None,
) -> Stage:
    """A stage that trains a generator against its TA; its product is `{"generator": EMA, "ta": …}`.

    Args:
      name: of the stage and its config section (`config.game` knobs).
      config: the whole config.
      roles: the networks; a stage without reward has `roles.reward = None`.
      init_generator, init_ta: make the parameters to start from; traceable.
      like: shapes of what these two make; None: found by tracing them, so that they must not read files.
      conditions: `(rng, n) -> conditions` of n samples, a pytree of arrays `[n, ...]`.
      frozen: what reference and reward read.
      wrap: goes around the objective, to log more than it does.
    """
    section = config[name]
    tx_generator = make_optimizer(section.generator_optimizer, section.steps)
    tx_ta = make_optimizer(section.ta_optimizer, section.steps * section.ta_updates)
    rows, n = section.ta_updates + 1, section.batch_size

    init = lambda generator, ta: init_game(generator, ta, tx_generator, tx_ta)

    def batch(step):
        flat = conditions(step_rng(config.seed, name, step), rows * n)
        return jax.tree.map(lambda value: value.reshape(rows, n, *value.shape[1:]), flat)

    return Stage(
        name=name,
        steps=section.steps,
        batch_size=n,
        init=lambda: init(init_generator(), init_ta()),
        step=make_game_step(
            roles,
            wrap(OBJECTIVES[section.objective]),
            settings_of(section),
            tx_generator,
            tx_ta,
            seed=config.seed,
            guidance=section.guidance,
            ta_weighting=section.ta_weighting,
            ta_times=(section.ta_t_min, section.ta_t_max),
            generator_times=(section.generator_t_min, section.generator_t_max),
            ema_decay=section.ema,
            micro_batches=section.micro_batches,
            unroll=config.unroll,
        ),
        frozen=frozen,
        batch=batch,
        batch_axis=1,
        product=lambda state: {"generator": state.ema, "ta": state.ta},
        like=None if like is None else jax.eval_shape(init, *like),
    )
