"""Figures of digits against the held-out images and the reference's own, by the features of the run's judge.

to_data, to_reference                Fréchet distances to the held-out images and to the reference's samples, as they are
to_tilted_data, to_tilted_reference  the same, after these were tilted by exp(λr) within each class to the run's own mean reward;
                                     the second is 0 for DIDR's target, whatever the strength
odd     share of images further (Mahalanobis, within the class asked for) from the reference's than 99 % of its own
spread  mean squared distance of two images of a class, of the reference's: 1 for its law
"""

from typing import NamedTuple

import numpy as np
from matched_reward import Study, rows_of

from didr_jax.distances import frechet_distance, mahalanobis, moments
from didr_jax.recipes.digits import report as digits
from didr_jax.recipes.digits.data import NUM_CLASSES

STUDY = Study(
    better={
        "accuracy": 1,
        "to_data": -1,
        "to_reference": -1,
        "to_tilted_data": -1,
        "to_tilted_reference": -1,
        "odd": -1,
        "spread": 1,
    },
    matched=("reward",),
    plotted=("to_data", "to_reference", "to_tilted_data", "to_tilted_reference", "accuracy", "spread"),
)
STEEPEST = 64.0  # λ at most: one image of each class is left long before


class Seen(NamedTuple):
    """Images as the judge sees them: `features [n, d]`, whether it reads the `label [n]` that was asked for, and `reward [n]`."""

    features: np.ndarray
    right: np.ndarray
    reward: np.ndarray
    label: np.ndarray


def tilted(law: Seen, reward: float) -> np.ndarray:
    """Weights ∝ exp(λr) within each class, λ such that their mean reward is `reward`, or as near as `STEEPEST` comes."""
    low, high = -STEEPEST, STEEPEST
    for _ in range(40):
        λ = (low + high) / 2
        weights = digits.DigitsJudge.class_weights(law.label, λ * law.reward)
        low, high = (λ, high) if weights @ law.reward < reward else (low, λ)
    return weights


class Measures:
    """Figures of one seed's images; all for a choice of rows."""

    def __init__(self, real: Seen, reference: Seen):
        self._laws = {"data": real, "reference": reference}
        even = lambda law: digits.DigitsJudge.class_weights(law.label, np.zeros(len(law.label)))
        self._plain = {name: moments(law.features, even(law)) for name, law in self._laws.items()}
        self._classes = [moments(reference.features[reference.label == c]) for c in range(NUM_CLASSES)]
        self._edge, self._spread = np.quantile(self._far(reference), 0.99), self._pairs(reference)

    def _far(self, seen: Seen) -> np.ndarray:
        far = np.zeros(len(seen.label))
        for c, law in enumerate(self._classes):
            rows = seen.label == c
            far[rows] = mahalanobis(seen.features[rows], law)
        return far

    def _pairs(self, seen: Seen) -> float:
        of = lambda c: 2 * np.var(seen.features[seen.label == c], axis=0, ddof=1).sum()
        return float(np.mean([of(c) for c in range(NUM_CLASSES)]))

    def __call__(self, seen: Seen, which: np.ndarray | None = None) -> dict[str, float]:
        seen = seen if which is None else rows_of(seen, which)
        own, reward = moments(seen.features), float(np.mean(seen.reward))
        return {
            "reward": reward,
            "accuracy": float(np.mean(seen.right)),
            **{f"to_{name}": frechet_distance(own, law) for name, law in self._plain.items()},
            **{
                f"to_tilted_{name}": frechet_distance(own, moments(law.features, tilted(law, reward)))
                for name, law in self._laws.items()
            },
            "odd": float(np.mean(self._far(seen) > self._edge)),
            "spread": self._pairs(seen) / self._spread,
        }
