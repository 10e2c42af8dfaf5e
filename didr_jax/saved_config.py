"""The config of an earlier run, from the config.json of its workdir: `--config=WORKDIR/config.json`.

ml_collections runs this file as it runs those of configs/: `saved_config.py:PATH` is `get_config(PATH)`.  A key that
an older version did not write takes the value that the shipped recipe has today.
"""

import os
import runpy
from collections.abc import Sequence
from typing import Any

import ml_collections

from didr_jax.config import flatten
from didr_jax.named_configs import named_configs
from didr_jax.training.workdir import CONFIG, read_config
from didr_jax.types import InputError

READING = ("sample", "eval", "export", "score", "benchmark", "calibrate")  # modes that need no --config where the workdir has one


def get_config(path: str) -> ml_collections.ConfigDict:
    """The config that `path`, a workdir's config.json, holds.

    Raises:
      InputError: it cannot be read, is of another version, or has a value of another kind than the recipe's.
    """
    folder, name = os.path.split(path)
    found = read_config(folder) if name == CONFIG else None
    if found is None:
        raise InputError(f"--config={path}: no such file; give the {CONFIG} of a workdir, or a recipe")
    raw = found[0]
    config = _nearest(raw)
    with config.unlocked():
        for key, value in flatten(raw).items():
            try:
                _put(config, key, _tuples(value))
            except (TypeError, ValueError, KeyError, AttributeError) as error:
                line = " ".join(str(error).split())
                raise InputError(f"--config={path}: {key} = {value!r} is not of this recipe's kind ({line})") from None
    return config


def defaults(raw: dict) -> dict[str, Any]:
    """Today's values, by flat key, of the shipped recipe that the content of a config.json is nearest to."""
    return flatten(_nearest(raw))


def _nearest(raw: dict) -> ml_collections.ConfigDict:
    """Of the shipped recipes with the same networks and data, the one with most values in common; empty: there is none."""
    shipped = (runpy.run_path(path)["get_config"]() for path in named_configs().values())
    same = [config for config in shipped if config.recipe == raw.get("recipe")]
    mine = flatten(raw)
    common = lambda config: sum(mine.get(key, ...) == value for key, value in flatten(config).items())
    return max(same, key=common, default=ml_collections.ConfigDict())


def _put(config: ml_collections.ConfigDict, key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        if section not in config:
            config[section] = ml_collections.ConfigDict()
        config = config[section]
    config[name] = value


def _tuples(value: Any) -> Any:
    """JSON has lists where configs have tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def with_saved(argv: Sequence[str]) -> list[str]:
    """The command line, with `--config=WORKDIR/config.json` where it names a workdir and a mode that reads, and no config.

    Raises:
      InputError: there is no config.json.
    """
    workdir, mode = _value(argv, "workdir"), _value(argv, "mode")
    if _value(argv, "config") is not None or not workdir:
        return list(argv)
    path = os.path.join(workdir, CONFIG)
    if mode not in READING:
        hint = f"; --config={path} goes on with the run there" if os.path.isfile(path) and mode in (None, "train") else ""
        raise InputError(f"--config is missing; for example --config=digits{hint}")
    if not os.path.isfile(path):
        raise InputError(f"--config is missing, and --workdir={workdir} has no {CONFIG} of an earlier run")
    return [argv[0], f"--config={path}", *argv[1:]]


def _value(argv: Sequence[str], name: str) -> str | None:
    """Of the last `--NAME=VALUE` or `--NAME VALUE`; None if there is none."""
    found = None
    for i, argument in enumerate(argv[1:], 1):
        flag, equals, value = argument.partition("=")
        if flag in (f"--{name}", f"-{name}"):
            found = value if equals else "".join(argv[i + 1 : i + 2])
    return found
