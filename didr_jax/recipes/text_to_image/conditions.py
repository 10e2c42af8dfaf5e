"""Prompts as a text-to-image step takes them: one table a list of prompts, whose last row is the empty prompt."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from didr_jax.rewards import RewardMix
from didr_jax.text.cache import cached, digest_texts
from didr_jax.text.encoder import TextEncoder
from didr_jax.training.startup import is_first_process
from didr_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class PromptTable:
    """n prompts.

    Attributes:
      prompts: the n strings.
      text: embeddings `{name: [n + 1, ...]}`, on disk; the last row is that of the empty prompt.
      tokens: of the rewards, a pytree of `[n, ...]`.
    """

    prompts: Sequence[str]
    text: Mapping[str, np.ndarray]
    tokens: PyTree

    def rows(self, which: np.ndarray | slice) -> PyTree:
        """Conditions `[len(which), ...]`: `{"text": …, "tokens": …}`."""
        pick = lambda column: np.asarray(column[: len(self.prompts)][which])
        return {"text": jax.tree.map(pick, dict(self.text)), "tokens": jax.tree.map(pick, self.tokens)}

    @property
    def everything(self) -> PyTree:
        """Conditions of all prompts, in order."""
        return self.rows(slice(None))

    @property
    def empty(self) -> PyTree:
        """The text `[1, ...]` of the empty prompt."""
        return {name: np.array(column[-1:]) for name, column in self.text.items()}


def prompt_table(
    prompts: Sequence[str], section: Any, make_encoder: Callable[[], TextEncoder], digest: str, mix: RewardMix | None
) -> PromptTable:
    """Embeds prompts, or finds their embeddings on disk.

    Args:
      prompts: strings.
      section: `config.data`.
      make_encoder: called only if there is something to embed.
      digest: of all that embeddings depend on besides the prompts.
      mix: the rewards whose tokens are wanted; None for none.
    """
    all_prompts = [*prompts, ""]
    say = functools.partial(print, flush=True) if is_first_process() else lambda message: None
    key = digest_texts([digest], all_prompts)
    text = cached(
        section.cache, key, all_prompts, make_encoder, dtype=section.dtype, batch_size=section.batch_size, say=say
    )  # fmt: skip
    return PromptTable(prompts, text, {} if mix is None else mix.tokenize(prompts))
