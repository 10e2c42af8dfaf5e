"""The scheduler of a pipeline folder: the noise schedule and the prediction that its networks were trained with.

Both follow from the class, the keys of its `scheduler_config.json`, and the class's own defaults for keys that are
absent.  What only concerns the scheduler's own sampling (its solver, spacing, Karras' sigmas) is not read: the recipes
place their steps themselves.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from didr_jax.checks import listed, require_choice
from didr_jax.few_step import FewStep
from didr_jax.types import InputError
from didr_jax.weights.folder import part_json

FILE = "scheduler_config.json"
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v"}  # diffusers' names -> ours

_LINEAR = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
_NARROW = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear"}
_SCALED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
# Classes whose networks see the variance-preserving schedule of β at discrete timesteps, with their defaults.
CLASSES: dict[str, Mapping[str, Any]] = {
    "DDIMScheduler": _LINEAR,
    "DDIMParallelScheduler": _LINEAR,
    "DDPMScheduler": _LINEAR,
    "DDPMParallelScheduler": _LINEAR,
    "DEISMultistepScheduler": _LINEAR,
    "DPMSolverMultistepScheduler": _LINEAR,
    "DPMSolverSinglestepScheduler": _LINEAR,
    "EulerAncestralDiscreteScheduler": _LINEAR,
    "EulerDiscreteScheduler": _LINEAR,
    "HeunDiscreteScheduler": _NARROW,
    "KDPM2AncestralDiscreteScheduler": _NARROW,
    "KDPM2DiscreteScheduler": _NARROW,
    "LCMScheduler": _SCALED,
    "LMSDiscreteScheduler": _LINEAR,
    "PNDMScheduler": _LINEAR,
    "TCDScheduler": _SCALED,
    "UniPCMultistepScheduler": _LINEAR,
}
# Keys that make another schedule, or other times, of the same β, and the values with which they do not.
PLAIN: dict[str, tuple[Any, ...]] = {
    "trained_betas": (None,),
    "rescale_betas_zero_snr": (None, False),
    "timestep_type": ("discrete",),
    "sigma_min": (None,),
    "sigma_max": (None,),
    "use_flow_sigmas": (None, False),
    "use_dynamic_shifting": (None, False),
}


def scheduler_class(folder: Path, raw: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """The name of a pipeline's scheduler; that of its model_index.json, which diffusers goes by, if it has one.

    Args:
      folder: the pipeline.
      raw: of its scheduler_config.json.
      known: classes that the recipe can do.

    Raises:
      InputError: neither file names a class, or one of them another than those.
    """
    index = part_json(folder, "", "model_index.json").get("scheduler") if (folder / "model_index.json").is_file() else None
    names = [name for name in (index[-1] if isinstance(index, list) and index else None, raw.get("_class_name")) if name]
    if not names:
        raise InputError(f"config.weights.base: {folder}/scheduler names no class, without which its keys say nothing")
    for name in names:
        if name not in known:
            raise InputError(
                f"config.weights.base: {folder}/scheduler is a {name}, whose noise schedule this recipe does not have; it has "
                f"that of {listed(list(known))}",
                list(known),
            )
    return names[0]


def discrete_prediction(folder: Path, config: Any, schedule_name: str) -> str:
    """What the networks of a pipeline with discrete timesteps predict, a key of `diffusion.PREDICTIONS`.

    Args:
      folder: the pipeline; without a scheduler it is taken for one that predicts noise on the config's schedule.
      config: the whole config.
      schedule_name: of the schedule that it resolves to.

    Raises:
      InputError: the scheduler's is another noise schedule than `config.schedule`, or none that is known here.
    """
    if not (folder / "scheduler").is_dir():
        return "eps"
    raw = part_json(folder, "scheduler", FILE)
    defaults = CLASSES[scheduler_class(folder, raw, CLASSES)]
    if odd := [f"{key}={raw[key]!r}" for key, plain in PLAIN.items() if key in raw and raw[key] not in plain]:
        raise InputError(
            f"config.weights.base: {folder}/scheduler has {', '.join(odd)}, a noise schedule that this recipe does not have"
        )
    said = {**defaults, "num_train_timesteps": 1000, **raw}
    theirs = {"num_timesteps": said["num_train_timesteps"], "beta_start": said["beta_start"], "beta_end": said["beta_end"]}
    own = {key: value for key, value in config.schedule.items() if key != "name"}
    ours = {"num_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012} | own
    if schedule_name != "ddpm" or theirs != ours or said["beta_schedule"] != "scaled_linear":
        absent = [key for key in defaults if key not in raw]
        note = f"; {', '.join(absent)} by the default of its class" if absent else ""
        raise InputError(
            f"config.schedule ({schedule_name}, {ours}) is not that of {folder}/scheduler "
            f"({said['beta_schedule']}, {theirs}{note}); the networks only make sense with their own"
        )
    kind = said.get("prediction_type", "epsilon")
    require_choice("weights.base: prediction_type of its scheduler", kind, PREDICTIONS)
    return PREDICTIONS[kind]


def few_step_scheduler(raw: Mapping[str, Any], config: Any, few_step: FewStep, prediction: str) -> dict[str, Any] | None:
    """The config of a scheduler of diffusers with which `num_inference_steps=n` visits a generator's timesteps.

    Where the first is not the schedule's last the scheduler ends there: it has as many β as are needed.

    Args:
      raw: of the base's scheduler_config.json, for what only the version of diffusers knows; may be empty.
      config: the whole config, for the noise schedule.
      few_step: the generator's steps.
      prediction: a key of `diffusion.PREDICTIONS`.

    Returns:
      `scheduler_config.json`; None where the timesteps are not evenly spaced: they must then be given by number.
    """
    timesteps = timesteps_of(few_step)
    top, n = timesteps[0] + 1, len(timesteps)
    if timesteps != [round(top * (n - i) / n) - 1 for i in range(n)] or (top % n and few_step.solver == "renoise"):
        return None
    knobs = config.schedule
    number, start, end = knobs.get("num_timesteps", 1000), knobs.get("beta_start", 0.00085), knobs.get("beta_end", 0.012)
    common = {
        "_diffusers_version": raw.get("_diffusers_version", "0.36.0"),
        "beta_start": start,
        "beta_end": end,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": top,
        "prediction_type": {ours: theirs for theirs, ours in PREDICTIONS.items()}[prediction],
        "clip_sample": False,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "timestep_spacing": "trailing",
    }
    if top < number:
        roots = np.linspace(start**0.5, end**0.5, number)
        common["trained_betas"] = (roots[:top] ** 2).tolist()
    if few_step.solver == "renoise":
        return {"_class_name": "LCMScheduler", **common, "original_inference_steps": n}
    return {"_class_name": "DDIMScheduler", **common}


def timesteps_of(few_step: FewStep) -> list[int]:
    """The numbers of a discrete schedule's timesteps."""
    number = few_step.schedule.num_timesteps
    assert number is not None, "the schedule is a discrete one"
    return [round(t * number) for t in few_step.times]
