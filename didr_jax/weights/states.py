"""Files that hold a network several times, with its moving average or with what the trainer needs: which of them is read."""

from collections.abc import Callable, Mapping
from typing import Any

from didr_jax.types import InputError

KNOB = "config.weights.state"
PLAIN = "state_dict"  # lightning's, and many others'


def choose(copies: Mapping[str, Any], state: str | None) -> Any:
    """One of several.

    Args:
      copies: by what the file calls them.
      state: what `KNOB` says, empty: nothing; None: that knob is not about this file.

    Raises:
      InputError: several, and none is chosen, or one that is not there.
    """
    if state and state in copies:
        return copies[state]
    if not state and len(copies) == 1:
        return next(iter(copies.values()))
    remedy = "keep one of them" if state is None else f"say which with {KNOB}={' or '.join(copies)}"
    raise InputError(f"weights: the file holds {' and '.join(copies)}; {remedy}" + (f", not {state!r}" if state else ""))


def chosen_state(content: Mapping[str, Any], is_tensor: Callable[[Any], bool], state: str | None) -> Mapping[str, Any]:
    """Of a torch file's nested dictionaries that of the network: `{"ema": {…}, "model": {…}, "step": 5}`.

    Args:
      content: of the file.
      is_tensor: whether a value is one.
      state: as in `choose`.

    Raises:
      InputError: as `choose`.
    """
    if all(map(is_tensor, content.values())):
        return content
    is_state = lambda value: isinstance(value, Mapping) and len(value) > 0 and all(map(is_tensor, value.values()))
    copies = {key: value for key, value in content.items() if isinstance(key, str) and is_state(value)}
    if PLAIN in copies and not state:
        return copies[PLAIN]
    return choose(copies, state) if copies else content
