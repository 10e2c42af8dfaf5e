"""Every command in the README, the docs and the launch lines of configs and benchmarks, tried in a short form.

A command that begins like none of the rows of `SHORT` fails: who writes one says how it is tried.
"""

import functools
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from didr_jax import cli
from didr_jax.config import flatten
from didr_jax.named_configs import SAVED, named_configs, with_paths
from didr_jax.saved_config import READING

REPO = pathlib.Path(__file__).parent.parent
PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").glob("*.md"))]
SOURCES = [*sorted((REPO / "configs").glob("*.py")), *sorted((REPO / "benchmarks").glob("*.py"))]


def commands() -> dict[str, list[str]]:
    """{file: commands}, continued lines joined, comments and optional parts left out."""
    found = {}
    for path in (*PAGES, *SOURCES):
        text = path.read_text(encoding="utf-8").replace("\\\n", " ").replace("\\\\\n", " ")
        lines = re.findall(r"^ *((?:pip|python|didr-jax|[A-Z_]+=\S+ python) [^\n]*)$", text, re.M)
        lines = [part.strip() for line in lines for part in re.split(r" && | {2,}#.*| # .*", line) if part.strip()]
        found[path.relative_to(REPO).as_posix()] = [line for line in lines if re.match(r"(pip|python|didr-jax|[A-Z_]+=)", line)]
    return {name: lines for name, lines in found.items() if lines}


def parsed(command: str) -> None:
    """The config is found, or read from a workdir; each of its overridden keys is one; the mode is one."""
    words = with_paths(["run.py", *[w for w in shlex.split(command) if w.startswith("--")]])[1:]
    flags = dict(word[2:].partition("=")[::2] for word in words)
    given, mode = flags.pop("config", ""), flags.pop("mode", "train")
    assert mode in cli.MODES and (given or mode in READING), "without a config"
    of_workdir = not given or given.startswith(SAVED)
    config = set().union(*(flatten(cli._load(path)) for path in (named_configs().values() if of_workdir else [REPO / given])))
    for flag in ("workdir", "step", "allow_change", "fit"):
        flags.pop(flag, None)
    for key in flags:
        names = re.findall(r"\{([^}]*)\}", key)
        for name in names[0].split(",") if names else [""]:
            assert re.sub(r"\{[^}]*\}", name, key).removeprefix("config.") in config, f"{key} is not a config key"


def compared(command: str) -> None:
    """It names two runs or more, and flags that the command has."""
    words = shlex.split(command)
    words = words[words.index("compare") + 1 :]
    assert sum(not word.startswith("--") for word in words) > 1
    assert all(word.startswith("--out=") for word in words if word.startswith("--"))


def helped(command: str) -> None:
    """The benchmark is found, imports and knows each flag."""
    words = shlex.split(re.sub(r"\[.*?\]", "", command))
    known = help_of(words[1])
    for word in (word for word in words[2:] if word.startswith("--")):
        flag = word.lstrip("-").split("=")[0].split(".")[0]
        assert re.search(rf"--(\[no\])?{flag}\b", known), f"{word}: no such flag"


@functools.cache
def help_of(script: str) -> str:
    """What it says to --help; many pages name the same benchmark."""
    told = subprocess.run([sys.executable, script, "--help"], cwd=REPO, capture_output=True, text=True, timeout=120)
    assert told.returncode in (0, 1) and "Traceback" not in told.stderr, told.stderr  # absl's own --help returns 1
    return told.stdout


def listed(command: str) -> None:
    """The requirements files and extras that it names are there."""
    for name in re.findall(r"-r (\S+)", command):
        assert (REPO / name).is_file(), name


def given_to_pytest(command: str) -> None:
    """The files that pytest is given are there."""
    for name in re.findall(r"tests/\S+", command):
        assert (REPO / name).exists(), name


SHORT = {  # beginning of a command -> how it is tried, the longer ones first
    "python run.py compare": compared,
    "didr-jax compare": compared,
    "python run.py": parsed,
    "PYTHONPATH=. python run.py": parsed,
    "python -m didr_jax": parsed,
    "didr-jax": parsed,
    "python benchmarks/": helped,
    "python -m pytest": given_to_pytest,
    "FID_ORACLES=~/oracles python -m pytest": given_to_pytest,
    "python -m pydeps": listed,
    "pip install": listed,
}


@pytest.mark.parametrize("name", commands())
def test_the_commands_of(name):
    for command in commands()[name]:
        rows = [try_out for beginning, try_out in SHORT.items() if command.startswith(beginning)]
        assert rows, f"{command}: say in SHORT how it is tried"
        rows[0](command)


def test_commands_are_found():
    found = commands()
    assert {"README.md", "docs/sdxl.md", "docs/results.md", "configs/digits.py", "benchmarks/pareto.py"} <= found.keys()
    assert sum(map(len, found.values())) > 35


@pytest.mark.slow
def test_a_planned_command_of_the_docs_runs():
    command = next(
        c for c in commands()["docs/plans.md"] if c.startswith("python run.py --config=configs/sdxl.py --mode=compile")
    )
    blocks = [f"--config.{key}=blocks" for key in ("network.remat", "network.vae_remat", "rewards.remat")]  # auto traces them all
    words = [*shlex.split(command)[1:], "--config.compile.only_shapes=True", *blocks]
    done = subprocess.run([sys.executable, *words], cwd=REPO, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "operations per image" in done.stdout, done.stderr
