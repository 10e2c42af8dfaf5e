"""The finished trainings under a folder, as `benchmarks/pareto.py` leaves them, and what is drawn from them once."""

import glob
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


def label_of(config, base, decoded: bool) -> str:
    """The objective; of `didr` also its estimator, and its target and its range of times where they are not those of the config `base`.

    `decoded`: whether the reward is of a decoded picture (`diffused_reward.resolve`).
    """
    align, label = config.align, config.align.objective
    if OBJECTIVES[label].estimates:
        label += f"@{resolve(align.estimator, decoded=decoded)}"
        label += f" {align.tilt}, t0={align.tilt_t0:g}" if align.tilt != base.align.tilt else ""
        label += f" t<{align.generator_t_max:g}" if align.generator_t_max != base.align.generator_t_max else ""
    trained = config.network.get("generator", "full")
    return label + (f" {trained}" if trained != base.network.get("generator", "full") else "")


def kept(path: str, draw: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """What `path` (.npz) holds; drawn and written first if it is not there."""
    if not os.path.exists(path):
        with whole_file(path, binary=True) as file:
            np.savez(file, **draw())  # type: ignore[arg-type]
    with np.load(path) as file:
        return dict(file)
