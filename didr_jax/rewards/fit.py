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

STEPS, RATE, SHARE = 400, 0.05, 0.3


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
    z = [
        np.stack([mix.models[name].normalise(scored.scores[name][i]) for name in names], -1) for i in range(len(people))
    ]  # [n_i, K] each
    if not all(np.isfinite(each).all() for each in z):
        raise InputError("tac: scores that are not finite cannot be fitted; leave those pictures out")
    start = np.array([mix.weights[name] for name in names])
    everything = np.arange(len(people))
    weights = _fitted(people, z, start, everything)
    mixed = [each @ weights for each in z]
    crossed = [np.empty(0)] * len(people)
    for half in (0, 1):
        others = _fitted(people, z, start, everything[everything % 2 != half])
        for i in everything[everything % 2 == half]:
            crossed[i] = z[i] @ others
    before = [each @ start for each in z]
    judge = lambda scores: agreement(scored.rankings, scores)
    return Fit(dict(zip(names, weights.tolist(), strict=True)), judge(before), judge(mixed), judge(crossed))


def _fitted(people: Sequence[np.ndarray], z: Sequence[np.ndarray], start: np.ndarray, which: np.ndarray) -> np.ndarray:
    """w `[K]` of (1) over some prompts, their sum that of `start`."""
    sizes = sorted({len(people[i]) for i in which})
    batches = [[i for i in which if len(people[i]) == size] for size in sizes]  # one program a number of pictures
    told = [
        (jnp.asarray(np.stack([people[i] for i in batch])), jnp.asarray(np.stack([z[i] for i in batch]))) for batch in batches
    ]
    mixed = [z[i] @ start for i in which]
    gaps = np.concatenate([np.subtract.outer(each, each) for each in mixed], axis=None)
    temperature = SHARE * float(np.sqrt(np.mean(gaps**2))) or 1.0
    total = float(start.sum())

    def agrees(theta: Array) -> Array:
        w = total * jax.nn.softmax(theta)
        one = jax.vmap(lambda people, z: soft_tac(people, z @ w, temperature))
        return sum((jnp.sum(one(*batch)) for batch in told), jnp.zeros(())) / len(which)

    rule = optax.adam(RATE)

    def step(carry, _):
        theta, state = carry
        update, state = rule.update(jax.grad(lambda theta: -agrees(theta))(theta), state)
        return (optax.apply_updates(theta, update), state), None

    theta = jnp.log(jnp.asarray(start / total, jnp.float32))
    (theta, _), _ = jax.jit(lambda theta: jax.lax.scan(step, (theta, rule.init(theta)), length=STEPS))(theta)
    return total * np.asarray(jax.nn.softmax(theta), np.float64)
