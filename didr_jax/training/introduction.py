"""What a stage says before its first step, and while nothing else is to be seen."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from didr_jax.training.parallel import bytes_per_device
from didr_jax.training.stages import Stage
from didr_jax.types import PyTree

BEAT = 60.0  # seconds between signs of life while a program is compiled


def introduction(stage: Stage, state: Any, frozen: Mapping[str, PyTree], mesh: Mesh) -> list[str]:
    """Lines about where the stage runs, what it trains and holds, and what else it has to say of itself.

    Args:
      stage: which is about to begin.
      state: arrays in their places.
      frozen: what it reads besides.
      mesh: of the run.
    """
    devices = mesh.devices.size
    axes = " × ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1) or "one device"
    where = f"{devices} × {mesh.devices.flat[0].device_kind} ({axes}), {jax.process_count()} process{'es' * (jax.process_count() > 1)}"
    trained = ", ".join(f"{name} {_count(tree)}" for name, tree in stage.made_of(state).items())
    still = ", ".join(f"{name} {_count(tree)}" for name, tree in frozen.items())
    lines = [where, f"trains {trained} parameters" + (f"; frozen: {still}" if still else ""), *stage.about()]
    lines += [why] if (why := stage.settled().why) else []
    held, away = (bytes_per_device((state, dict(frozen)), on_host) / 1e9 for on_host in (False, True))
    waits = f", and {away:.3g} GB for it in the host's memory" if away else ""
    return [*lines, f"holds {held:.3g} GB a device{waits}; compiling (the first time: minutes)"]


def _count(tree: PyTree) -> str:
    n = float(sum(leaf.size for leaf in jax.tree.leaves(tree)))
    for unit in ("", " k", " M"):
        if n < 1000:
            return f"{n:.3g}{unit}"
        n /= 1000
    return f"{n:.3g} G"


@contextlib.contextmanager
def heartbeat(say: Callable[[str], None], message: str, every: float = BEAT) -> Iterator[threading.Event]:
    """Says `message`, and for how long already, every so many seconds, until the event is set or the block is left."""
    over, begun = threading.Event(), time.monotonic()

    def beat() -> None:
        while not over.wait(every):
            say(f"{message} ({time.monotonic() - begun:.0f} s)")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield over
    finally:
        over.set()
        thread.join()
