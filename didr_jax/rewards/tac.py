"""Is a reward aligned with people?  Its order of the pictures of a prompt against theirs, over a file of rankings."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from didr_jax.rankings import kendall_tau, pairs_right
from didr_jax.rewards.mix import RewardMix
from didr_jax.rewards.people import Ranked, named, read_rankings
from didr_jax.rewards.scoring import score_pictures
from didr_jax.types import InputError

MIX = "mix"  # Σ w (r − centre)/spread of the rewards that are trained on


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Of one reward with people.

    Attributes:
      tau: mean over prompts of Kendall's τ-b, of those where it is defined.
      low, high: 95 % interval of it, by a bootstrap over prompts.
      prompts: how many those are.
      undefined: how many are not: people, or the reward, tie all pictures of theirs.
      accuracy: share of the pairs that people did not tie which the reward orders as they do, its own ties counted half.
      pairs: how many those are.
    """

    tau: float
    low: float
    high: float
    prompts: int
    undefined: int
    accuracy: float
    pairs: int


def agreement(rankings: Sequence[Ranked], scores: Sequence[np.ndarray], resamples: int = 2000, seed: int = 0) -> Agreement:
    """Of a reward's `scores`, `[n_i]` for the i-th ranking, larger is better.

    Raises:
      InputError: a score is not finite, or no prompt has an order on both sides.
    """
    bad = sum(int(np.sum(~np.isfinite(each))) for each in scores)
    if bad:
        raise InputError(f"tac: {bad} scores are not finite; leave those pictures out, or hold that reward against others")
    every = np.asarray([kendall_tau(ranked.people, each) for ranked, each in zip(rankings, scores, strict=True)])
    taus = every[np.isfinite(every)]
    if not len(taus):
        raise InputError(f"tac: in none of {len(every)} prompts both people and the reward prefer one picture to another")
    counted = [pairs_right(ranked.people, each) for ranked, each in zip(rankings, scores, strict=True)]
    right, pairs = sum(one for one, _ in counted), sum(number for _, number in counted)
    rng = np.random.default_rng(seed)
    means = [taus[rng.integers(len(taus), size=len(taus))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return Agreement(float(taus.mean()), float(low), float(high), len(taus), len(every) - len(taus), right / pairs, pairs)


def judge_rewards(
    path: str | os.PathLike, folder: str | os.PathLike, mix: RewardMix, *, limit: int = 0, batch_size: int = 8
) -> dict[str, Agreement]:
    """Every reward's agreement with a file of people's rankings, and that of the mix where it has more than one.

    Args:
      path: see `didr_jax.rewards.people`.
      folder: where the files that it names are; not needed for Pick-a-Pic.
      mix: the rewards.
      limit: use the first so many prompts; 0: all.
      batch_size: pictures scored at once.

    Raises:
      InputError: unreadable files (all absent pictures are counted at once), or nothing to compare.
    """
    rankings = rankings_in(path, folder, limit)
    pictures = [Path(folder) / each if isinstance(each, str) else each for ranked in rankings for each in ranked.pictures]
    prompts = [ranked.prompt for ranked in rankings for _ in ranked.pictures]
    scores = score_pictures(pictures, prompts, list(mix.models.values()), batch_size)
    if len(mix.weights) > 1:
        total = np.zeros(len(pictures))
        for name, weight in mix.weights.items():
            total += weight * np.asarray(mix.models[name].normalise(jnp.asarray(scores[name])))
        scores[MIX] = total
    ends = np.cumsum([len(ranked.pictures) for ranked in rankings])[:-1]
    return {name: agreement(rankings, np.split(values, ends)) for name, values in scores.items()}


def rankings_in(path: str | os.PathLike, folder: str | os.PathLike, limit: int = 0) -> list[Ranked]:
    """`read_rankings` of a file whose pictures are all there; opens none of them.

    Args:
      path, folder, limit: as of `judge_rewards`.

    Raises:
      InputError: as `read_rankings`, or pictures that are not in the folder.
    """
    rankings = read_rankings(path, limit)
    absent = sorted({name for name in named(rankings) if not (Path(folder) / name).is_file()})
    if absent:
        where = folder or "(no folder given)"
        raise InputError(
            f"tac: {len(absent)} pictures are not in {where}, the first {absent[0]}; set config.tac.images to their folder",
            absent,
        )
    return rankings


def table(found: dict[str, Agreement]) -> str:
    """As text, a line a reward."""
    lines = [f"{'reward':<14} {'tau-b':>8} {'95 %':>18} {'prompts':>8} {'accuracy':>9} {'pairs':>7}"]
    for name, each in found.items():
        interval = f"{each.low:.4f} to {each.high:.4f}"
        lines.append(f"{name:<14} {each.tau:>8.4f} {interval:>18} {each.prompts:>8} {each.accuracy:>9.4f} {each.pairs:>7}")
    return "\n".join(lines)
