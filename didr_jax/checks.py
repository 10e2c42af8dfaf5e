"""Refusals in one line: what is wrong, where, and what would do."""

import difflib

from didr_jax.types import InputError


def nearest(name: str, known) -> str:
    """` Did you mean a, b?`, or the list of what is known."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(sorted(known))}"


def require_choice(where: str, value: str, known) -> None:
    """Raises InputError naming `config.WHERE` unless its value is one of `known`."""
    if value not in known:
        raise InputError(f"config.{where} = {value!r} is not known; {nearest(value, known)}")


def require(ok: bool, where: str, value, rule: str) -> None:
    """Raises InputError naming `config.WHERE`, its value and the rule that it breaks, unless `ok`."""
    if not ok:
        raise InputError(f"config.{where} = {value!r}: {rule}")
