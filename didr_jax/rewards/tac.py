"""Is a reward aligned with people?  Its order of the pictures of a prompt against theirs, over a file of rankings."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from didr_jax.rankings import kendall_tau, pairs_right
from didr_jax.rewards.conventions import CHOSEN, CONVENTIONS, best_threshold
from didr_jax.rewards.kept import Kept
from didr_jax.rewards.mix import RewardMix
from didr_jax.rewards.people import Ranked, named, read_rankings
from didr_jax.rewards.scoring import score_pictures
from didr_jax.types import InputError

MIX = "mix"  # the name of `RewardMix.combine` among the rewards


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
      published: `{whose rule: accuracy}` as the set's own programs count ties (`conventions`); empty: a set of no known rule.
      threshold: of a tie of the reward, for the rule that has one.
    """

    tau: float
    low: float
    high: float
    prompts: int
    undefined: int
    accuracy: float
    pairs: int
    published: dict[str, float] = dataclasses.field(default_factory=dict)
    threshold: float = 0.0


def agreement(
    rankings: Sequence[Ranked], scores: Sequence[np.ndarray], resamples: int = 2000, seed: int = 0, threshold: float = 0.0
) -> Agreement:
    """Of a reward's `scores`, `[n_i]` for the i-th ranking, larger is better; `threshold`: see `conventions`.

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
    rules = CONVENTIONS.get(rankings[0].source, {})
    published = {name: rule(rankings, scores, threshold) for name, rule in rules.items()}
    undefined = len(every) - len(taus)
    return Agreement(
        float(taus.mean()), float(low), float(high), len(taus), undefined, right / pairs, pairs, published, threshold
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Scored:
    """A file of rankings and `{reward: scores [n_i] of the i-th}`, the mix among them where it has more than one."""

    rankings: list[Ranked]
    scores: dict[str, list[np.ndarray]]


def score_rankings(
    path: str | os.PathLike,
    folder: str | os.PathLike,
    mix: RewardMix,
    *,
    limit: int = 0,
    batch_size: int = 8,
    kept: Kept | None = None,
) -> Scored:
    """Every reward's scores of the pictures in a file of people's rankings.

    Args:
      path: see `didr_jax.rewards.people`.
      folder: where the files that it names are; not needed for Pick-a-Pic.
      mix: the rewards.
      limit: use the first so many prompts; 0: all.
      batch_size: pictures scored at once.
      kept: as of `scoring.score_pictures`.

    Raises:
      InputError: unreadable files (all absent pictures are counted at once).
    """
    rankings = rankings_in(path, folder, limit)
    pictures = [Path(folder) / each if isinstance(each, str) else each for ranked in rankings for each in ranked.pictures]
    prompts = [ranked.prompt for ranked in rankings for _ in ranked.pictures]
    scores = score_pictures(pictures, prompts, list(mix.models.values()), batch_size, kept)
    if len(mix.weights) > 1:
        scores[MIX] = mix.combine(scores)
    ends = np.cumsum([len(ranked.pictures) for ranked in rankings])[:-1]
    return Scored(rankings, {name: np.split(values, ends) for name, values in scores.items()})


def agreements(scored: Scored, validation: Scored | None = None) -> dict[str, Agreement]:
    """Every reward's agreement with people, and that of the mix.

    Args:
      scored: of the file.
      validation: of the split on which the threshold of a tie is chosen, for sets whose rule has one; None: 0, no ties.

    Raises:
      InputError: nothing to compare, or a validation split of a set that needs none.
    """
    if validation is not None and scored.rankings[0].source not in CHOSEN:
        raise InputError(f"config.tac.validation is for {', '.join(CHOSEN)}; leave it empty")
    chosen = {
        name: best_threshold(validation.rankings, validation.scores[name]) if validation is not None else 0.0
        for name in scored.scores
    }
    return {name: agreement(scored.rankings, each, threshold=chosen[name]) for name, each in scored.scores.items()}


def rankings_in(path: str | os.PathLike, folder: str | os.PathLike, limit: int = 0) -> list[Ranked]:
    """`read_rankings` of a file whose pictures are all there; opens none of them.

    Args:
      path, folder, limit: as of `score_rankings`.

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
    """As text, a line a reward; `accuracy` is ours, those by the set's own programs follow with their threshold of a tie, if any."""
    rules = list(next(iter(found.values())).published)
    head = f"{'reward':<14} {'tau-b':>8} {'95 %':>18} {'prompts':>8} {'accuracy':>9} {'pairs':>7}"
    lines = [head + "".join(f" {'by ' + rule:>15}" for rule in rules)]
    for name, each in found.items():
        interval = f"{each.low:.4f} to {each.high:.4f}"
        line = f"{name:<14} {each.tau:>8.4f} {interval:>18} {each.prompts:>8} {each.accuracy:>9.4f} {each.pairs:>7}"
        line += "".join(f" {each.published[rule]:>15.4f}" for rule in rules)
        lines.append(line + (f"  ties within {each.threshold:g}" if each.threshold else ""))
    return "\n".join(lines)
