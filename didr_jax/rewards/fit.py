"""The weights of a mix for which it agrees best with people.

With z the rewards in the units of the mix, (r − centre)/spread, and soft-TAC (`rankings`, equation 2) over the pictures of a
prompt, the weights are

    w = K · softmax(θ),    θ = argmax of the mean over prompts of soft_tac(people, Σ_k w_k z_k; T)                  (1)

positive, and of the sum K that they have as they come, so that β means what it did.  T is a share of the root mean square
difference of z within a prompt: small, it would stand still where few pairs are near a tie; large, it would count gaps.
Every weight is one number, but people are not many either: what is to be believed is the cross-fitted τ-b, of each half of
the prompts by the weights of the other half.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from didr_jax.rankings import soft_tac
from didr_jax.rewards.mix import RewardMix
from didr_jax.rewards.tac import Agreement, Scored, agreement
from didr_jax.types import Array, InputError

STEPS, RATE, SHARE = 200, 0.05, 0.3


@dataclasses.dataclass(frozen=True)
class Fit:
    """`weights {reward: w}`; agreement with people `before`, as the config has them, by these, `after`, and `crossed`."""

    weights: dict[str, float]
    before: Agreement
    after: Agreement
    crossed: Agreement

    def lines(self) -> list[str]:
        """For the command line, and what they are worth."""
        told = lambda each: f"{each.tau:.4f} ({each.low:.4f} to {each.high:.4f})"
        flags = " ".join(f"--config.rewards.weights.{name}={weight:.4g}" for name, weight in self.weights.items())
        worth = f"tau-b {told(self.before)} as configured, {told(self.after)} with these; {told(self.crossed)} of prompts that did not choose them"
        return [flags, worth]


def fit_weights(scored: Scored, mix: RewardMix) -> Fit:
    """By (1), for the rewards of the mix that are not held out.

    Raises:
      InputError: fewer than two rewards to weigh or four prompts, weights that are not positive, or scores that are not finite.
    """
    names = list(mix.weights)
    if len(names) < 2:
        raise InputError(
            "tac: there is nothing to fit in a mix of one reward; configure two that are not in config.rewards.held_out"
        )
    if min(mix.weights.values()) <= 0:
        raise InputError(f"tac: fitted weights are positive; config.rewards.weights has {dict(mix.weights)}")
    if len(scored.rankings) < 4:
        raise InputError(f"tac: {len(scored.rankings)} prompts are too few to fit weights to")
    people = [ranked.people for ranked in scored.rankings]
    in_units = lambda name, i: mix.models[name].normalise(scored.scores[name][i])
    z = [np.stack([in_units(name, i) for name in names], -1) for i in range(len(people))]  # [n_i, K] each
    if not all(np.isfinite(each).all() for each in z):
        raise InputError("tac: scores that are not finite cannot be fitted; leave those pictures out")
    start = np.array([mix.weights[name] for name in names])
    odd = np.arange(len(people)) % 2
    weights, of_even, of_odd = _fitted(people, z, start, np.stack([np.ones(len(people)), 1 - odd, odd]))
    judge = lambda scores: agreement(scored.rankings, scores)
    before, after = [each @ start for each in z], [each @ weights for each in z]
    crossed = [each @ (of_even if i % 2 else of_odd) for i, each in enumerate(z)]
    return Fit(dict(zip(names, weights.tolist(), strict=True)), judge(before), judge(after), judge(crossed))


def _fitted(people: Sequence[np.ndarray], z: Sequence[np.ndarray], start: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """w `[m, K]` of (1), of prompts that count `counts [m, n]`; their sum is that of `start`."""
    sizes = [len(each) for each in people]
    batches = [[i for i, of in enumerate(sizes) if of == size] for size in sorted(set(sizes))]
    told = [(np.stack([people[i] for i in batch]), np.stack([z[i] for i in batch]), counts[:, batch]) for batch in batches]
    mixed = [each @ start for each in z]
    gaps = np.concatenate([np.subtract.outer(each, each) for each in mixed], axis=None)
    temperature = SHARE * float(np.sqrt(np.mean(gaps**2))) or 1.0
    total = float(start.sum())

    def agrees(theta: Array) -> Array:
        """Σ over fits, which do not touch one another, of `theta [m, K]`."""
        w = total * jax.nn.softmax(theta)
        of_fit = lambda w, people, z, count: count * soft_tac(people, z @ w, temperature)
        every = jax.vmap(jax.vmap(of_fit, (None, 0, 0, 0)), (0, None, None, 0))
        return sum((jnp.sum(every(w, *batch) / counts.sum(1)[:, None]) for batch in told), jnp.zeros(()))

    rule = optax.adam(RATE)

    def step(carry, _):
        theta, state = carry
        update, state = rule.update(jax.grad(lambda theta: -agrees(theta))(theta), state)
        return (optax.apply_updates(theta, update), state), None

    theta = jnp.tile(jnp.log(jnp.asarray(start / total, jnp.float32)), (len(counts), 1))
    (theta, _), _ = jax.jit(lambda theta: jax.lax.scan(step, (theta, rule.init(theta)), length=STEPS))(theta)
    return total * np.asarray(jax.nn.softmax(theta), np.float64)
