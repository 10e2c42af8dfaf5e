"""Figures of drawn sprouts against the reference's own pictures, by the shipped judge.

Beside `named`, `named_new`, `kl_others` and `kl_smiles` (`didr_jax/recipes/sprouts/judging.py`), of the judge's features:

    to_data      Fréchet distance to data with the same share of cheerful faces
    to_reference the same to the reference's pictures: 0 for its tilted law, whatever the strength
    odd          share of pictures further (Mahalanobis, from the nearer of faces that are cheerful and that are not)
                 from the reference's than 99 % of its own: .01 for its tilted law
    spread       mean squared distance of two pictures of a caption, of the reference's: 1 for its law
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matched_reward import Study, rows_of

from didr_jax.distances import frechet_distance, mahalanobis, moments
from didr_jax.recipes.sprouts import judging, parts

STUDY = Study(
    better={"named": 1, "named_new": 1, "kl_others": -1, "kl_smiles": -1, "to_data": -1, "to_reference": -1, "odd": -1, "spread": 1,
            "clipscore": 1},
    matched=("reward", "cheerful"),  # the reward, and the share that it is about
    plotted=("to_reference", "to_data", "named", "kl_smiles", "odd", "spread"),
)  # fmt: skip


class Drawn(NamedTuple):
    """Of each caption `[n]` its pictures: `parts [n, draws, 7]`, `features [n, draws, d]`, `reward [n, draws]`, `clipscore`."""

    parts: np.ndarray
    features: np.ndarray
    reward: np.ndarray
    clipscore: np.ndarray


class Measures:
    """Figures of drawn pictures against the reference's; all for a choice of captions."""

    def __init__(self, reference: Drawn, prompts: Sequence[str]):
        self._prompts = np.array(prompts)
        self._data = judging.read_judge(judging.SHIPPED / "judge")[1]
        features = _flat(reference.features)
        self._reference = judging.grouped(features, parts.cheerful(_flat(reference.parts)))
        self._edge = np.quantile(self._far(features), 0.99)
        self._spread = _pairs(reference.features)

    def _far(self, features: np.ndarray) -> np.ndarray:
        return np.minimum(*(mahalanobis(features, law) for law in self._reference.values()))

    def __call__(self, drawn: Drawn, which: np.ndarray | None = None) -> dict[str, float]:
        which = np.arange(len(self._prompts)) if which is None else which
        drawn, prompts = rows_of(drawn, which), np.repeat(self._prompts[which], drawn.parts.shape[1])
        features, found = _flat(drawn.features), _flat(drawn.parts)
        said = judging.verdict(found, features, list(prompts), self._data)
        law, share = moments(features), float(np.mean(parts.cheerful(found)))
        return {
            "reward": float(np.mean(drawn.reward)),
            "cheerful": said["cheerful"],
            **{name: said[name] for name in ("named", "named_new", "kl_others", "kl_smiles")},
            "to_data": said["frechet"],
            "to_reference": frechet_distance(law, judging.mixed(self._reference, share)),
            "odd": float(np.mean(self._far(features) > self._edge)),
            "spread": _pairs(drawn.features) / self._spread,
            "clipscore": float(np.mean(drawn.clipscore)),
        }


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, *x.shape[2:])


def _pairs(features: np.ndarray) -> float:
    """Mean squared distance of two different pictures of a caption, `features [n, draws, d]`."""
    return 2 * float(np.mean(np.sum(np.var(features, axis=1, ddof=1), -1)))
