"""The finished trainings under a folder, as `benchmarks/pareto.py` leaves them, and what is drawn from them once."""

import functools
import glob
import operator
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from didr_jax.diffused_reward import resolve
from didr_jax.objectives import OBJECTIVES
from didr_jax.saved_config import get_config
from didr_jax.training.workdir import CONFIG
from didr_jax.whole_files import whole_file


def saves(folder: str) -> Iterator[tuple[Any, str, int]]:
    """(config, workdir, step) of each finished run there; of `refl`, whose strength is the number of its steps, all that it kept."""
    for path in sorted(glob.glob(os.path.join(folder, "**", CONFIG), recursive=True)):
        config, workdir = get_config(path), os.path.dirname(path)
        stage = config.stages[-1]
        kept_steps = sorted(
            int(os.path.basename(each)) for each in glob.glob(os.path.join(workdir, "checkpoints", stage, "[0-9]*"))
        )
        if stage == "align" and config.align.steps in kept_steps:
            for step in kept_steps if config.align.objective == "refl" else kept_steps[-1:]:
                yield config, workdir, step


# key of a config -> how a label says a value that the base config does not have
SAID: dict[str, Callable[[Any], str]] = {
    "align.generator_t_max": lambda t: f"t<{t:g}",
    "network.generator": str,
    "network.ta": lambda kind: f"TA {kind}",
    "network.generator_steps": lambda n: f"{n} steps",
    "align.ta_updates": lambda n: f"{n} TA updates",
    "align.ta_reuse": lambda n: f"samples used {n} times",
    "align.ta_after": lambda after: "TA after" if after else "TA before",
    "align.ta_optimizer.lr": lambda lr: f"TA's rate {lr:g}",
}


def label_of(config, base, decoded: bool) -> str:
    """The objective; of `didr` also its estimator, and its target where it is not that of the config `base`; then `SAID`.

    `decoded`: whether the reward is of a decoded picture (`diffused_reward.resolve`).
    """
    align, label = config.align, config.align.objective
    if OBJECTIVES[label].estimates:
        label += f"@{resolve(align.estimator, decoded=decoded)}"
        label += f" {align.tilt}, t0={align.tilt_t0:g}" if align.tilt != base.align.tilt else ""
    values = ((value_of(config, key), value_of(base, key), say) for key, say in SAID.items())
    return " ".join([label, *(say(value) for value, before, say in values if value != before)])


def value_of(config, key: str) -> Any:
    """The value at a dotted key; None if the recipe has no such knob."""
    *sections, name = key.split(".")
    return functools.reduce(operator.getitem, sections, config).get(name)


def kept(path: str, draw: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """What `path` (.npz) holds; drawn and written first if it is not there."""
    if not os.path.exists(path):
        with whole_file(path, binary=True) as file:
            np.savez(file, **draw())  # type: ignore[arg-type]
    with np.load(path) as file:
        return dict(file)
