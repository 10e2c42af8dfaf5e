"""Files that hold a network several times, with its moving average or with what the trainer needs: which of them is read."""

from collections.abc import Callable, Mapping
from typing import Any

from didr_jax.types import InputError

KNOB = "config.weights.state"
PLAIN = "state_dict"  # lightning's, and many others'
WITHIN = (PLAIN, "module", "model")  # in what is called a copy: `{"ema": {"module": {…}, "decay": 0.999}}`


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
    """Of a torch file's nested dictionaries that of the network: `{"ema": {…}, "model": {"state_dict": {…}}, "step": 5}`.

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
    inside = lambda value: (value.get(name) for name in WITHIN) if isinstance(value, Mapping) else ()
    found = {key: next(filter(is_state, (value, *inside(value))), None) for key, value in content.items() if isinstance(key, str)}
    copies = {key: state for key, state in found.items() if state is not None}
    if PLAIN in copies and not state:
        return copies[PLAIN]
    return choose(copies, state) if copies else content
