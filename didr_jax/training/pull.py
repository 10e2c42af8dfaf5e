"""How hard the reward pulls at the generator against the divergence: sample by sample, and at any temperature β."""

import dataclasses
from collections.abc import Callable

import jax

from didr_jax.objectives import Objective, Settings
from didr_jax.training.parallel import shard_rows
from didr_jax.training.state import GameState
from didr_jax.training.step import Networks, bind, draw_rows
from didr_jax.types import Array, PRNGKey, PyTree

# (state, frozen, conditions [b, ...], key, β) -> {"t": [b], "pull": [b], "divergence": [b]}, as `objectives` defines them;
# of an objective that has no divergence, without it
Measure = Callable[[GameState, PyTree, PyTree, PRNGKey, Array], dict[str, Array]]
ALL = "reward"  # the name of the whole reward among the measures


def measures_of(
    networks: Networks, objective: Objective, settings: Settings, *, guidance: float, times: tuple[float, float], unroll: bool
) -> dict[str, Measure]:
    """A measure of the whole reward, `ALL`, and one of each of its parts alone; none where no reward pulls.

    Args:
      networks, objective, settings, guidance: as of the stage's step; β is the measure's own argument.
      times: the range that t is drawn from in the generator's update.
      unroll: lay out the loops of the estimators.
    """
    if networks.reward is None or not objective.needs_reward:
        return {}
    estimate = dataclasses.replace(settings.estimate, unroll=unroll)
    settings = dataclasses.replace(settings, estimate=estimate)
    rewards = {ALL: networks.reward} | dict(networks.parts)

    def measure(reward, state, frozen, c, key, beta):
        make_key, diffuse_key, objective_key = jax.random.split(key, 3)
        rows, i = draw_rows(networks, make_key, diffuse_key, c, times)
        c, z, noise, t = shard_rows(rows)
        c = networks.prepared(frozen, c)
        x0 = networks.generator(state.generator, frozen, z, c, i)
        nets = bind(dataclasses.replace(networks, reward=reward), frozen, state.ta, c, guidance)
        at_beta = dataclasses.replace(settings, beta=beta)
        _, figures = objective(x0, noise, t, jax.random.split(objective_key, len(t)), nets, at_beta)
        return {"t": t} | {name: figures[name] for name in ("pull", "divergence") if name in figures}

    return {name: (lambda *arguments, reward=reward: measure(reward, *arguments)) for name, reward in rewards.items()}
