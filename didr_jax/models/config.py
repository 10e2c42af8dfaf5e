"""Reading the `config.json` of a diffusers or transformers folder without ignoring any of it."""

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from flax.errors import FlaxError

from didr_jax.checks import listed
from didr_jax.types import InputError

MOST = 2**20  # of any width or length
DEEPEST = 256  # layers that one number may ask for
LEVELS = 16  # entries of a list
BLOCKS = 512  # that all numbers together may ask for
# What diffusers' EMAModel writes beside the architecture.
AVERAGING = ("decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup")


def check_config(
    raw: Mapping[str, Any],
    class_name: str,
    *,
    used: Collection[str],
    fixed: Mapping[str, Collection[Any]],
    free: Collection[str] = (),
    sizes: Collection[str] = (),
    depths: Collection[str] = (),
    numbers: Collection[str] = (),
    flags: Collection[str] = (),
) -> None:
    """Refuses, by name, all that a port does not do.

    Args:
      raw: the parsed `config.json`.
      class_name: that `_class_name`, if there is one, must say.
      used: keys that the port reads.
      fixed: key -> the values it may have; an absent key is fine.
      free: keys that do not change the network's output.
      sizes, depths: keys of positive whole numbers, or lists of them; a network can be large, but nobody waits for one of
        a million layers.
      numbers, flags: keys of finite numbers and of booleans.  None is left to the port.

    Raises:
      InputError: one line with every refused key.
    """
    if (named := raw.get("_class_name", class_name)) != class_name:
        raise InputError(f"config.json describes a {named}, but a {class_name} is needed here")
    require_sane(raw, class_name, sizes=sizes, depths=depths, numbers=numbers, flags=flags)
    refused = [
        f"{key}={raw[key]!r} (can be {' or '.join(map(repr, allowed))})"
        for key, allowed in fixed.items()
        if key in raw and raw[key] not in allowed
    ]
    known = {*used, *fixed, *free, *AVERAGING}
    refused += [f"{key} (unknown)" for key in raw if key not in known and not key.startswith("_")]
    if refused:
        raise InputError(f"{class_name} config.json asks for what this port does not do: {listed(refused)}", refused)


def require_sane(
    raw: Mapping[str, Any],
    class_name: str,
    *,
    sizes: Collection[str] = (),
    depths: Collection[str] = (),
    numbers: Collection[str] = (),
    flags: Collection[str] = (),
) -> None:
    """Raises InputError, naming the keys, for values of types and sizes that no network has; see `check_config`."""
    whole = lambda value, most: type(value) is int and 1 <= value <= most
    rules = {
        **dict.fromkeys(sizes, (lambda v: _each(v, lambda n: whole(n, MOST)), f"whole numbers from 1 to {MOST}")),
        **dict.fromkeys(depths, (lambda v: _each(v, lambda n: whole(n, DEEPEST)), f"whole numbers from 1 to {DEEPEST}")),
        **dict.fromkeys(numbers, (lambda v: type(v) in (int, float) and math.isfinite(v), "a finite number")),
        **dict.fromkeys(flags, (lambda v: isinstance(v, bool), "true or false")),
    }
    odd = [
        f"{key}={str(raw[key])[:60]!r} (must be {meaning})"
        for key, (holds, meaning) in rules.items()
        if raw.get(key) is not None and not holds(raw[key])
    ]
    if odd:
        raise InputError(f"{class_name} config.json: {listed(odd)}; fetch it again", odd)


def _each(value: Any, holds: Any) -> bool:
    """Of one value, or of all in a short list, or list of lists."""
    if not isinstance(value, (list, tuple)):
        return holds(value)
    return 1 <= len(value) <= LEVELS and all(_each(v, holds) for v in value)


def require_few(blocks: int, class_name: str) -> None:
    """Raises InputError for a network of more blocks than anyone waits for."""
    if blocks > BLOCKS:
        raise InputError(f"{class_name} config.json asks for {blocks} blocks, more than {BLOCKS}; fetch it again")


_UNBUILDABLE = (
    TypeError, ValueError, ArithmeticError, LookupError, AttributeError, AssertionError, MemoryError, RecursionError, FlaxError,
)  # fmt: skip


@contextlib.contextmanager
def building(what: str) -> Iterator[None]:
    """While a network is put together from a `config.json`: whatever does not fit together in it is refused.

    Raises:
      InputError: in place of any error that odd values can cause.
    """
    try:
        yield
    except InputError:
        raise
    except _UNBUILDABLE as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"{what}: its config.json describes no network that can be built ({reason}); fetch it again") from error


def per_block(value: Any, blocks: int, key: str) -> tuple:
    """One value for all resolution levels, or a list with one for each, as a tuple."""
    if not isinstance(value, (list, tuple)):
        return (value,) * blocks
    if len(value) != blocks:
        raise InputError(f"config.json: {key} lists {len(value)} values for {blocks} blocks")
    return tuple(value)
