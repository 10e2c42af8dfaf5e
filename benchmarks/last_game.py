"""The networks of a text-to-image run as its last step left them, and what its generator makes: for `ta_precision.py`, `ta_fit.py`."""

from typing import Any, NamedTuple

import jax

from didr_jax import recipes
from didr_jax.planning.plan import main_stage
from didr_jax.saved_config import get_config
from didr_jax.training.calibration import state_at
from didr_jax.training.metrics import RunLog
from didr_jax.training.parallel import make_mesh
from didr_jax.training.run import LATEST, Run


class LastGame(NamedTuple):
    """`x0 [n, ...]`, samples of the run's generator for its first n prompts, whose conditions are `c`; `noise`, ε for each."""

    config: Any
    task: Any
    state: Any
    frozen: Any
    c: Any
    x0: jax.Array
    noise: jax.Array


def last_game(workdir: str, n: int, seed: int, of: str) -> LastGame:
    """Reads a finished run.

    Args:
      workdir: of the run.
      n: samples.
      seed: of z and ε.
      of: which of the state's generators makes them: "generator", the one that the TA follows, or "ema".
    """
    config = get_config(f"{workdir}/config.json")
    run = Run(config, workdir, make_mesh(config.mesh), RunLog(workdir))
    recipe = recipes.build(config)
    state, _ = state_at(main_stage(recipe, config), run, LATEST)
    task = recipe.task
    frozen = run.load({name: each for name, each in task.frozen().items() if name != "rewards"})
    c = task.table(task.prompts[:n]).everything
    z_key, noise_key = jax.random.split(jax.random.key(seed))
    z = jax.random.normal(z_key, (n, *task.backbone.noise_shape))
    noise = jax.random.normal(noise_key, (n, *task.backbone.event_shape))
    x0 = jax.jit(task.generate)(*task.pair("generator", frozen, getattr(state, of)), z, c)
    return LastGame(config, task, state, frozen, c, x0, noise)
