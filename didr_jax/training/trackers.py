"""Where figures and pictures go besides metrics.jsonl: TensorBoard's event files, a tracking service."""

import importlib
import os
import time
from collections.abc import Callable
from typing import NamedTuple

from didr_jax.types import InputError
from didr_jax.whole_files import saving


class Sink(NamedTuple):
    """`write(stage, step, {name: float})`, `show(stage, step, {name: picture})`; both raise CannotSave."""

    write: Callable[[str, int, dict], None]
    show: Callable[[str, int, dict], None]
    close: Callable[[], None]


def tensorboard(workdir: str) -> Sink:
    """Event files in `workdir/tensorboard`.

    tensorboardX's own writer has a thread: where that meets a full disk it dies with a traceback, and the run hangs as soon
    as its queue is full.  This one writes at once.
    """
    package = _import("tensorboardX", "config.log.tensorboard")
    event_pb2, summary = importlib.import_module("tensorboardX.proto.event_pb2"), package.summary
    folder = os.path.join(workdir, "tensorboard")
    os.makedirs(folder, exist_ok=True)
    file = package.event_file_writer.EventsWriter(os.path.join(folder, "events"), f".{os.getpid()}")

    def put(summaries: list, step: int) -> None:
        with saving(folder):
            for each in summaries:
                file.write_event(event_pb2.Event(summary=each, step=step, wall_time=time.time()))
            file.flush()

    def write(stage: str, step: int, values: dict) -> None:
        put([summary.scalar(f"{stage}/{name}", value) for name, value in values.items()], step)

    def show(stage: str, step: int, pictures: dict) -> None:
        layout = lambda picture: "HW" if picture.ndim == 2 else "HWC"
        put([summary.image(f"{stage}/{name}", each, dataformats=layout(each)) for name, each in pictures.items()], step)

    return Sink(write, show, file.close)


def service(workdir: str, section) -> Sink:
    """wandb, or trackio, which speaks the same calls."""
    package = _import(section.service, "config.log.service")
    run = package.init(project=section.project, name=os.path.basename(os.path.abspath(workdir)), resume="allow")

    def write(stage: str, step: int, values: dict) -> None:
        with saving(section.service):
            run.log({f"{stage}/{name}": value for name, value in values.items()} | {f"{stage}/step": step})

    def show(stage: str, step: int, pictures: dict) -> None:
        with saving(section.service):
            images = {f"{stage}/{name}": package.Image(picture) for name, picture in pictures.items()}
            run.log(images | {f"{stage}/step": step})

    return Sink(write, show, run.finish)


def _import(module: str, knob: str):
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"{knob} needs the package {module}, which is not installed: pip install {module}") from None
