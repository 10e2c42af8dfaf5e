"""What each key of a config means: the comments beside the knobs, read from where these are written.

A knob is a keyword of a section, `lr=lr,  # peak learning rate`, or an assignment, `config.lora.rank = 32  # …`.  Those of
rewards are told by their records.
"""

import ast
import importlib.util
import io
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_collections

from didr_jax.config import flatten
from didr_jax.rewards import REWARDS

# Sections that several keys have, by a knob that only such a section has: the function of `didr_jax.config` that makes them.
MADE_BY = {"objective": "game", "optimizer": "fit", "moment_dtype": "optimizer"}
SECTION = "_section"  # the function that makes a section of its keywords
WRITTEN_IN = ("config", "knobs")  # last names of modules that hold knobs

Table = dict[str, str]


def meanings(config: ml_collections.ConfigDict, path: str) -> Table:
    """`{flat key: meaning}` of a config that the file at `path` makes; empty where nobody wrote one."""
    tables: dict[str, Table] = {}
    for source in _sources(Path(path), set()):
        for function, table in _knobs(source):
            tables[function] = {**table, **tables.get(function, {})}
    everywhere = {
        key: said for function, table in tables.items() if function not in MADE_BY.values() for key, said in table.items()
    }
    everywhere |= {f"rewards.{knob.key}": knob.meaning for record in REWARDS.values() for knob in record.knobs.values()}
    found = {}
    for key in flatten(config):
        section, _, name = key.rpartition(".")
        kind = next((made for knob, made in MADE_BY.items() if section and knob in _section_at(config, section)), "")
        of_whole = everywhere.get(section) or _of_maker(section, tables)  # what is said of all of a section's keys
        found[key] = tables.get(kind, {}).get(name) or everywhere.get(key) or _of_maker(key, tables) or of_whole or ""
    return found


def _of_maker(key: str, tables: Mapping[str, Table]) -> str | None:
    """Of a key in a section that a function of its name makes."""
    section, _, name = key.partition(".")
    return tables.get(section, {}).get(name)


def _section_at(config: ml_collections.ConfigDict, key: str) -> Any:
    for name in key.split("."):
        config = config[name]
    return config


def _sources(path: Path, seen: set[Path]) -> Iterator[str]:
    """The file's text, and those of the modules with knobs that it imports, the more general first."""
    if path in seen:
        return
    seen.add(path)
    text = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        module = node.module if isinstance(node, ast.ImportFrom) else None
        if module and module.split(".")[-1] in WRITTEN_IN and (spec := importlib.util.find_spec(module)) and spec.origin:
            yield from _sources(Path(spec.origin), seen)
    yield text


def _knobs(text: str) -> Iterator[tuple[str, Table]]:
    """(function, {key: meaning}) of a source."""
    beside = _comments(text)
    for function in ast.walk(ast.parse(text)):
        if not isinstance(function, ast.FunctionDef):
            continue
        table: Table = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and (said := beside.get(node.end_lineno or 0)):
                table |= {key: said for target in node.targets if (key := _key(target))}
            elif isinstance(node, ast.Return) and isinstance(node.value, ast.Call):
                table |= _of_keywords(node.value, "", beside)
        yield function.name, table


def _of_keywords(call: ast.Call, above: str, beside: Mapping[int, str]) -> Table:
    table: Table = {}
    for keyword in call.keywords:
        inner = keyword.value
        if isinstance(inner, ast.Call) and isinstance(inner.func, ast.Name) and inner.func.id == SECTION:
            table |= _of_keywords(inner, f"{above}{keyword.arg}.", beside)
        elif said := beside.get(inner.end_lineno or 0):
            table[f"{above}{keyword.arg}"] = said
    return table


def _key(target: ast.expr) -> str:
    """ "a.b" of the target `config.a.b` or `section.b`; empty for a plain name."""
    names = []
    while isinstance(target, ast.Attribute):
        names.append(target.attr)
        target = target.value
    return ".".join(reversed(names))


def _comments(text: str) -> dict[int, str]:
    """Of each line that ends with one: the comment, or those of the lines above where the line has none of its own."""
    found: dict[int, str] = {}
    block: list[str] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        said = token.string.lstrip("# ").strip()
        if token.type == tokenize.COMMENT and token.line.strip().startswith("#"):
            block.append(said)
        elif token.type == tokenize.COMMENT and not said.startswith(("[", "fmt", "noqa")):
            found[token.start[0]] = said
        elif token.type in (tokenize.NEWLINE, tokenize.NL) and not token.line.strip().startswith("#"):
            if block and token.line.strip():
                found.setdefault(token.start[0], " ".join(block))
            block = []
    return found
