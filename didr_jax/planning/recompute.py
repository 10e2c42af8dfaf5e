"""How little the backward passes of a step can recompute in the memory that is there: what `remat=auto` stands for.

For each network a word of `models.remat` is chosen: of all combinations that fit, the one with the fewest operations,
counted in the networks' own gradients.  What a device needs is added up from shapes:

    held          what lives between steps (`plan`)
    gradients     of the network that is trained, once more where micro-batches add theirs up, and its parameters in
                  the type of the computation where that is another one
    activations   of each network: the most that its gradient's program has alive at once (`liveness`), over the rows of
                  a micro-batch on one device, as often as it has backward passes open at the same time

It errs upwards, since compilers fuse: adapters of SDXL at 1024² come to 15, 22 and 90 GiB of activations for `blocks`,
`products` and `none`, of which XLA takes 9, 16 and 60 (docs/plans.md).  What may be filled is `training.chips.Room`.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax

from didr_jax.planning.liveness import bytes_of, most_alive
from didr_jax.training import flops
from didr_jax.training.chips import GIB, Room
from didr_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class Part:
    """A network of a step.

    Attributes:
      key: of the config, whose value is a word of `models.remat`.
      words: which of them it may be, from the least recomputation to the most.
      gradient: `word -> (function, shapes of its arguments)`: one backward pass over the rows that a device has at once.
      passes: backward passes for each row and step.
      open: how many of them are open at the same time, by word.
      weights: shapes that are parameters, and no activations.
    """

    key: str
    words: Sequence[str]
    gradient: Callable[[str], tuple[Callable, Sequence[PyTree]]]
    passes: int
    open: Callable[[str], int]
    weights: PyTree


class Choice(NamedTuple):
    """`words` by key; the bytes that are `needed` then by the estimate, and `less_needs`, those of the choice with less
    recomputation that did not fit (None: there is none); `fits`: whether the estimate says so."""

    words: Mapping[str, str]
    needed: int
    less_needs: int | None
    fits: bool


def measure(part: Part, word: str) -> tuple[float, int]:
    """(operations, bytes of activations) of a part's backward passes in a step: for its rows, and at once."""
    if not part.passes:
        return 0.0, 0
    function, arguments = part.gradient(word)
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    weights = {leaf.shape for leaf in jax.tree.leaves(part.weights) if leaf.shape}
    size = lambda aval: 0 if getattr(aval, "shape", ()) in weights else bytes_of(aval)
    return part.passes * sum(flops.count_jaxpr(jaxpr).values()), part.open(word) * most_alive(jaxpr, size)


def choose(parts: Sequence[Part], fixed: int, room: int | None) -> Choice:
    """The combination with the fewest operations of those that fit.

    Args:
      parts: what is chosen for.
      fixed: bytes that are needed besides activations.
      room: bytes that may be filled; None: not known, and the most is recomputed.

    A combination that recomputes no less than one that fits, in any network, is not looked at, since a gradient of a large
    network takes seconds to trace.
    """
    measured = functools.cache(lambda i, word: measure(parts[i], word))
    operations = lambda words: sum(measured(i, word)[0] for i, word in enumerate(words))
    needed = lambda words: fixed + sum(measured(i, word)[1] for i, word in enumerate(words))
    named = lambda words: {part.key: word for part, word in zip(parts, words, strict=True)}
    rank = lambda words: [part.words.index(word) for part, word in zip(parts, words, strict=True)]

    most = tuple(part.words[-1] for part in parts)
    if room is None:
        return Choice(named(most), 0, None, False)
    fit: list[tuple[str, ...]] = []
    too_large: list[tuple[str, ...]] = []
    for words in itertools.product(*(part.words for part in parts)):
        if any(all(a <= b for a, b in zip(rank(better), rank(words), strict=True)) for better in fit):
            continue
        (fit if needed(words) <= room else too_large).append(words)
    if not fit:
        return Choice(named(most), needed(most), None, False)
    best = min(fit, key=operations)
    less = max((words for words in too_large if operations(words) <= operations(best)), key=operations, default=None)
    return Choice(named(best), needed(best), None if less is None else needed(less), True)


def in_words(choice: Choice, room: Room) -> str:
    """One line: what was chosen, and why."""
    words = ", ".join(f"{key}={word}" for key, word in choice.words.items())
    if room.size is None:
        return f"{words} (auto): the memory of these devices is not known"
    size = lambda n: f"{n / GIB:.3g} GiB"
    about = f"needs about {size(choice.needed)} of the {size(room.size)} of {room.what}"
    if not choice.fits:
        return f"{words} (auto): {about}, by shapes, and may not fit"
    less = f"; less recomputation would take {size(choice.less_needs)}" if choice.less_needs else ""
    return f"{words} (auto): {about}, by shapes{less}"
