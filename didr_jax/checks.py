"""Refusals in one line: what is wrong, where, and what would do."""

import difflib
import importlib
from collections.abc import Callable, Sequence

from didr_jax.types import InputError

MOST, SHORT = 5, 12  # names in a line; of a list that is told whole, so that one can be chosen


def nearest(name: str, known) -> str:
    """` Did you mean a, b?`, or the list of what is known, if it is a short one."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    names = sorted(known)
    few = names if len(names) <= SHORT else [*names[:MOST], f"… {len(names)} in all"]
    return f"known: {', '.join(few)}"


def listed(names: Sequence[str], between: str = ", ") -> str:
    """Names for an error's line, a few of them; all of them belong into its `details`."""
    more = f" and {len(names) - MOST} more (--verbose lists all)" if len(names) > MOST else ""
    return between.join(names[:MOST]) + more


def require_choice(where: str, value: str, known) -> None:
    """Raises InputError naming `config.WHERE` unless its value is one of `known`."""
    if not isinstance(value, str) or value not in known:
        raise InputError(f"config.{where} = {value!r} is not known; {nearest(str(value), known)}")


def require(ok: bool, where: str, value, rule: str) -> None:
    """Raises InputError naming `config.WHERE`, its value and the rule that it breaks, unless `ok`."""
    if not ok:
        raise InputError(f"config.{where} = {value!r}: {rule}")


def named_function(path: str, what: str) -> Callable:
    """The function at `path`, "module:function".

    Raises:
      InputError: there is none; `what` says whose path it is.
    """
    module, _, attribute = path.partition(":")
    if not (module and attribute):
        raise InputError(f"{what} {path!r}: write it as 'module:function'")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except ImportError as e:
        raise InputError(f"{what} {path!r}: cannot import {module} ({e}); is its folder on PYTHONPATH?") from e
    except AttributeError:
        raise InputError(f"{what} {path!r}: module {module} has no {attribute}") from None
    if not callable(function):
        raise InputError(f"{what} {path!r}: {attribute} is not a function")
    return function
