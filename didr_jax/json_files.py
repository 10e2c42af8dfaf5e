"""JSON files that others wrote: an object or a list, or one line that says why not."""

import json
import os
from collections.abc import Sequence
from typing import Any

from didr_jax.types import InputError

MOST_BYTES = 64 * 2**20  # an index of shards has a few
_KINDS: dict[type, str] = {dict: "an object", list: "a list"}


def _no_twins(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return content


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def parse_object(text: bytes, strict: bool = False) -> dict[str, Any]:
    """The object in a JSON text in UTF-8; raises ValueError for anything else, and for keys that stand twice.

    `strict`: by the letter of JSON, which has no NaN, no infinity and no half characters (Python has).
    """
    return _parse(text, dict, strict)


def _parse(text: bytes, kind: type, strict: bool = False) -> Any:
    try:
        content = json.loads(
            text.decode("utf-8-sig"), object_pairs_hook=_no_twins, parse_constant=_no_constant if strict else None
        )
        if strict and b"\\u" in text:
            json.dumps(content, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(content, kind):
        raise ValueError(f"it holds {type(content).__name__}, not {_KINDS[kind]}")
    return content


def read_object(path: str | os.PathLike, remedy: str = "fetch it again") -> dict[str, Any]:
    """The object in a file.

    Raises:
      InputError: unreadable, too large, not JSON, or not an object.
    """
    return _read(path, dict, remedy)


def read_list(path: str | os.PathLike, remedy: str = "fetch it again") -> list[Any]:
    """The list in a file; raises as `read_object`."""
    return _read(path, list, remedy)


def _read(path: str | os.PathLike, kind: type, remedy: str) -> Any:
    try:
        with open(path, "rb") as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES >> 20} MiB")
        return _parse(text, kind)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} cannot be read ({reason}); {remedy}") from None
