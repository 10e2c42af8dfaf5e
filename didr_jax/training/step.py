"""The training step of a game, as a pure function ready for `jax.jit`: n_ta updates of the TA, then one of the generator.

    TA         ψ ← ψ − ∇_ψ mean_b DSM(x̂_ψ; sg(g_θ(z)))                                          (1)
    generator  θ ← θ − ∇_θ mean_b ⟨sg(G), g_θ(z)⟩ / dim(x0),   G from `objectives`              (2)

(2) is divided by the number of entries of a sample, as DMD2's mean-squared surrogate is, so that
clipping thresholds mean the same.  Noise and times derive from (seed, step), never from a device or
a process: the same step on another mesh draws the same numbers.  They are drawn for the whole batch
before it is split into micro-batches (a stochastic estimator gets a key for each row), so accumulating
gradients over those changes nothing but the order of sums.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from didr_jax.diffusion import guide
from didr_jax.few_step import FewStep
from didr_jax.objectives import Bound, Objective, Settings, denoising_loss, surrogate_loss
from didr_jax.schedules import Schedule
from didr_jax.training import known
from didr_jax.training.accumulation import over_micro_batches, with_rows
from didr_jax.training.optim import guarded_update, moving_average
from didr_jax.training.state import FitState, GameState
from didr_jax.types import Array, PRNGKey, PyTree

ROUNDING = 2**31 - 1  # no number of a step's other keys


@dataclasses.dataclass(frozen=True)
class Networks:
    """The networks of a recipe as functions; conditions `c` are pytrees `[b, ...]`.

    `params` are what is trained of the TA or the generator, `frozen` is what the stage never changes; both are arguments
    of every function that needs them, so that nothing holds a parameter.  TA is the online score network that follows the
    generator, DMD2's "fake" one.

    Attributes:
      schedule: noise schedule shared by reference, TA and generator.
      event_shape: shape of one sample x0.
      reference: `(frozen, x_t, t, c) -> x̂0`, the frozen diffusion, conditional.
      ta: `(params, frozen, x_t, t, c) -> x̂0`.
      ta_in_loss: the same as the generator's loss shall ask it, in another precision; None: `ta`.
      generator: `(params, frozen, z, c, i) -> x0`, from unit noise z `[b, *noise_shape]`: the outcome of step i.
      reward: `(frozen, x0, c) -> r [b]`, or None.
      terms: `(frozen, x0, c) -> {name: [b]}`, what the log says of the reward, `reward` among it: means over the samples
        of which it is known (not nan), nan if there are none.  None: the mean of the reward.
      unconditional: `(frozen, c) -> ` the condition of the guidance's other branch; None if the recipe has none.
      few_step: the generator's steps; None: it has one, and i is 0.
      prepare: `(frozen, c) -> c`, what conditions become on the devices before any function above sees them; None: nothing.
      parts: `{name: (frozen, x0, c) -> r [b]}`, the rewards that `reward` is the sum of, where there are several.
    """

    schedule: Schedule
    event_shape: tuple[int, ...]
    reference: Callable[[PyTree, Array, Array, Any], Array]
    ta: Callable[[PyTree, PyTree, Array, Array, Any], Array]
    generator: Callable[[PyTree, PyTree, Array, Any, Array], Array]
    reward: Callable[[PyTree, Array, Any], Array] | None = None
    terms: Callable[[PyTree, Array, Any], dict[str, Array]] | None = None
    unconditional: Callable[[PyTree, Any], Any] | None = None
    few_step: FewStep | None = None
    ta_in_loss: Callable[[PyTree, PyTree, Array, Array, Any], Array] | None = None
    prepare: Callable[[PyTree, Any], Any] | None = None
    parts: Mapping[str, Callable[[PyTree, Array, Any], Array]] = dataclasses.field(default_factory=dict)

    def prepared(self, frozen: PyTree, c: Any) -> Any:
        """Conditions as the other functions take them."""
        return c if self.prepare is None else self.prepare(frozen, c)

    @property
    def num_steps(self) -> int:
        """Of the generator."""
        return 1 if self.few_step is None else len(self.few_step.times)


def draw_times(schedule: Schedule, key: PRNGKey, num: int, low: float, high: float) -> Array:
    """`[num]` times, uniform in solver time u between those of `low` and `high`, warped and snapped."""
    bounds = schedule.unwarp(jnp.asarray([low, high], jnp.float32))
    u = jax.random.uniform(key, (num,), minval=bounds[0], maxval=bounds[1])
    return schedule.snap(schedule.warp(u))


def step_key(seed: int, step: Array) -> PRNGKey:
    """The root of all randomness of a step."""
    return jax.random.fold_in(jax.random.key(seed), step)


def rounding_key(seed: int, step: Array) -> PRNGKey:
    """Of what a step rounds at random: none of what it draws depends on it."""
    return jax.random.fold_in(step_key(seed, step), ROUNDING)


def count_skips(state: FitState | GameState, skips: Array) -> dict[str, Array]:
    """`skipped` and `streak` after a step that dropped `skips` updates."""
    return {"skipped": state.skipped + skips, "streak": jnp.where(skips > 0, state.streak + 1, 0)}


def draw_rows(networks: Networks, make_key: PRNGKey, diffuse_key: PRNGKey, c: PyTree, times) -> tuple[tuple, Array]:
    """The rows `(c, z, ε, t)` of a batch, and the step of the generator that they are for; `times`: the range of t."""
    z, i = draw_inputs(networks, make_key, jax.tree.leaves(c)[0].shape[0])
    return (c, z, *draw_levels(networks, diffuse_key, len(z), i, times)), i


def draw_inputs(networks: Networks, key: PRNGKey, n: int) -> tuple[Array, Array]:
    """z `[n, *noise_shape]`, and the step of the generator that they are for."""
    z_key, step_key = jax.random.split(key)
    i, shape = jnp.zeros((), jnp.int32), networks.event_shape
    if networks.few_step is not None:
        i, shape = networks.few_step.draw(step_key), networks.few_step.noise_shape(networks.event_shape)
    return jax.random.normal(z_key, (n, *shape)), i


def draw_levels(networks: Networks, key: PRNGKey, n: int, i: Array, times) -> tuple[Array, Array]:
    """(ε, t) to diffuse n outcomes of step i with; `times`: the range of t."""
    time_key, noise_key = jax.random.split(key)
    times = times if networks.few_step is None else networks.few_step.segment(i, *times)
    return jax.random.normal(noise_key, (n, *networks.event_shape)), draw_times(networks.schedule, time_key, n, *times)


def bind(networks: Networks, frozen: PyTree, ta: PyTree, c: PyTree, guidance: float) -> Bound:
    """What an objective may call, for one batch of conditions."""
    reference = lambda x_t, t: networks.reference(frozen, x_t, t, c)
    guided = None
    if guidance != 1.0 and networks.unconditional is not None:
        no_c = networks.unconditional(frozen, c)
        guided = lambda x_t, t, x_c: guide(x_c, networks.reference(frozen, x_t, t, no_c), guidance)
    score = networks.reward
    reward = None if score is None else (lambda x0: score(frozen, x0, c))
    ask = networks.ta_in_loss or networks.ta
    return Bound(networks.schedule, lambda x_t, t: ask(ta, frozen, x_t, t, c), reference, guided, reward)


def make_game_step(
    networks: Networks,
    objective: Objective,
    settings: Settings,
    tx_generator,
    tx_ta,
    *,
    seed: int,
    guidance: float,
    ta_weighting: str,
    ta_times: tuple[float, float],
    generator_times: tuple[float, float],
    ema_decay: float,
    micro_batches: int = 1,
    unroll: bool = False,
    ta_reuse: int = 1,
    ta_after: bool = False,
    due: Callable[[Array], Array] | None = None,
) -> Callable:
    """`(GameState, frozen, conditions) -> (GameState, metrics)`, equations (1) and (2).

    Args:
      networks, objective, settings: what is trained and how.
      tx_generator, tx_ta: optax transformations.
      seed: with the step, the source of all noise.
      guidance: scale w of classifier-free guidance on the reference; 1 turns it off.
      ta_weighting: prediction in whose units the TA's loss is measured.
      ta_times, generator_times: ranges that t is drawn from.
      ema_decay: of the generator's moving average.
      micro_batches: into how many each batch is split, to accumulate gradients.
      unroll: lay out the loops over TA updates, micro-batches and denoising steps (convolutions on a CPU).
      ta_reuse: TA updates in a row that take the same samples x0, each with ε and t of its own.  The generator rests
        meanwhile, so that each of them still sees samples of its law and (1) its own gradient; they are less independent.
      ta_after: the last TA update comes after the generator's and takes the samples that were made for it, by the
        generator as it was before, with new ε and t, as DMD2's code does.  Not before: the TA that a generator is
        judged by has not seen the samples that it is judged on.
      due: `steps done -> ` whether the log wants the reward's terms of the next one; None: of every one.  What is trained
        does not depend on it: they are measured besides where no sample's gradient has a part of the reward, to tell
        whether any sample has one.

    The step's `conditions` have two leading axes `[n_ta + 1, b]`: row i < n_ta for the i-th TA update,
    the last row for the generator.  Of samples that are reused the conditions of their first use count.
    """
    given = lambda x0, c: x0
    schedule, size = networks.schedule, math.prod(networks.event_shape)
    draw = functools.partial(draw_rows, networks)
    settings = dataclasses.replace(settings, estimate=dataclasses.replace(settings.estimate, unroll=unroll))

    def ta_update(carry, rows, frozen, sample):
        """`rows`: (c, what x0 is made of, ε, t) `[b, ...]`; `sample`: `(that, c) -> x0`."""
        params, opt, skipped = carry

        def means(rows):
            c, given, noise, t = rows
            c = networks.prepared(frozen, c)
            x0 = jax.lax.stop_gradient(sample(given, c))

            def mean_loss(params):
                denoiser = lambda x_t, t: networks.ta(params, frozen, x_t, t, c)
                return jnp.mean(denoising_loss(denoiser, schedule, x0, noise, t, ta_weighting))

            return jax.value_and_grad(mean_loss)(params)

        value, grads = over_micro_batches(means, rows, micro_batches, unroll)
        params, opt, norm, skip = guarded_update(tx_ta, grads, opt, params, value)
        return (params, opt, skipped + skip), (value, norm)

    def ta_updates(carry, c, keys, generator, frozen):
        """Of samples made for each, or, with `ta_reuse`, once for several in a row: `c [n, b, ...]`, `keys [n]`."""

        def fresh(carry, inputs):
            c, key = inputs
            rows, i = draw(*jax.random.split(key), c, ta_times)
            return ta_update(carry, rows, frozen, lambda z, c: networks.generator(generator, frozen, z, c, i))

        def several(carry, inputs):
            c, keys = inputs
            z, i = draw_inputs(networks, jax.random.split(keys[0])[0], jax.tree.leaves(c)[0].shape[0])

            def make(rows):
                c, z = rows
                return (), networks.generator(generator, frozen, z, networks.prepared(frozen, c), i)

            x0 = with_rows(make, (c, z), micro_batches, unroll)[1]

            def again(carry, key):
                levels = draw_levels(networks, jax.random.split(key)[1], len(z), i, ta_times)
                return ta_update(carry, (c, x0, *levels), frozen, given)

            return jax.lax.scan(again, carry, keys, unroll=unroll)

        if ta_reuse == 1:
            return jax.lax.scan(fresh, carry, (c, keys), unroll=unroll)
        first = jax.tree.map(lambda c: c[::ta_reuse], c)
        carry, told = jax.lax.scan(several, carry, (first, keys.reshape(-1, ta_reuse)), unroll=unroll)
        return carry, jax.tree.map(jnp.ravel, told)

    def finished(params, frozen, z, c, i, x0):
        """The sample that all steps make of z, of which x0 is the outcome of step i: what a reward is logged of."""
        last = networks.num_steps - 1
        if last == 0:
            return x0
        whole = lambda: networks.generator(params, frozen, z, c, jnp.full_like(i, last)).astype(x0.dtype)
        return jax.lax.stop_gradient(jax.lax.cond(i == last, lambda: x0, whole))

    def generator_gradient(params, ta, frozen, c, key, wanted):
        make_key, diffuse_key, objective_key = jax.random.split(key, 3)
        rows, i = draw(make_key, diffuse_key, c, generator_times)
        row_keys = jax.random.split(objective_key, rows[-1].shape[0])

        def means(rows):
            (c, z, noise, t), row_keys = rows
            c = networks.prepared(frozen, c)
            x0, pullback = jax.vjp(lambda p: networks.generator(p, frozen, z, c, i), params)
            bound_networks = bind(networks, frozen, ta, c, guidance)
            direction, aux = objective(x0, noise, t, row_keys, bound_networks, settings)
            loss_gradient = jax.grad(lambda x: jnp.mean(surrogate_loss(direction, x)) / size)(x0)
            silent, terms = known.unheard(aux), {}
            if networks.terms is not None:

                def read():
                    values = networks.terms(frozen, finished(params, frozen, z, c, i, x0), c)
                    return {name: known.measure(value) for name, value in values.items()}

                terms = read() if wanted is None else known.seldom(wanted | silent, read)
            elif networks.reward is not None:
                aux = aux | {"reward": networks.reward(frozen, finished(params, frozen, z, c, i, x0), c)}
            grads = pullback(loss_gradient.astype(x0.dtype))[0]
            figures = {name: jnp.mean(values) for name, values in aux.items()}
            kept = x0 if ta_after else ()
            return (grads, figures, terms, silent.astype(jnp.float32)), kept

        samples = len(row_keys)
        (grads, figures, terms, silent), x0 = with_rows(means, (rows, row_keys), micro_batches, unroll)
        all_silent = silent > 1 - 0.5 / micro_batches
        figures, bad = known.told(figures, terms, samples, micro_batches, wanted, all_silent)
        return grads, figures, jnp.where(bad, jnp.nan, 0.0) if terms else figures.get("reward", 0.0), (x0, i)

    def step(state: GameState, frozen: PyTree, conditions: PyTree) -> tuple[GameState, dict]:
        n_ta = jax.tree.leaves(conditions)[0].shape[0] - 1
        keys = jax.random.split(step_key(seed, state.step), n_ta + 1)
        ta_rows, last_row = jax.tree.map(lambda c: c[:-1], conditions), jax.tree.map(lambda c: c[-1], conditions)

        carry = (state.ta, state.opt_ta, jnp.zeros((), jnp.int32))
        before = n_ta - ta_after
        rows = jax.tree.map(lambda c: c[:before], ta_rows)
        carry, told = ta_updates(carry, rows, keys[:before], state.generator, frozen)

        wanted = None if due is None else due(state.step)
        grads, figures, guard, (x0, i) = generator_gradient(state.generator, carry[0], frozen, last_row, keys[-1], wanted)
        generator, opt_generator, norm, skip = guarded_update(tx_generator, grads, state.opt_generator, state.generator, guard)
        ema = moving_average(state.ema, generator, state.step, ema_decay, rounding_key(seed, state.step))

        if ta_after:
            levels = draw_levels(networks, jax.random.split(keys[before])[1], len(x0), i, ta_times)
            carry, last = ta_update(carry, (last_row, jax.lax.stop_gradient(x0), *levels), frozen, given)
            told = jax.tree.map(lambda one, new: jnp.append(one, new), told, last)
        (ta, opt_ta, ta_skips), (ta_loss, ta_norm) = carry, told
        metrics = {"ta_loss": jnp.mean(ta_loss), "ta_grad_norm": jnp.mean(ta_norm), "grad_norm": norm} | figures
        # Well above 1: the TA is still catching up with the generator.  Losses of different steps do not compare.
        if n_ta > 1 and networks.num_steps == 1:
            metrics["ta_lag"] = ta_loss[0] / ta_loss[-1]
        if "pull" in figures and "divergence" in figures:  # how hard the reward pulls against it: β is tuned by this
            metrics["pull_to_divergence"] = figures["pull"] / figures["divergence"]
        counts = count_skips(state, ta_skips + skip)
        return GameState(state.step + 1, generator, ema, ta, opt_generator, opt_ta, **counts), metrics | counts

    return step
