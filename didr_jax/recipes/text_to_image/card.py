"""The model card of an export, README.md: what was trained, on what, from what, how it scores, and how to use it."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from didr_jax import __version__
from didr_jax.json_files import read_object
from didr_jax.objectives import OBJECTIVES
from didr_jax.recipes.text_to_image.rewards import chosen
from didr_jax.recipes.text_to_image.task import Task
from didr_jax.reporting.page import FOLDER
from didr_jax.training.run import Run
from didr_jax.training.workdir import newest_step
from didr_jax.weights.files import is_weights
from didr_jax.weights.hub import HubName, hub_name
from didr_jax.whole_files import whole_file, write_json

HOME = "https://arxiv.org/abs/2605.24001"
REWARDS = "rewards.json"  # in the workdir: what an evaluation found


def write_rewards(run: Run, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> None:
    """Keeps the rewards `{name: [n]}` of an evaluation in the workdir, for the card; what is not finite as null."""
    numbers = lambda values: [float(v) if math.isfinite(v) else None for v in np.asarray(values, float)]
    scores = {name: {"before": numbers(before[name]), "after": numbers(after[name])} for name in after}
    write_json(run.path(REWARDS), {"step": _step(run), "scores": scores})


def write_card(task: Task, run: Run, folder: str) -> None:
    """FOLDER/README.md; raises CannotSave."""
    config, backbone = run.config, task.backbone  # whose paths are what the user gave, names and all
    lora, align = config.network.generator == "lora", config.align
    names = chosen(config.rewards)
    held_out = [name for name in names if name in config.rewards.held_out]
    base = hub_name(config.weights.base)
    told = _told(run)
    facts = {
        "title": f"{backbone.pipeline_class.removesuffix('Pipeline')}, {backbone.few_step.label}, {align.objective}",
        "base_model": base.repo if base else "",
        "steps": str(backbone.few_step),
        "home": HOME,
        "version": __version__,
        "base": _named(config.weights.base),
        "generator": _named(config.weights.generator) if config.weights.generator else "the base",
        "begun_with": _named(config.weights.generator_adapter) if config.weights.generator_adapter else "",
        "trained": f"adapters of rank {config.lora.rank} on the initial generator, merged" if lora else "all weights",
        "objective": align.objective,
        "beta": f"{align.beta:g}" if OBJECTIVES[align.objective].needs_reward else "",
        "guidance": f"{align.guidance:g}",
        "reward": " + ".join(f"{config.rewards.weights[name]:g} {name}" for name in names if name not in held_out),
        "held_out": ", ".join(held_out),
        "prompts": os.path.basename(config.data.prompts) + (f", the first {config.data.limit}" if config.data.limit else ""),
        "step": _step(run),
        "batch_size": align.batch_size,
        "width": config.image.width,
        "height": config.image.height,
        "rewards": told["rewards"],
        "count": told["count"],
        "measured_at": told["step"],
        "snippet": snippet(task, config),
        "adapter": "pytorch_lora_weights.safetensors" if lora else "",
    }
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(FOLDER), undefined=jinja2.StrictUndefined, autoescape=False)
    with whole_file(os.path.join(folder, "README.md")) as file:
        file.write(environment.get_template("card.md").render(facts))


def snippet(task: Task, config) -> str:
    """Python that samples from an export, in its folder.

    Args:
      task: what was trained.
      config: with the paths that the user gave.
    """
    backbone, section = task.backbone, config.export
    kind, network, part = backbone.pipeline_class, backbone.network_class, backbone.part
    dtype, single = f"torch.{section.dtype}", section.format == "single_file"
    rest = config.weights.rest if backbone.file is not None else config.weights.base
    name, revision = _for_diffusers(rest)
    scheduler = None if backbone.scheduler_json is None else backbone.scheduler_json["_class_name"]
    arguments = ["torch_dtype=dtype", *revision]
    lines = [f'dtype, here = {dtype}, "."  # here: this folder, or its name on the hub']
    uses = {kind}
    if section.pipeline and not single:
        lines.append(f"pipe = {kind}.from_pretrained(here, torch_dtype=dtype)")
    elif section.pipeline:
        lines.append(f'pipe = {kind}.from_single_file("checkpoint.safetensors", config={name!r}, torch_dtype=dtype)')
    else:
        uses.add(network)
        if single:
            lines.append(
                f'{part} = {network}.from_single_file("{part}.safetensors", config={name!r}, subfolder="{part}", torch_dtype=dtype)'
            )
        else:
            lines.append(f'{part} = {network}.from_pretrained(here, subfolder="{part}", torch_dtype=dtype)')
        lines.append(f"pipe = {kind}.from_pretrained({name!r}, {part}={part}, {', '.join(arguments)})")
    if scheduler is not None and not (section.pipeline and not single):
        uses.add(scheduler)
        lines.append(f'pipe.scheduler = {scheduler}.from_pretrained(here, subfolder="scheduler")')
    steps = [f"num_inference_steps={len(backbone.few_step.times)}", *_by_number(backbone)]
    if scheduler is None and backbone.few_step.solver == "renoise":
        uses.add("LCMScheduler")
        lines.append("pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)")
    size = f"height={config.image.height}, width={config.image.width}"
    lines.append('pipe.to("cuda" if torch.cuda.is_available() else "cpu")')
    lines.append(f'image = pipe("a red cat", {", ".join(steps)}, guidance_scale=0, {size}).images[0]')
    lines.append('image.save("sample.png")')
    return "\n".join(["import torch", f"from diffusers import {', '.join(sorted(uses))}", "", *lines])


def _by_number(backbone) -> Sequence[str]:
    return [] if backbone.timesteps is None else [f"timesteps={list(backbone.timesteps)}"]


def _named(text: str) -> str:
    """A repository with its commit, or the name of a folder, or of a file in one, without its place."""
    return text if hub_name(text) else "/".join(Path(text).parts[-2 if is_weights(text) else -1 :])


def _for_diffusers(text: str) -> tuple[str, list[str]]:
    """The first argument of `from_pretrained`, and more of them."""
    name: HubName | None = hub_name(text)
    if name is None:
        return text, []
    return name.repo, [f"revision={name.revision!r}"] if name.revision else []


def _step(run: Run) -> int:
    """Of the save that is read; while it trains, the last."""
    return run.picked.get("align", (0,))[0] or newest_step(run.workdir, "align") or 0


def _told(run: Run) -> dict[str, Any]:
    """What the last evaluation found, as text."""
    path = run.path(REWARDS)
    if not os.path.isfile(path):
        return {"rewards": {}, "count": 0, "step": 0}
    content = read_object(path, "run --mode=eval again")
    rewards, count = {}, 0
    for name, scores in content["scores"].items():
        before, after = (np.array([np.nan if v is None else v for v in scores[which]], float) for which in ("before", "after"))
        rewards[name] = {"before": _mean(before), "after": _mean(after), "gain": _mean(after - before)}
        count = len(after)
    return {"rewards": rewards, "count": count, "step": content["step"]}


def _mean(values: np.ndarray) -> str:
    """With its standard error; of what is finite."""
    known = values[np.isfinite(values)]
    if not len(known):
        return "unknown"
    error = f" ± {known.std(ddof=1) / math.sqrt(len(known)):.2g}" if len(known) > 1 else ""
    return f"{known.mean():.4g}{error}"
