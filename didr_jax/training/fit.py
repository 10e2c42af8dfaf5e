"""The training step of one network with one loss (reference, reward, classifier), as a pure function ready for `jax.jit`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from didr_jax.training.accumulation import over_micro_batches
from didr_jax.training.optim import guarded_update, moving_average
from didr_jax.training.state import FitState
from didr_jax.training.step import count_skips, rounding_key, step_key
from didr_jax.types import PRNGKey, PyTree


def no_noise(key: PRNGKey, n: int) -> None:
    """The `draw` of a loss that draws nothing."""
    return None


def make_fit_step(
    loss: Callable,
    tx,
    *,
    seed: int,
    ema_decay: float,
    draw: Callable[[PRNGKey, int], PyTree] = no_noise,
    micro_batches: int = 1,
    unroll: bool = False,
) -> Callable:
    """`(FitState, frozen, batch) -> (FitState, metrics)`.

    Args:
      loss: `(params, frozen, batch, noise) -> (per-sample loss [b], {name: [b]})`.
      tx: optax transformation.
      seed: with the step, the source of all noise.
      ema_decay: of the parameters' moving average.
      draw: `(key, b) -> noise`, a pytree of `[b, ...]`: everything random that the loss needs.
      micro_batches: into how many the batch is split, to accumulate their gradients.
      unroll: lay the loop over micro-batches out flat (convolutions on a CPU).
    """

    def step(state: FitState, frozen: PyTree, batch: PyTree) -> tuple[FitState, dict]:
        def means(rows):
            batch, noise = rows

            def mean_loss(params):
                per_sample, aux = loss(params, frozen, batch, noise)
                return jnp.mean(per_sample), {name: jnp.mean(v) for name, v in aux.items()}

            (value, aux), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
            return grads, {"loss": value} | aux

        noise = draw(step_key(seed, state.step), jax.tree.leaves(batch)[0].shape[0])
        grads, figures = over_micro_batches(means, (batch, noise), micro_batches, unroll)
        params, opt, norm, skip = guarded_update(tx, grads, state.opt, state.params, figures["loss"])
        ema = moving_average(state.ema, params, state.step, ema_decay, rounding_key(seed, state.step))
        counts = count_skips(state, skip)
        return FitState(state.step + 1, params, ema, opt, **counts), figures | {"grad_norm": norm} | counts

    return step
