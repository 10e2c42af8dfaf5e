"""Pair accuracy as each set of people's preferences counts ties: numbers of two conventions do not compare.

    set            rule         pairs that people tied        pairs that the reward ties      mean over
    ImageRewardDB  ImageReward  left out                      wrong                           all pairs
                   HPSv2        left out                      wrong                           prompts, of each one's pairs
    HPDv2          HPSv2        right                         the first in the file is better prompts, of each one's pairs
    Pick-a-Pic     PickScore    right where the reward ties them too, else half; a tie of the reward alone is half too

Rules: `test.py` of THUDM/ImageReward, `evaluation.py` of tgxs002/HPSv2, `eval_preference_predictor.py` of
yuvalkirstain/PickScore.  For the last, a reward ties two pictures where their probabilities, softmax of the scores in
published units, are at most a threshold apart; it is the best of 0, .1, …, 1 on the set's validation split.
"""

from collections.abc import Callable, Sequence

import numpy as np

from didr_jax.rewards.people import Ranked

THRESHOLDS = tuple(np.arange(11) / 10)

Scores = Sequence[np.ndarray]  # [n_i] of the i-th ranking, larger is better
Rule = Callable[[Sequence[Ranked], Scores, float], float]  # (rankings, scores, threshold of a tie) -> accuracy


def _pairs(ranked: Ranked, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Differences of people's scores and of the reward's, of all pairs i < j."""
    i, j = np.triu_indices(len(ranked.people), 1)
    scores = np.asarray(scores, np.float64)
    return ranked.people[i] - ranked.people[j], scores[i] - scores[j]


def _strict(ranked: Ranked, scores: np.ndarray) -> tuple[int, int]:
    """(right, all) of the pairs that people did not tie."""
    people, reward = _pairs(ranked, scores)
    return int(np.sum(people * reward > 0)), int(np.count_nonzero(people))


def pooled(rankings: Sequence[Ranked], scores: Scores, threshold: float = 0.0) -> float:
    """ImageReward's own."""
    counted = [_strict(ranked, each) for ranked, each in zip(rankings, scores, strict=True)]
    return sum(right for right, _ in counted) / max(sum(number for _, number in counted), 1)


def by_prompt(rankings: Sequence[Ranked], scores: Scores, threshold: float = 0.0) -> float:
    """HPSv2's of ImageRewardDB; prompts of which people tied everything are left out."""
    counted = [_strict(ranked, each) for ranked, each in zip(rankings, scores, strict=True)]
    return float(np.mean([right / number for right, number in counted if number]))


def inversions(rankings: Sequence[Ranked], scores: Scores, threshold: float = 0.0) -> float:
    """HPSv2's of HPDv2: 1 − inversions / pairs, where the reward ranks strictly."""
    shares = []
    for ranked, each in zip(rankings, scores, strict=True):
        people, reward = _pairs(ranked, each)
        reward = np.where(reward == 0, 1.0, reward)  # argsort's order: the first in the file
        shares.append(1 - np.mean(people * reward < 0))
    return float(np.mean(shares))


def three_way(rankings: Sequence[Ranked], scores: Scores, threshold: float = 0.0) -> float:
    """PickScore's: people and the reward each say first, second, or tie."""
    points = []
    for ranked, each in zip(rankings, scores, strict=True):
        people, reward = _pairs(ranked, each)
        gap = np.tanh(reward / 2)  # p_0 − p_1 of a softmax of two
        said, predicted = np.sign(people), np.where(np.abs(gap) <= threshold, 0.0, np.sign(gap))
        points += np.where(said == predicted, 1.0, np.where((said == 0) | (predicted == 0), 0.5, 0.0)).tolist()
    return float(np.mean(points))


# set -> {whose rule: it}
CONVENTIONS: dict[str, dict[str, Rule]] = {
    "ImageRewardDB": {"ImageReward": pooled, "HPSv2": by_prompt},
    "HPDv2": {"HPSv2": inversions},
    "Pick-a-Pic": {"PickScore": three_way},
}
CHOSEN = ("Pick-a-Pic",)  # sets whose rule has a threshold


def best_threshold(rankings: Sequence[Ranked], scores: Scores) -> float:
    """Of `THRESHOLDS`, on a validation split; the smallest of equals."""
    return max(THRESHOLDS, key=lambda threshold: three_way(rankings, scores, threshold))
