"""The shipped recipes by name: `--config=digits` is the file configs/digits.py.

An installed package carries them as didr_jax/configs (setup.py); in a checkout they lie beside the package.
"""

import os
from pathlib import Path

from didr_jax.checks import nearest
from didr_jax.types import InputError

_PACKAGE = Path(__file__).resolve().parent
SAVED = str(_PACKAGE / "saved_config.py")  # the file whose argument is a workdir's config.json


def named_configs() -> dict[str, str]:
    """`{name: path}` of the shipped recipe files."""
    inside = _PACKAGE / "configs"
    folder = inside if inside.is_dir() else _PACKAGE.parent / "configs"
    return {file.stem: str(file) for file in sorted(folder.glob("*.py")) if not file.stem.startswith("_")}


def config_path(given: str) -> str:
    """The file that `--config=GIVEN` means: a path as it stands, otherwise that of a shipped recipe.

    A workdir's config.json becomes the argument of `saved_config`, which reads it.

    Raises:
      InputError: a name that no shipped recipe has.
    """
    if given.endswith(".json"):  # of a workdir
        return f"{SAVED}:{os.path.abspath(given)}"
    if not given or "/" in given or ".py" in given or os.path.isfile(given):
        return given
    known = named_configs()
    if given not in known:
        raise InputError(f"--config={given}: no recipe has this name (a file of your own needs its .py); {nearest(given, known)}")
    return known[given]


def with_paths(argv: list[str]) -> list[str]:
    """The command line with `--config=NAME` (or `--config NAME`) as `--config=PATH`.

    Raises:
      InputError: as `config_path`.
    """
    result, arguments = [], iter(argv)
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-config"):
            value = value if equals else next(arguments, "")
            argument = f"--config={config_path(value)}"
        result.append(argument)
    return result
