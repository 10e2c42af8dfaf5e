"""What `--help` says: how a command is written, the modes, and with `--config=NAME` every key with its meaning."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from didr_jax.config import flatten
from didr_jax.meanings import meanings
from didr_jax.named_configs import named_configs

WIDTH = 120
ASKED = ("--help", "-help", "-h", "-?", "--helpshort", "--helpfull")


def asked_for_help(argv: Sequence[str]) -> bool:
    return any(argument in ASKED for argument in argv[1:])


def help_text(flags: Mapping[str, str], modes: Mapping[str, str], config: Any = None, path: str = "") -> str:
    """The whole of it.

    Args:
      flags, modes: names and what they do.
      config: whose keys are listed, as the file at `path` makes it; None: how to ask for them is said.
    """
    lines = ["python run.py --config=RECIPE --workdir=DIR [--mode=MODE] [--config.KEY=VALUE ...]", ""]
    lines += _table({f"--{name}": said for name, said in flags.items()})
    lines += ["", "modes:", *_table(modes), ""]
    if config is None:
        names = ", ".join(named_configs())
        return "\n".join([*lines, f"--help --config=NAME lists the keys of a recipe: {names}, or a file of your own."])
    values, said = flatten(config), meanings(config, path)
    return "\n".join(
        [*lines, "keys (--config.KEY=VALUE), with their values:"] + _table({f"{k} = {v!r}": said[k] for k, v in values.items()})
    )


def _table(rows: Mapping[str, str]) -> list[str]:
    lines = []
    for name, said in rows.items():
        lines.append(f"  {name}")
        lines += textwrap.wrap(said, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return lines
