"""Real handwritten digits, and a simulated annotator who prefers legible, bold ones.

scikit-learn ships 1,797 images of 8×8 grey pixels with their labels.  A fixed third is held out and is
seen by no training stage.  Images are `[n, 8, 8, 1]` in [−1, 1], ink being +1.

The annotator compares two images offered as the digit c.  Each has a utility

    u = (ink − mean ink of c) / (std of ink of c) − 3·[it shows another digit] − 2·damage       (1)

where damage ∈ [0, 1] says how much it was blurred, speckled or faded; the annotator prefers a to b
with probability sigmoid(u_a − u_b) (Bradley & Terry, 1952).
"""

import dataclasses

import numpy as np
from sklearn.datasets import load_digits

NUM_CLASSES = 10
IMAGE = (8, 8, 1)


@dataclasses.dataclass(frozen=True)
class Split:
    """Images `[n, 8, 8, 1]` in [−1, 1] and their labels `[n]`."""

    images: np.ndarray
    labels: np.ndarray

    def draw(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        which = rng.integers(len(self.labels), size=n)
        return self.images[which], self.labels[which]


def load(held_out: float = 1 / 3) -> tuple[Split, Split]:
    """The training and the held-out split, the same in every run and stratified by digit."""
    raw = load_digits()
    images = (raw.images / 8.0 - 1.0).astype(np.float32)[..., None]
    labels = raw.target.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    rank = np.concatenate([np.arange(n) / n for n in np.bincount(labels)])
    train, test = np.sort(order[rank >= held_out]), np.sort(order[rank < held_out])
    return Split(images[train], labels[train]), Split(images[test], labels[test])


def ink(images: np.ndarray) -> np.ndarray:
    """Mean darkness `[n]` in [0, 1]."""
    return (images.reshape(len(images), -1).mean(1) + 1) / 2


def blur(images: np.ndarray) -> np.ndarray:
    """A 3×3 box blur with paper outside the border."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-1.0)
    shifts = [padded[:, i : i + images.shape[1], j : j + images.shape[2]] for i in range(3) for j in range(3)]
    return np.mean(shifts, axis=0)


class Annotator:
    """Draws comparisons according to equation (1), with ink statistics of the training split.

    Args:
      train: that split.
      offered: whose images are offered; None: the training split's.
    """

    def __init__(self, train: Split, offered: Split | None = None):
        self._offered = offered or train
        self._by_class = [np.flatnonzero(self._offered.labels == c) for c in range(NUM_CLASSES)]
        amounts = [ink(train.images[train.labels == c]) for c in range(NUM_CLASSES)]
        self._mean = np.array([a.mean() for a in amounts])
        self._std = np.array([a.std() for a in amounts])

    def _offer(self, rng: np.random.Generator, digit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """An image offered as each `digit [n]`, and its utility: a fifth wrong, two fifths damaged."""
        n = len(digit)
        wrong = rng.random(n) < 0.2
        shown = np.where(wrong, (digit + rng.integers(1, NUM_CLASSES, n)) % NUM_CLASSES, digit)
        rows = np.array([self._by_class[c][rng.integers(len(self._by_class[c]))] for c in shown])
        images = self._offered.images[rows]
        damage = np.where(rng.random(n) < 0.4, rng.random(n), 0.0).astype(np.float32)
        amount = damage[:, None, None, None]
        speckled = np.clip(images + amount * rng.standard_normal(images.shape), -1, 1)
        faded = (1 - amount) * images - amount
        blurred = (1 - amount) * images + amount * blur(images)
        kind = rng.integers(3, size=n)[:, None, None, None]
        images = np.select([kind == 0, kind == 1], [speckled, faded], blurred).astype(np.float32)
        utility = (ink(images) - self._mean[digit]) / self._std[digit] - 3.0 * wrong - 2.0 * damage
        return images, utility

    def rank(self, rng: np.random.Generator, n: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """k images offered as each of n digits: labels `[n]`, images `[n, k, 8, 8, 1]`, and their utilities `[n, k]`."""
        digit = rng.integers(NUM_CLASSES, size=n)
        images, utility = self._offer(rng, np.repeat(digit, k))
        return digit.astype(np.int32), images.reshape(n, k, *IMAGE), utility.reshape(n, k)

    def compare(self, rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
        """n comparisons: `label [n]`, images `better` and `worse` `[n, 8, 8, 1]`."""
        digit = rng.integers(NUM_CLASSES, size=n)
        (a, utility_a), (b, utility_b) = self._offer(rng, digit), self._offer(rng, digit)
        prefers_a = rng.random(n) < 1 / (1 + np.exp(utility_b - utility_a))
        pick = prefers_a[:, None, None, None]
        return {"label": digit.astype(np.int32), "better": np.where(pick, a, b), "worse": np.where(pick, b, a)}


def shaken(rng: np.random.Generator, split: Split, n: int) -> dict[str, np.ndarray]:
    """Labelled images moved by up to a pixel and slightly speckled, to train a classifier on."""
    images, labels = split.draw(rng, n)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-1.0)
    down, right = rng.integers(3, size=(2, n))
    moved = np.stack([p[i : i + 8, j : j + 8] for p, i, j in zip(padded, down, right, strict=False)])
    return {"x0": (moved + 0.1 * rng.standard_normal(moved.shape)).astype(np.float32), "label": labels}
