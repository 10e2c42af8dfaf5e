"""What a reward is to the rest of the package, and what a config can ask of it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from didr_jax.models import remat
from didr_jax.rewards.shaping import Shape, plain
from didr_jax.text.encoder import TextEncoder
from didr_jax.types import Array, PyTree, Weights
from didr_jax.weights.hub import Files


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a reward reads a prompt without its picture, so that each prompt may be read once.

    Attributes:
      encoder: prompts to features, `{name: [b, ...]}`.
      weights: of the reward, less those of `encoder`.
      score: `(weights, pixels, features) -> [b]`, the reward's to rounding.
      digest: `() -> ` of all that the features of given tokens depend on.
    """

    encoder: TextEncoder
    weights: Weights
    score: Callable[[PyTree, Array, PyTree], Array]
    digest: Callable[[], str]


@dataclasses.dataclass(frozen=True)
class RewardModel:
    """A frozen reward r(x0, c): pure functions and the weights to call them with.

    `preprocess(images) -> pixels`: `images [b, h, w, 3]` in [-1, 1], any height and width, to what the network takes.
    `score(params, pixels, tokens) -> [b]`: float32 in the reward's published units, larger is better, each from its
    own sample alone.
    `tokenize(prompts) -> tokens`: numpy arrays with leading axis b.

    `shape` bends the normalised value in a mix (`rewards.shaping`).

    `reading` is for rewards that see the prompt as features of its own; None where it meets the picture inside the
    network (cross-attention), or there is nothing to encode.

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
    shape: Shape = plain
    reading: Reading | None = None

    def apply(self, params: PyTree, images: Array, tokens: PyTree) -> Array:
        """`images [b, h, w, 3]` in [-1, 1] and `tokens` -> scores `[b]`."""
        return self.score(params, self.preprocess(images), tokens)

    def normalise(self, score: Any) -> Any:
        """Published units -> the units of a mix, of an array of either library."""
        return self.shape((score - self.centre) / self.spread)

    def prefixed(self, prefix: str) -> "RewardModel":
        """The reward, which reads every prompt after `prefix`."""
        whole, reading = self.tokenize, self.reading
        tokenize = lambda prompts: whole([prefix + prompt for prompt in prompts])
        if reading is not None:
            reading = dataclasses.replace(reading, encoder=dataclasses.replace(reading.encoder, tokenize=tokenize))
        return dataclasses.replace(self, tokenize=tokenize, reading=reading)

    def apart(self) -> "RewardModel":
        """The reward that takes its features in the place of tokens, and has no text tower; itself where it has no `reading`."""
        if self.reading is None:
            return self
        return dataclasses.replace(self, weights=self.reading.weights, score=self.reading.score, reading=None)


# (the loader's arguments as the config gives them, the pipeline's CLIP tokenizer or None) -> value, or None for none
Otherwise = Callable[[Mapping[str, Any], str | None], Any]


@dataclasses.dataclass(frozen=True)
class Knob:
    """A key of `config.rewards` that fills an argument of a reward's loader; rewards may share one.

    Attributes:
      key: below `config.rewards`.
      meaning: in one line.
      default: what it is until it is set.
      choices: what it can be; empty: anything of the default's type.
      otherwise: what fills the argument where the knob is left empty; None: an empty knob is refused.
      files: what is read of its path, which may be a name on the hub; None: it is no path.
    """

    key: str
    meaning: str
    default: Any = ""
    choices: tuple[str, ...] = ()
    otherwise: Otherwise | None = None
    files: Files | None = None


MODEL, TOKENIZER = Files(weights=("",)), Files(texts=("",))  # what is read of a model's repository, and of a tokenizer's
_FLOATS = ("float32", "bfloat16", "float16")
# Of all rewards that are networks.
NETWORK_KNOBS = {
    "dtype": Knob("dtype", "of the rewards' computation", "float32", _FLOATS),
    "param_dtype": Knob(
        "param_dtype", "of the rewards' parameters; empty: as they compute", "", ("", *_FLOATS), lambda given, _: given["dtype"]
    ),
    "remat": Knob("remat", "of the image towers: as network.remat", remat.AUTO, remat.WORDS),
}


@dataclasses.dataclass(frozen=True)
class RewardRecord:
    """All that is to be known about a reward: a row of `rewards.REWARDS`.

    Attributes:
      load: `(**arguments) -> RewardModel`; reads configurations and names of tensors at most.
      about: what it scores, and in which units.
      knobs: {argument of `load`: the knob that fills it}; the one whose key is the reward's name turns it on.
      published: arguments with which `load` has the published architecture and reads no file, for plans.
      weight: in the mix, until the config says otherwise.
      held_out: measured and never trained on, until the config says otherwise.
    """

    load: Callable[..., RewardModel]
    about: str
    knobs: Mapping[str, Knob]
    published: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    weight: float = 1.0
    held_out: bool = False
