"""Reading the `config.json` of a diffusers or transformers folder without ignoring any of it."""

from collections.abc import Collection, Mapping
from typing import Any

from didr_jax.types import InputError


def check_config(
    raw: Mapping[str, Any],
    class_name: str,
    *,
    used: Collection[str],
    fixed: Mapping[str, Collection[Any]],
    free: Collection[str] = (),
) -> None:
    """Refuses, by name, all that a port does not do.

    Args:
      raw: the parsed `config.json`.
      class_name: that `_class_name`, if there is one, must say.
      used: keys that the port reads.
      fixed: key -> the values it may have; an absent key is fine.
      free: keys that do not change the network's output.

    Raises:
      InputError: one line with every refused key.
    """
    if (named := raw.get("_class_name", class_name)) != class_name:
        raise InputError(f"config.json describes a {named}, but a {class_name} is needed here")
    refused = [
        f"{key}={raw[key]!r} (can be {' or '.join(map(repr, allowed))})"
        for key, allowed in fixed.items()
        if key in raw and raw[key] not in allowed
    ]
    known = {*used, *fixed, *free}
    refused += [f"{key} (unknown)" for key in raw if key not in known and not key.startswith("_")]
    if refused:
        raise InputError(f"{class_name} config.json asks for what this port does not do: {', '.join(refused)}")


def per_block(value: Any, blocks: int, key: str) -> tuple:
    """One value for all resolution levels, or a list with one for each, as a tuple."""
    if not isinstance(value, (list, tuple)):
        return (value,) * blocks
    if len(value) != blocks:
        raise InputError(f"config.json: {key} lists {len(value)} values for {blocks} blocks")
    return tuple(value)
