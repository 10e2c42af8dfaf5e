"""Prompts as a text-to-image step takes them: embeddings from disk, or tokens that the step embeds itself.

Each distinct prompt is embedded once, and so is the empty one.  Texts of many lengths (Z-Image's captions) are kept by
length, in an entry of the cache for each of `SHORTEST`, twice as many, … tokens.  When they are used they are padded with
zeros to the widest of those that are used together, so that a step has one of a few shapes.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from didr_jax.rewards import RewardMix
from didr_jax.rewards.base import Reading
from didr_jax.text.cache import cached, digest_tensors, digest_texts
from didr_jax.text.encoder import TextEncoder, text_encoder
from didr_jax.training.startup import is_first_process
from didr_jax.types import PyTree, Weights

SHORTEST = 32  # tokens of a text as it is kept, where texts are of many lengths
LENGTH = "length"
EVERY_WIDTH = np.zeros(0, int)  # among which nothing is: the widest that there can be

Text = Mapping[str, np.ndarray]  # {name: [k, ...]} of k prompts


class Conditions(Protocol):
    """Of n prompts: `rows(which, among)` are those of some, `[len(which), ...]`, as wide as all `among` which they are used."""

    @property
    def prompts(self) -> Sequence[str]: ...

    def rows(self, which: np.ndarray, among: np.ndarray | None = None) -> PyTree: ...


@dataclasses.dataclass(frozen=True)
class PromptTable:
    """n prompts with their embeddings.

    Attributes:
      prompts: the n strings.
      place: of each prompt, and at last of the empty one, its row among the distinct ones, `[n + 1]`.
      text: `(rows [k], among) -> {name: [k, ...]}` of distinct prompts, as wide as the widest of rows `among [n]`.
      tokens: what the rewards read, a pytree of arrays whose rows are the distinct prompts.
    """

    prompts: Sequence[str]
    place: np.ndarray
    text: Callable[[np.ndarray, np.ndarray], Text]
    tokens: PyTree

    def rows(self, which: np.ndarray | slice, among: np.ndarray | None = None) -> PyTree:
        """Conditions `[len(which), ...]`: `{"text": …, "tokens": …}`, as wide as those of the prompts `among [n]`; None: of all."""
        picked, together = self.place[:-1][which], self.place[:-1][slice(None) if among is None else among]
        text = self.text(picked, np.append(together, self.place[-1]))  # guidance's other branch is as wide
        return {"text": dict(text), "tokens": jax.tree.map(lambda column: np.asarray(column[picked]), self.tokens)}

    @property
    def everything(self) -> PyTree:
        """Conditions of all prompts, in order."""
        return self.rows(slice(None))

    @property
    def empty(self) -> Text:
        """The text `[1, ...]` of the empty prompt, as wide as a text can be."""
        return {name: np.array(column) for name, column in self.text(self.place[-1:], EVERY_WIDTH).items()}


@dataclasses.dataclass(frozen=True)
class PromptTokens:
    """n prompts that the step embeds: `tokenize` makes `{name: [k, ...]}` of k of them, for the text encoder."""

    prompts: Sequence[str]
    place: np.ndarray
    tokenize: Callable[[Sequence[str]], Text]
    tokens: PyTree

    def rows(self, which: np.ndarray, among: np.ndarray | None = None) -> PyTree:
        """Conditions `[len(which), ...]`: `{"prompt": …, "tokens": …}`."""
        picked = self.place[:-1][which]
        prompts = self.tokenize([self.prompts[i] for i in which.tolist()])
        return {"prompt": dict(prompts), "tokens": jax.tree.map(lambda column: np.asarray(column[picked]), self.tokens)}


def distinct(prompts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The distinct ones in order, the empty one last; and the place of each, and of the empty one, among them, `[n + 1]`."""
    each = [*dict.fromkeys(prompt for prompt in prompts if prompt), ""]
    number = {prompt: i for i, prompt in enumerate(each)}
    return each, np.array([number[prompt] for prompt in (*prompts, "")])


def prompt_tokens(prompts: Sequence[str], encoder: TextEncoder, mix: RewardMix | None) -> PromptTokens:
    """Of prompts that the step embeds; `mix`: the rewards whose tokens are wanted."""
    each, place = distinct(prompts)
    return PromptTokens(prompts, place, encoder.tokenize, {} if mix is None else mix.tokenize(each))


def prompt_table(
    prompts: Sequence[str],
    section: Any,
    make_encoder: Callable[[], TextEncoder],
    digest: str,
    mix: RewardMix | None,
    longest: int | None = None,
    read: bool = True,
) -> PromptTable:
    """Embeds prompts, or finds their embeddings on disk.

    Args:
      prompts: strings.
      section: `config.data`.
      make_encoder: called only if there is something to embed.
      digest: of all that embeddings depend on besides the prompts.
      mix: the rewards that shall score; None for none.
      longest: tokens that texts of many lengths are padded to; None: they are of one length.
      read: whether the rewards read the prompts here, where they can, for `mix.apart()`; else they get tokens.
    """
    each, place = distinct(prompts)
    say = functools.partial(print, flush=True) if is_first_process() else lambda message: None
    encoder = functools.cache(lambda: _remembering(make_encoder()))

    def stored(key: str, prompts: Sequence[str], make: Callable[[], TextEncoder], dtype: str = section.dtype) -> Text:
        return cached(section.cache, key, prompts, make, dtype=dtype, batch_size=section.batch_size, say=say)

    def embedded(kind: str, prompts: Sequence[str], make: Callable[[], TextEncoder]) -> Text:
        return stored(digest_texts([digest, *([kind] if kind else [])], prompts), prompts, make)

    def features(reading: Reading) -> Text:
        tokens = digest_tensors(reading.encoder.tokenize(each))
        return stored(digest_texts([reading.digest(), tokens]), each, lambda: reading.encoder, "float32")

    if longest is None:
        text = _of_one_length(embedded("", each, encoder))
    else:
        lengths = embedded("lengths", each, lambda: _measuring(encoder()))
        text = _by_length(each, np.asarray(lengths[LENGTH]), longest, encoder, embedded)
    models = {} if mix is None else mix.models
    seen = {
        name: features(model.reading) if read and model.reading is not None else model.tokenize(each)
        for name, model in models.items()
    }
    return PromptTable(prompts, place, text, seen)


def read_shapes(mix: RewardMix | None, read: bool) -> PyTree:
    """Shapes `[1, ...]` of what the rewards are given of one prompt; `read` as of `prompt_table`."""
    models, shape = {} if mix is None else mix.models, lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype)
    return {
        name: dict(model.reading.encoder.shapes)
        if read and model.reading is not None
        else jax.tree.map(shape, model.tokenize([""]))
        for name, model in models.items()
    }


def _remembering(encoder: TextEncoder) -> TextEncoder:
    """The encoder, whose weights are read once, and held as long as it is."""
    fill = functools.cache(encoder.weights.load)
    weights = dataclasses.replace(encoder.weights, fill=lambda shapes, places: fill(places))
    return dataclasses.replace(encoder, weights=weights)


def _measuring(encoder: TextEncoder) -> TextEncoder:
    """An encoder that only tells the length of each prompt, and has no weights."""
    assert encoder.length is not None
    length = encoder.length
    return text_encoder(Weights.join({}), encoder.tokenize, lambda params, tokens: {LENGTH: length(tokens)})


def _of_one_length(arrays: Text) -> Callable[[np.ndarray, np.ndarray], Text]:
    return lambda rows, among: {name: np.asarray(column[rows]) for name, column in arrays.items()}


def _by_length(
    each: Sequence[str], lengths: np.ndarray, longest: int, encoder: Callable[[], TextEncoder], embedded: Callable[..., Text]
) -> Callable[[np.ndarray, np.ndarray], Text]:
    """The text of rows of `each`, from an entry for each width; `lengths [n]`, of which none is above `longest`."""
    doublings = np.ceil(np.log2(np.maximum(lengths, SHORTEST) / SHORTEST)).astype(int)
    widths = np.minimum(SHORTEST * 2**doublings, longest)
    inside = np.zeros(len(each), int)  # the row of a prompt in the entry of its width
    entries = {}
    for width in np.unique(widths).tolist():
        members = np.flatnonzero(widths == width)
        inside[members] = np.arange(len(members))
        cut = lambda width=width: _cut(encoder(), width)
        entries[width] = embedded(f"width {width}", [each[i] for i in members.tolist()], cut)

    def text(rows: np.ndarray, among: np.ndarray) -> Text:
        found: dict[str, np.ndarray] = {}
        widest = widths[among].max() if len(among) else longest
        for width, arrays in entries.items():
            here = np.flatnonzero(widths[rows] == width)
            if width > widest:
                continue
            for name, column in arrays.items():
                tail = (widest, *column.shape[2:]) if column.ndim > 1 else column.shape[1:]
                whole = found.setdefault(name, np.zeros((len(rows), *tail), column.dtype))
                picked = np.asarray(column[inside[rows[here]]])
                whole[(here, slice(width)) if column.ndim > 1 else here] = picked
        return found

    return text


def _cut(encoder: TextEncoder, width: int) -> TextEncoder:
    """The encoder, whose sequences keep their first `width` rows: the rest are zero."""
    cut = lambda array: array[:, :width] if array.ndim > 2 else array
    encode = lambda params, tokens: jax.tree.map(cut, encoder.encode(params, tokens))
    shapes = {
        n: jax.ShapeDtypeStruct((1, width, *a.shape[2:]) if len(a.shape) > 2 else a.shape, a.dtype)
        for n, a in encoder.shapes.items()
    }
    return dataclasses.replace(encoder, encode=encode, shapes=shapes)


def as_stored(text: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """What a text encoder gives, in the types that the cache keeps."""
    return {name: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a for name, a in text.items()}
