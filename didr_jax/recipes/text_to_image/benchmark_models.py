"""What makes the pictures of `--mode=benchmark`, and all that they depend on."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from didr_jax.config import flatten
from didr_jax.diffusion import guide
from didr_jax.json_files import read_object
from didr_jax.recipes.text_to_image import report
from didr_jax.recipes.text_to_image.conditions import PromptTable
from didr_jax.recipes.text_to_image.task import Task
from didr_jax.sampling import denoise
from didr_jax.suites.produce import Maker
from didr_jax.suites.prompts import Prompt
from didr_jax.text.cache import digest_texts
from didr_jax.training.run import Products, Run
from didr_jax.training.workdir import lock
from didr_jax.types import Array, InputError, PyTree, Weights
from didr_jax.whole_files import remove_leftovers, write_json

MODELS = ("trained", "initial", "reference")
# Sections and keys of the config that a picture depends on, whatever makes it; what computes the same in another way is not.
SETTINGS = ("image.", "schedule.", "network.", "lora.", "weights.", "data.dtype", "data.max_length", "data.encoder_dtype")
NO_MATTER = ("reward_vae", "reward_vae_dtype", "remat", "vae_remat", "attention", "cross_attention", "vae_attention")


def alone(section) -> bool:
    """Whether `config.benchmark` needs nothing that was trained."""
    return bool(section.images) or section.model != "trained"


def weights_of_model(task: Task) -> list[Weights]:
    """What will be read of the model besides saves, to be checked."""
    sources = {
        "trained": lambda: list(task.under_adapters().values()),
        "initial": lambda: [task.start("generator"), *task.under_adapters().values()],
        "reference": lambda: [task.backbone.base],
    }
    return sources[task.config.benchmark.model]()


def _generator(which: str, task: Task, run: Run, products: Products) -> tuple[PyTree, Callable]:
    """Parameters, and `(params, noise, c) -> x0`."""
    frozen = run.load(task.finishing(with_rewards=False) | task.under_adapters())
    generator = report.trained(task, frozen, products, run) if which == "trained" else report.initial(task, frozen, run)
    params = {"frozen": frozen, "generator": generator}
    return params, lambda params, z, c: task.generate(params["generator"][0], params["generator"][1], z, c)


def multi_step(task: Task, frozen: PyTree, z: Array, c: PyTree, steps: int, scale: float) -> Array:
    """Latents of the reference by so many deterministic steps from unit noise at the schedule's noisiest time.

    Args:
      task: whose reference it is.
      frozen: parameters of `base` and `no_text`.
      z: `[b, h, w, c]`.
      c: conditions `[b, ...]`.
      steps: DDIM's, Euler's of a flow, where `Schedule.grid` has them.
      scale: of classifier-free guidance; 1: none.
    """
    networks = task.networks()

    def denoiser(x_t, t):
        x_c = networks.reference(frozen, x_t, t, c)
        if scale == 1.0 or networks.unconditional is None:
            return x_c
        return guide(x_c, networks.reference(frozen, x_t, t, networks.unconditional(frozen, c)), scale)

    t = jnp.full(len(z), task.backbone.schedule.t_max)
    return denoise(denoiser, task.backbone.schedule, z, t, num_steps=steps, remat=False, unroll=task.config.unroll)


def _reference(task: Task, run: Run, table: PromptTable) -> tuple[PyTree, Callable]:
    """As `_generator`."""
    weights = {"base": task.backbone.base.cast(task.config.network.frozen_dtype), "no_text": task.no_text(table)}
    params = {"frozen": run.load(weights | task.finishing(with_rewards=False))}
    steps, scale = task.config.benchmark.steps, guidance(task.config)
    return params, lambda params, z, c: multi_step(task, params["frozen"], z, c, steps, scale)


def guidance(config) -> float:
    """Of the reference."""
    given = config.benchmark.guidance
    return float(config.align.guidance if given is None else given)


def maker(task: Task, run: Run, products: Products, prompts: Sequence[Prompt]) -> Maker:
    """Of the pictures of some prompts; loads what it needs."""
    section = task.config.benchmark
    table = task.table([prompt.text for prompt in prompts], with_tokens=False)
    shape: tuple[int, ...] = task.backbone.event_shape
    if section.model == "reference":
        params, sample = _reference(task, run, table)
    else:
        params, sample = _generator(section.model, task, run, products)
        shape = task.backbone.noise_shape
    draw = lambda params, z, c: task.decode(params["frozen"], sample(params, z, c))
    return Maker(draw, params, table.rows, shape, section.seed)


def label(config, run: Run) -> str:
    """Of the folder: the model and what of it."""
    section = config.benchmark
    if section.model == "reference":
        return f"reference-{section.steps}-steps-guidance-{guidance(config):g}"
    return section.model if section.model == "initial" else f"step-{run.picked['align'][0]}"


def made_by(task: Task, run: Run, prompts: Sequence[Prompt], per_prompt: int) -> dict[str, Any]:
    """All that the pictures of a prompt set depend on, as JSON holds it; `prompts`: the whole set."""
    config = task.config
    inside = lambda key: key.startswith(SETTINGS) and key.split(".")[-1] not in NO_MATTER
    made = {
        "benchmark.name": config.benchmark.name,
        "benchmark.model": label(config, run),
        "benchmark.seed": config.benchmark.seed,
        "per_prompt": per_prompt,
        "prompts": digest_texts([prompt.name for prompt in prompts], [prompt.text for prompt in prompts]),
        **{key: value for key, value in flatten(config.to_dict()).items() if inside(key)},
    }
    if config.benchmark.model == "trained":
        made["save"] = run.picked["align"][1]
    made["weight files"] = [line for path in _weight_files(task) for line in _stamps(path)]
    return made


def _weight_files(task: Task) -> list[Path]:
    paths = [task.backbone.folder, task.backbone.generator_source(), Path(task.config.weights.generator_adapter)]
    return [path for path in dict.fromkeys(paths) if str(path) != "."]


def _stamps(path: Path) -> list[str]:
    """Of weight files: name, size and time of change."""
    inside = (p for p in path.rglob("*") if p.suffix in (".safetensors", ".bin", ".pt", ".pth"))
    files = [path] if path.is_file() else sorted(inside)
    return [f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]


def claim(folder: str, made: Mapping[str, Any], held: ExitStack) -> None:
    """Raises InputError if another run writes there, or the pictures there were made otherwise."""
    os.makedirs(folder, exist_ok=True)
    held.enter_context(lock(folder))
    remove_leftovers(folder)
    path = os.path.join(folder, "made.json")
    if not os.path.exists(path):
        write_json(path, made)
        return
    then, now = read_object(path, f"remove {folder}"), json.loads(json.dumps(made))
    if key := next((key for key in {**then, **now} if then.get(key, ...) != now.get(key, ...)), None):
        say = lambda value: str(value)[:60]
        raise InputError(
            f"{folder} has pictures that were made with other {key} ({say(then.get(key))}, now {say(now.get(key))}): "
            "remove it, or use a new workdir"
        )
