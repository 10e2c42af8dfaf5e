"""What a reward is to the rest of the package."""

import dataclasses
from collections.abc import Callable, Sequence

from didr_jax.types import Array, PyTree, Weights


@dataclasses.dataclass(frozen=True)
class RewardModel:
    """A frozen reward r(x0, c): pure functions and the weights to call them with.

    `preprocess(images) -> pixels`: `images [b, h, w, 3]` in [-1, 1], any height and width, to what the network takes.
    `score(params, pixels, tokens) -> [b]`: float32 in the reward's published units, larger is better, each from its
    own sample alone.
    `tokenize(prompts) -> tokens`: numpy arrays with leading axis b.

    `centre` and `spread` make different rewards comparable: a mix sums (r - centre)/spread.  For published rewards
    they are our choice: SDXL's mean score and what DIDR's longest training gained over it (2605.24001; for
    CLIPScore, what a published case of reward hacking lost), so that one unit of each is "as far as one gets".
    """

    name: str
    weights: Weights
    preprocess: Callable[[Array], Array]
    score: Callable[[PyTree, Array, PyTree], Array]
    tokenize: Callable[[Sequence[str]], PyTree]
    differentiable: bool = True
    centre: float = 0.0
    spread: float = 1.0

    def apply(self, params: PyTree, images: Array, tokens: PyTree) -> Array:
        """`images [b, h, w, 3]` in [-1, 1] and `tokens` -> scores `[b]`."""
        return self.score(params, self.preprocess(images), tokens)

    def normalise(self, score: Array) -> Array:
        """Published units -> the units of a mix."""
        return (score - self.centre) / self.spread
