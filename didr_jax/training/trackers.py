"""Where a run's figures go besides metrics.jsonl: TensorBoard's event files, or a tracking service.

A service is told the config (secrets hidden, `redact`), every figure and picture, and the summary.  A run that goes on is
the same run there: `tracker.json` in the workdir keeps its identity.
"""

import importlib
import json
import os
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from didr_jax.json_files import read_object
from didr_jax.types import InputError
from didr_jax.whole_files import saving, write_json

IDENTITY = "tracker.json"

Rows = Mapping[str, Mapping[str, float]]


class Sink(NamedTuple):
    """`write(stage, step, {name: float})`, `show(stage, step, {name: picture})`, `summarise({row: {name: float}})`.

    All raise CannotSave.
    """

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
    """Event files in `workdir/tensorboard`.

    tensorboardX's own writer has a thread: where that meets a full disk it dies with a traceback, and the run hangs as soon
    as its queue is full.  This one writes at once.
    """
    package = _import("tensorboardX", "config.log.tensorboard")
    event_pb2, summary = importlib.import_module("tensorboardX.proto.event_pb2"), package.summary
    folder = os.path.join(workdir, "tensorboard")
    os.makedirs(folder, exist_ok=True)
    file = package.event_file_writer.EventsWriter(os.path.join(folder, "events"), f".{os.getpid()}")

    def put(summaries: list, step: int = 0) -> None:
        with saving(folder):
            for each in summaries:
                file.write_event(event_pb2.Event(summary=each, step=step, wall_time=time.time()))
            file.flush()

    def write(stage: str, step: int, values: dict) -> None:
        put([summary.scalar(f"{stage}/{name}", value) for name, value in values.items()], step)

    def show(stage: str, step: int, pictures: dict) -> None:
        layout = lambda picture: "HW" if picture.ndim == 2 else "HWC"
        put([summary.image(f"{stage}/{name}", each, dataformats=layout(each)) for name, each in pictures.items()], step)

    def summarise(rows: Rows) -> None:
        names = list(dict.fromkeys(name for row in rows.values() for name in row))
        lines = [["", *names], ["---"] * (len(names) + 1)]
        lines += [[label, *(f"{row[name]:.5g}" if name in row else "" for name in names)] for label, row in rows.items()]
        put([summary.text("summary", "\n".join(f"| {' | '.join(line)} |" for line in lines))])

    if config:
        put([summary.text("config", f"```\n{json.dumps(config, indent=1, sort_keys=True)}\n```")])
    return Sink(write, show, summarise, file.close)


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
        with saving(section.service):
            run.log({f"{stage}/{name}": value for name, value in values.items()} | {f"{stage}/step": step})

    def show(stage: str, step: int, pictures: dict) -> None:
        log(stage, step, {name: service.Image(picture) for name, picture in pictures.items()})

    def summarise(rows: Rows) -> None:
        flat = {f"summary/{label}/{name}": value for label, row in rows.items() for name, value in row.items()}
        with saving(section.service):
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
