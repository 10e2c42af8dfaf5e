"""The paths of a config on this host: hub names become paths in the cache, in every process of a run.

Process 0 says which commit a name stands for, so that all read the same; the name with its commit stays in the config and
so in the workdir's config.json, and a run that goes on reads what it began with.
"""

import functools
from collections.abc import Mapping
from typing import Any

from didr_jax.agreement import agreed
from didr_jax.training.startup import from_first
from didr_jax.training.workdir import read_config
from didr_jax.weights.hub import Files, local, pinned, same_but_pinned


def fetched(config, workdir: str, wanted: Mapping[str, Files]) -> Any:
    """A copy of the config in which all paths are of this host; in the config itself names get their commits.

    Args:
      config: of a run.
      workdir: of the run, which an earlier start may have written to; empty: none.
      wanted: by the config's key, what is read of each path.

    Raises:
      InputError, in every process: a name of what is neither in the cache nor to be had.
    """
    before = (read_config(workdir) or ({},))[0] if workdir else {}
    variant = _get(config, "weights.variant") or None
    copy = config.copy_and_resolve_references()
    for key, files in wanted.items():
        said = _get(config, key) or files.otherwise
        if not said:
            continue
        where, earlier = f"config.{key}", _get(before, key)
        if isinstance(earlier, str) and same_but_pinned(earlier, said):
            said = earlier
        named = from_first(functools.partial(pinned, said, where))
        if named != _get(config, key):
            _set(config, key, named)
        _set(copy, key, agreed(functools.partial(local, named, files, where, variant)))
    return copy


def _get(config: Mapping[str, Any], key: str) -> Any:
    for name in key.split("."):
        config = config[name] if name in config else {}
    return config or None


def _set(config, key: str, value: str) -> None:
    *sections, name = key.split(".")
    for section in sections:
        config = config[section]
    config[name] = value
