"""Where a run's figures go besides metrics.jsonl: TensorBoard's event files, or a tracking service.

A service is told the config (secrets hidden, `redact`), every figure and picture, and the summary.  A run that goes on is
the same run there: `tracker.json` in the workdir keeps its identity.
"""

import importlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from didr_jax.json_files import read_object
from didr_jax.training.workdir import write_json
from didr_jax.types import InputError

IDENTITY = "tracker.json"

Rows = Mapping[str, Mapping[str, float]]


class Sink(NamedTuple):
    """`write(stage, step, {name: float})`, `show(stage, step, {name: picture})`, `summarise({row: {name: float}})`."""

    write: Callable[[str, int, dict], None]
    show: Callable[[str, int, dict], None]
    summarise: Callable[[Rows], None]
    close: Callable[[], None]


# How a service is told which run it is, from the workdir's name and what is kept there.
SERVICES: dict[str, Callable[[str, str], dict[str, Any]]] = {
    "wandb": lambda name, known: {"name": name, "id": known, "resume": "allow", "allow_val_change": True},
    "trackio": lambda name, known: {"name": f"{name}-{known}", "resume": "allow"},  # its runs are known by their names
}


def open_trackers(workdir: str, section: Any, config: Mapping[str, Any]) -> list[Sink]:
    """Those that `section`, `config.log`, asks for.

    Args:
      workdir: of the run.
      section: see `config.base`.
      config: what they are told of the run, secrets hidden.

    Raises:
      InputError: a package that the section asks for is not installed.
    """
    opened = [_tensorboard(workdir, config)] if section.tensorboard else []
    return opened + ([_service(workdir, section, config)] if section.service else [])


def _tensorboard(workdir: str, config: Mapping[str, Any]) -> Sink:
    writer = _import("tensorboardX", "config.log.tensorboard").SummaryWriter(os.path.join(workdir, "tensorboard"))
    if config:
        writer.add_text("config", f"```\n{json.dumps(config, indent=1, sort_keys=True)}\n```")

    def write(stage: str, step: int, values: dict) -> None:
        for name, value in values.items():
            writer.add_scalar(f"{stage}/{name}", value, step)

    def show(stage: str, step: int, pictures: dict) -> None:
        for name, picture in pictures.items():
            writer.add_image(f"{stage}/{name}", picture, step, dataformats="HW" if picture.ndim == 2 else "HWC")

    def summarise(rows: Rows) -> None:
        names = list(dict.fromkeys(name for row in rows.values() for name in row))
        lines = [["", *names], ["---"] * (len(names) + 1)]
        lines += [[label, *(f"{row[name]:.5g}" if name in row else "" for name in names)] for label, row in rows.items()]
        writer.add_text("summary", "\n".join(f"| {' | '.join(line)} |" for line in lines))

    return Sink(write, show, summarise, writer.close)


def _service(workdir: str, section: Any, config: Mapping[str, Any]) -> Sink:
    """wandb, or trackio, which speaks the same calls."""
    service = _import(section.service, "config.log.service")
    name = os.path.basename(os.path.abspath(workdir))
    run = service.init(project=section.project, config=dict(config), **SERVICES[section.service](name, _identity(workdir)))
    seen: set[str] = set()

    def log(stage: str, step: int, values: dict) -> None:
        if stage not in seen and hasattr(run, "define_metric"):  # figures of a stage are drawn over its own steps
            run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        seen.add(stage)
        run.log({f"{stage}/{name}": value for name, value in values.items()} | {f"{stage}/step": step})

    def show(stage: str, step: int, pictures: dict) -> None:
        log(stage, step, {name: service.Image(picture) for name, picture in pictures.items()})

    def summarise(rows: Rows) -> None:
        flat = {f"summary/{label}/{name}": value for label, row in rows.items() for name, value in row.items()}
        getattr(getattr(run, "summary", None), "update", run.log)(flat)  # trackio has no summary

    return Sink(log, show, summarise, run.finish)


def _identity(workdir: str) -> str:
    """Of the run in a workdir, made when it is first asked for."""
    path = os.path.join(workdir, IDENTITY)
    if not os.path.exists(path):
        write_json(path, {"id": secrets.token_hex(4)})
    known = read_object(path, "remove it, and the run counts as a new one").get("id")
    if not isinstance(known, str) or not known.isalnum():
        raise InputError(f"{path} holds no id; remove it, and the run counts as a new one")
    return known


def _import(module: str, knob: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"{knob} needs the package {module}, which is not installed: pip install {module}") from None
