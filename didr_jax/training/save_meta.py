"""What a save says of itself: where it comes from, what it holds, and how to see that it still holds that.

format    of saves; 2 since the products are items of their own
step      and whatever the stage says of its origin: stage, run, code, jax, config
leaves    {item: {path: dtype and shape}}
digests   {item: {path: digest}}, see `digests`
note      why the run stopped here, if it did so for a fault
"""

import os
import subprocess
from collections.abc import Mapping
from typing import Any

from didr_jax.training.digests import describe, digests
from didr_jax.types import InputError, PyTree

FORMAT = 2
BINDING = ("stage", "run")  # of the origin: with the step, what it must have been saved for
_INSTEAD = {"run": ": --config.init_from=ITS_WORKDIR begins from another run's"}


def code_version() -> str:
    """The git commit of this code, with "+" if it was edited since; "unknown" outside a checkout."""
    here = os.path.dirname(os.path.abspath(__file__))
    command = ["git", "-C", here, "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def said_of(step: int, origin: Mapping[str, Any], items: Mapping[str, PyTree], note: str = "") -> dict[str, Any]:
    """The meta of a save."""
    leaves = {name: describe(tree) for name, tree in items.items()}
    told = {name: digests(tree) for name, tree in items.items()}
    return {"format": FORMAT, "step": step, **origin, "leaves": leaves, "digests": told} | ({"note": note} if note else {})


def require_format(meta: Mapping[str, Any], path: str) -> None:
    """Raises InputError for a save of an older version."""
    if meta.get("format", 1) != FORMAT:
        raise InputError(
            f"checkpoint {path} was saved by another version of didr_jax (code {meta.get('code')}, "
            f"format {meta.get('format', 1)}; this one reads {FORMAT}): go on with that version, or use a new workdir"
        )


def require_origin(meta: Mapping[str, Any], step: int, origin: Mapping[str, Any]) -> None:
    """Raises ValueError for the save of another step, stage or run."""
    for name, wanted in {"step": step, **{name: origin[name] for name in BINDING if name in origin}}.items():
        if name in meta and meta[name] != wanted:
            raise ValueError(f"it is the save of {name} {meta[name]}" + _INSTEAD.get(name, ""))


def require_leaves(meta: Mapping[str, Any], shapes: Mapping[str, PyTree], path: str, whole: bool) -> None:
    """Raises InputError unless the save holds these shapes; `whole`: and no other items."""
    flat = lambda tables: {f"{name}: {leaf}": text for name, table in tables.items() for leaf, text in table.items()}
    wanted = flat({name: describe(tree) for name, tree in shapes.items()})
    found = flat({name: table for name, table in meta["leaves"].items() if whole or name in shapes})
    differing = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
    if differing:
        k = differing[0]
        raise InputError(
            f"checkpoint {path} holds another state (saved by code {meta.get('code')}): {k} is "
            f"{found.get(k)} there and {wanted.get(k)} here, {len(differing)} leaves differ; use a new workdir"
        )


def changed_leaf(meta: Mapping[str, Any], items: Mapping[str, PyTree]) -> str:
    """The first leaf that is not what was saved, as "item: path"; empty: there is none."""
    for name, tree in items.items():
        then = meta["digests"][name]
        for path, digest in digests(tree).items():
            if digest != then[path]:
                return f"{name}: {path}"
    return ""
