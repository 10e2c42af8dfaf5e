"""What a run came to, in words and numbers, from its table, its pairs and its alarms."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from didr_jax.reporting.pairs import Pairs

# Which way is better, of figures by the beginning of their names; of others nothing is said but their numbers.
BETTER = {
    "reward": 1,
    "accuracy": 1,
    "diversity": 1,
    "named": 1,
    "to_tilted": -1,  # while the distance to plain data, and KL to the reference, grow with any tilt
    "energy_to_": -1,
    "frechet": -1,
    "fid": -1,
    "kl_others": -1,
    "kl_smiles": -1,
}
LEVEL = 0.02  # share of a figure's size within which it counts as unchanged
SURE = 2.0  # standard errors beyond which a change of the reward is one


class Verdict(NamedTuple):
    """`level`: good, bad, or open; `headline`, and `sentences` that say why."""

    level: str
    headline: str
    sentences: list[str]


class Compared(NamedTuple):
    """Labels of the rows of a table between which training lies."""

    before: str
    after: str


def direction(figure: str) -> int:
    """1 where more is better, −1 where less is, 0 where nobody said."""
    return next((sign for beginning, sign in BETTER.items() if figure.startswith(beginning)), 0)


def compared(summary: Mapping[str, Mapping[str, float]], objective: str) -> Compared | None:
    """The rows before and after: by the convention of all recipes, "…initial" and "…OBJECTIVE"; None if they are not there."""
    last_word = lambda label: label.replace(",", " ").split()[-1:]
    before = [label for label in summary if last_word(label) == ["initial"]]
    after = [label for label in summary if last_word(label) == [objective]]
    return Compared(before[0], after[0]) if before and after else None


def standard_errors(pairs: Pairs | None) -> tuple[float, float, float]:
    """Of the mean reward before, after, and of their difference for the same noise; nan where it is not known."""
    if pairs is None or len(pairs.gain) < 2:
        return np.nan, np.nan, np.nan
    error = lambda values: float(np.std(values, ddof=1) / np.sqrt(len(values)))
    return error(pairs.reward_before), error(pairs.reward_after), error(pairs.gain)


def verdict(
    summary: Mapping[str, Mapping[str, float]],
    objective: str,
    pairs: Pairs | None,
    alarms: Mapping[str, int],
    watched: bool,
) -> Verdict:
    """Of a finished run.

    Args:
      summary: the table.
      objective: that training had.
      pairs: before and after, if the recipe left them.
      alarms: kept figures for which the hacking alarm was up at the last evaluation, and since which step.
      watched: whether anything is kept at all.
    """
    rows = compared(summary, objective)
    if rows is None:
        return Verdict("open", "Measured", ["This run has no before and after: the table says how each part did."])
    before, after = summary[rows.before], summary[rows.after]
    changes = {name: (before[name], after[name]) for name in after if name in before and name != "reward"}
    sentences = [] if "reward" not in after else [_of_the_reward(before["reward"], after["reward"], pairs)]
    for sign, word in ((1, "Better"), (-1, "Worse"), (0, "About as before")):
        named = [
            f"{name} {a:.4g} → {b:.4g}" for name, (a, b) in changes.items() if direction(name) and _change(name, a, b) == sign
        ]
        sentences += [f"{word}: {', '.join(named)}."] if named else []
    unknown = [f"{name} {a:.4g} → {b:.4g}" for name, (a, b) in changes.items() if not direction(name)]
    sentences += [f"Besides: {', '.join(unknown)}."] if unknown else []
    if alarms:
        since = ", ".join(f"{name} (since step {step})" for name, step in alarms.items())
        sentences.append(f"The alarm for reward hacking is up for {since}.")
        return Verdict("bad", "The reward rose at the pictures' expense", sentences)
    if "reward" not in after:
        return Verdict("open", "Trained without a reward", sentences)
    rise, error = after["reward"] - before["reward"], standard_errors(pairs)[2]
    if np.isfinite(error) and abs(rise) <= SURE * error:
        return Verdict("open", "The reward did not change beyond its error", sentences)
    if not rise > 0:
        return Verdict("bad", "The reward did not rise", sentences)
    if not watched:
        sentences.append("Nothing was measured that could tell whether the reward was hacked.")
        return Verdict("open", "The reward rose", sentences)
    return Verdict("good", "The reward rose, and nothing that is watched fell with it", sentences)


def _change(figure: str, before: float, after: float) -> int:
    """1: better, −1: worse, 0: within `LEVEL`."""
    if abs(after - before) <= LEVEL * max(abs(before), abs(after)):
        return 0
    return int(np.sign(after - before)) * direction(figure)


def _of_the_reward(before: float, after: float, pairs: Pairs | None) -> str:
    told = f"The reward went from {before:.4g} to {after:.4g} ({after - before:+.4g}"
    error = standard_errors(pairs)[2]
    if pairs is None or not np.isfinite(error):
        return f"{told}; its error is not known)."
    higher = float(np.mean(pairs.gain > 0) + np.mean(pairs.gain == 0) / 2)
    return f"{told} ± {error:.2g}); {higher:.1%} of {len(pairs.gain)} pairs of the same noise are higher."
