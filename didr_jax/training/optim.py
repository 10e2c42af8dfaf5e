"""Optimisers, guarded updates and the moving average of parameters."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from didr_jax.training.host_memory import back, near
from didr_jax.training.rounding import stored
from didr_jax.types import Array, PRNGKey, PyTree

# Dimensions of a kernel -> its axes in and out as muon's matrix; those before them count kernels of the same kind.
MATRICES = {
    2: contrib.MuonDimensionNumbers(-2, -1),  # Dense,
    3: contrib.MuonDimensionNumbers(-2, -1),  # of each block in a stack
    4: contrib.MuonDimensionNumbers((-4, -3, -2), -1),  # Conv,
    5: contrib.MuonDimensionNumbers((-4, -3, -2), -1),  # of each block in a stack
}


def matrices(params: PyTree) -> PyTree:
    """Which of the parameters are matrices to muon, and how: kernels.  The others get None, and adamw's update."""
    kernel = lambda path: jax.tree_util.keystr(path[-1:], simple=True) == "kernel"
    return jax.tree_util.tree_map_with_path(lambda path, x: MATRICES[x.ndim] if kernel(path) else None, params)


# name -> (learning-rate schedule, settings) -> optax transformation.  Bytes of state per parameter: adamw 8, lion, muon
# (of kernels), sgd and adafactor 4; 2 less with first moments in bfloat16, of adamw as many with second ones; with b1 = 0,
# sgd none and adafactor almost none (a row and a column of each matrix).  Adafactor's rate is relative to the parameters' root mean square, it decays its
# second moment by a schedule of its own, and its weight decay is made to follow the rate as the others' does.
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": lambda lr, c: optax.adamw(lr, b1=c.b1, b2=c.b2, eps=c.eps, weight_decay=c.weight_decay, mu_dtype=c.moment_dtype),
    "adafactor": lambda lr, c: optax.adafactor(
        lr,
        momentum=c.b1 or None,
        dtype_momentum=c.moment_dtype,
        weight_decay_rate=(lambda step: c.weight_decay * lr(step)) if c.weight_decay else None,
    ),
    "lion": lambda lr, c: optax.lion(lr, b1=c.b1, b2=c.b2, weight_decay=c.weight_decay, mu_dtype=c.moment_dtype),
    # Kernels move along their momentum made orthogonal, by muon_rms in the root mean square (Jordan et al. 2024,
    # arXiv 2502.16982); the rest by adamw with Nesterov's momentum.
    "muon": lambda lr, c: contrib.muon(
        lr,
        beta=c.b1,
        adam_b1=c.b1,
        adam_b2=c.b2,
        eps=c.eps,
        weight_decay=c.weight_decay,
        adam_weight_decay=c.weight_decay,
        mu_dtype=c.moment_dtype,
        muon_weight_dimension_numbers=matrices,
        consistent_rms=c.muon_rms,
    ),
    "sgd": lambda lr, c: optax.chain(
        optax.trace(c.b1, accumulator_dtype=c.moment_dtype) if c.b1 else optax.identity(),
        optax.add_decayed_weights(c.weight_decay),
        optax.scale_by_learning_rate(lr),
    ),
}

SECOND = "nu"  # optax's name of a second moment that has an entry for each of its parameter
WITH_SECOND = ("adamw", "muon")  # the optimisers that have such: muon of what is no kernel

# The knob by which the moment that `moment_dtype` stores decays.
MOMENT_DECAY = {"adamw": "b1", "adafactor": "b1", "lion": "b2", "muon": "b1", "sgd": "b1"}


def learning_rate(config, num_steps: int) -> optax.Schedule:
    """Linear warm-up over `config.warmup` updates, then constant or cosine to zero at `num_steps`."""
    constant = optax.constant_schedule(config.lr)
    after = optax.cosine_decay_schedule(config.lr, max(num_steps - config.warmup, 1)) if config.decay else constant
    warmup = optax.linear_schedule(config.lr / max(config.warmup, 1), config.lr, config.warmup)
    return optax.join_schedules([warmup, after], [config.warmup])


def make_optimizer(config, num_steps: int) -> optax.GradientTransformation:
    """The optimiser of an `optimizer` config section, for a run of `num_steps` updates."""
    rule = OPTIMIZERS[config.name](learning_rate(config, num_steps), config)
    return _in_float32(optax.chain(optax.clip_by_global_norm(config.clip), rule), config.second_moment_dtype)


def _in_float32(tx: optax.GradientTransformation, second: str) -> optax.GradientTransformation:
    """`tx` with its arithmetic in float32, whatever parameters and moments are stored in.

    In bfloat16 a decay of 0.9 is 0.898 and one of 0.999 is 1.  Second moments are stored in `second`, whatever parameters
    are: to the nearest bfloat16 they would not notice what one update changes in them, so that they are rounded
    stochastically there, with noise that derives from the number of the update.
    """
    low = second == "bfloat16"
    is_second = lambda path: SECOND in {getattr(key, "name", "") for key in path}

    def wide(tree):
        return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype in (jnp.bfloat16, jnp.float16) else x, tree)

    def update(grads, state, params=None):
        updates, new = tx.update(wide(grads), wide(state), wide(params))
        if low:  # before the others, which go to the nearest
            key = jax.random.fold_in(jax.random.key(0), _count(state))
            rounded = stored(new, state, key)
            new = jax.tree_util.tree_map_with_path(lambda path, a, b: b if is_second(path) else a, new, rounded)
        return updates, jax.tree.map(lambda new, old: new.astype(old.dtype), new, state)

    def init(params):
        state = tx.init(wide(params))
        if not low:
            return state
        return jax.tree_util.tree_map_with_path(lambda path, a: a.astype(second) if is_second(path) else a, state)

    return optax.GradientTransformation(init, update)


def _count(state: PyTree) -> Array:
    """Updates that are done, of the state of an optimiser with second moments."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return next(leaf for path, leaf in leaves if getattr(path[-1], "name", "") == "count")


def begun_again(opt_state: PyTree) -> PyTree:
    """An optimiser's state whose learning rate begins anew, warm-up and all; its moments stay, and what corrects them."""
    is_course = lambda node: getattr(node, "_fields", ()) == ("count",)  # optax's state of what only follows a schedule
    return jax.tree.map(
        lambda node: jax.tree.map(jnp.zeros_like, node) if is_course(node) else node, opt_state, is_leaf=is_course
    )


def guarded_update(
    tx: optax.GradientTransformation, grads: PyTree, opt_state: PyTree, params: PyTree, loss: Array | float = 0.0
) -> tuple[PyTree, PyTree, Array, Array]:
    """One optimiser update that a non-finite gradient or loss cannot spoil.

    Returns:
      params, opt_state (both as they were if the loss or any gradient entry is NaN or infinite), the
      global norm of the gradient, and whether the update was skipped (int32, 0 or 1).
    """
    norm = optax.global_norm(grads)
    finite = jnp.isfinite(norm) & jnp.isfinite(loss)
    moments = near(opt_state, after=grads)
    updates, new_moments = tx.update(grads, moments, params)
    new_params = optax.apply_updates(params, updates)
    keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
    return keep(new_params, params), back(keep(new_moments, moments), opt_state), norm, 1 - finite.astype(jnp.int32)


def moving_average(average: PyTree, params: PyTree, step: Array, decay: float, key: PRNGKey) -> PyTree:
    """EMA with the decay ramped as (1 + step)/(10 + step), so that it forgets its initialisation.

    One in bfloat16 is rounded stochastically, by `key`: to the nearest it would stand still (`rounding`).
    """
    rate = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    # in float32: 0.999 is 1 in bfloat16
    after = lambda a, p: a.astype(jnp.float32) * rate + p.astype(jnp.float32) * (1 - rate)
    here = near(average, after=params)
    return back(stored(jax.tree.map(after, here, params), here, key), average)
