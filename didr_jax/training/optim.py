"""Optimisers, guarded updates and the moving average of parameters."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from didr_jax.types import Array, PyTree

# name -> (learning-rate schedule, settings) -> optax transformation.  Bytes of state per parameter, in
# float32: adamw 8 (6 with a bfloat16 first moment), lion and sgd 4 (2), adafactor 4, or almost none with b1 = 0.
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": lambda lr, c: optax.adamw(lr, b1=c.b1, b2=c.b2, eps=c.eps, weight_decay=c.weight_decay, mu_dtype=c.moment_dtype),
    "adafactor": lambda lr, c: optax.adafactor(
        lr, weight_decay_rate=c.weight_decay or None, momentum=c.b1 or None, dtype_momentum=c.moment_dtype
    ),
    "lion": lambda lr, c: optax.lion(lr, b1=c.b1, b2=c.b2, weight_decay=c.weight_decay, mu_dtype=c.moment_dtype),
    "sgd": lambda lr, c: optax.sgd(lr, momentum=c.b1 or None, accumulator_dtype=c.moment_dtype),
}


def learning_rate(config, num_steps: int) -> optax.Schedule:
    """Linear warm-up over `config.warmup` updates, then constant or cosine to zero at `num_steps`."""
    constant = optax.constant_schedule(config.lr)
    after = optax.cosine_decay_schedule(config.lr, max(num_steps - config.warmup, 1)) if config.decay else constant
    warmup = optax.linear_schedule(config.lr / max(config.warmup, 1), config.lr, config.warmup)
    return optax.join_schedules([warmup, after], [config.warmup])


def make_optimizer(config, num_steps: int) -> optax.GradientTransformation:
    """The optimiser of an `optimizer` config section, for a run of `num_steps` updates."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        OPTIMIZERS[config.name](learning_rate(config, num_steps), config),
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
    updates, new_opt_state = tx.update(grads, opt_state, params)
    new_params = optax.apply_updates(params, updates)
    keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
    return keep(new_params, params), keep(new_opt_state, opt_state), norm, 1 - finite.astype(jnp.int32)


def moving_average(average: PyTree, params: PyTree, step: Array, decay: float) -> PyTree:
    """EMA with the decay ramped as (1 + step)/(10 + step), so that it forgets its initialisation."""
    rate = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, p: (a * rate + p * (1 - rate)).astype(a.dtype), average, params)
