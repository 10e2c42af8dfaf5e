"""What a stage of training carries from step to step: all of it, and nothing else.

Randomness is not part of the state: it is derived from (seed, step), so a restored state goes on
exactly as the uninterrupted one would have.
"""

import dataclasses

import jax
import jax.numpy as jnp

from didr_jax.types import Array, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FitState:
    """One network fitted to data.

    `skipped` counts the updates dropped for non-finite gradients, `streak` the steps up to this one
    that dropped any, without a good step between them.
    """

    step: Array
    params: PyTree
    ema: PyTree
    opt: PyTree
    skipped: Array
    streak: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GameState:
    """The generator and its online (TA) score network, with an optimiser each; counts as in `FitState`."""

    step: Array
    generator: PyTree
    ema: PyTree
    ta: PyTree
    opt_generator: PyTree
    opt_ta: PyTree
    skipped: Array
    streak: Array


def _copy(params: PyTree) -> PyTree:
    """Fresh buffers: a donated state must not hold one buffer twice."""
    return jax.tree.map(jnp.copy, params)


def _zero() -> Array:
    return jnp.zeros((), jnp.int32)


def init_fit(params: PyTree, tx) -> FitState:
    """The state before the first update of `params` under the optimiser `tx`."""
    return FitState(_zero(), _copy(params), _copy(params), tx.init(params), _zero(), _zero())


def init_game(generator: PyTree, ta: PyTree, tx_generator, tx_ta, ema_dtype: str = "") -> GameState:
    """The state before the first update of a generator and a TA network; `ema_dtype`: of the average, if not the parameters'."""
    opts = tx_generator.init(generator), tx_ta.init(ta)
    ema = jax.tree.map(lambda x: x.astype(ema_dtype or x.dtype), _copy(generator))
    return GameState(_zero(), _copy(generator), ema, _copy(ta), *opts, _zero(), _zero())
