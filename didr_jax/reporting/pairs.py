"""Before and after, for the same noise: what a recipe leaves in the workdir for the report, `pairs.npz`."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from didr_jax.whole_files import whole_file

FIRST, EXTREME = 24, 12  # pairs that are kept as they come; those of the largest gains, and of the largest losses
SIDE = 512  # pixels of the longer side above which kept pictures are made smaller


class Pairs(NamedTuple):
    """n samples of two generators for the same noise and conditions, and the pictures of k of them.

    Attributes:
      reward_before, reward_after: `[n]`.
      which: int `[k]`, of the n, rising.
      captions: k lines of text.
      before, after: uint8 `[k, h, w]` or `[k, h, w, 3]`.
      target, target_weights: `[m]`, rewards of samples of the law that training aims at, and their weights; empty: not known.
    """

    reward_before: np.ndarray
    reward_after: np.ndarray
    which: np.ndarray
    captions: np.ndarray
    before: np.ndarray
    after: np.ndarray
    target: np.ndarray = np.empty(0)
    target_weights: np.ndarray = np.empty(0)

    @property
    def gain(self) -> np.ndarray:
        """`[n]`, of the reward."""
        return self.reward_after - self.reward_before

    def extremes(self, sign: int, most: int = EXTREME) -> np.ndarray:
        """Places among the k pictures of the largest gains (sign 1) or losses (−1) of all n, the largest first."""
        shown = self.gain[self.which]
        order = np.argsort(-sign * shown, kind="stable")[:most]
        return order[sign * shown[order] > 0]

    def drawn(self) -> np.ndarray:
        """Places among the k pictures of those that nobody chose, the largest gain first."""
        first = np.flatnonzero(self.which < FIRST)
        return first[np.argsort(-self.gain[self.which[first]], kind="stable")]


def chosen(gain: np.ndarray) -> np.ndarray:
    """Which of n samples are shown, rising: the first `FIRST`, and the `EXTREME` of the largest gains and losses."""
    order = np.argsort(gain, kind="stable")
    ends = np.concatenate([order[:EXTREME], order[len(order) - min(EXTREME, len(order)) :]])
    return np.unique(np.concatenate([np.arange(min(FIRST, len(gain))), ends]))


def write_pairs(
    workdir: str,
    before: np.ndarray,
    after: np.ndarray,
    captions: Sequence[str],
    reward_before: np.ndarray | None = None,
    reward_after: np.ndarray | None = None,
    target: np.ndarray | None = None,
    target_weights: np.ndarray | None = None,
) -> None:
    """`pairs.npz`: all rewards, and the pictures of those pairs that a report shows.

    Args:
      workdir: of the run.
      before, after: uint8 `[n, h, w]` or `[n, h, w, 3]`; `[n, 0, 0]` where samples are no pictures.
      captions: n lines of text, what each was made for.
      reward_before, reward_after: `[n]`; None: there is no reward.
      target, target_weights: see `Pairs`.

    Raises:
      CannotSave: the disk is full.
    """
    unknown = np.full(len(before), np.nan)
    rewards = [unknown if values is None else np.asarray(values, float) for values in (reward_before, reward_after)]
    which = chosen(np.nan_to_num(rewards[1] - rewards[0])) if before.size else np.empty(0, int)
    kept = Pairs(
        rewards[0],
        rewards[1],
        which,
        np.asarray([captions[i] for i in which], dtype=str),
        _smaller(before[which]),
        _smaller(after[which]),
        np.empty(0) if target is None else np.asarray(target, float),
        np.empty(0) if target_weights is None else np.asarray(target_weights, float),
    )
    with whole_file(os.path.join(workdir, "pairs.npz"), binary=True) as file:
        np.savez_compressed(file, **kept._asdict())


def _smaller(images: np.ndarray) -> np.ndarray:
    """uint8 pictures whose longer side is at most `SIDE` pixels."""
    if not len(images) or max(images.shape[1:3]) <= SIDE:
        return images
    scale = SIDE / max(images.shape[1:3])
    size = round(images.shape[2] * scale), round(images.shape[1] * scale)
    return np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)) for image in images])


def read_pairs(workdir: str) -> Pairs | None:
    """What `write_pairs` left; None if there is nothing."""
    path = os.path.join(workdir, "pairs.npz")
    if not os.path.exists(path):
        return None
    with np.load(path, allow_pickle=False) as file:
        return Pairs(**{name: file[name] for name in Pairs._fields})
