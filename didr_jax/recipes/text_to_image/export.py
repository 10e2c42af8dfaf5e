"""A trained generator for other programs: a repository that diffusers opens, or single files as ComfyUI takes them.

    export.format   without export.pipeline                 with it
    diffusers       PART/, scheduler/, README.md            and the base's other parts: `from_pretrained` opens the folder
    single_file     PART.safetensors, scheduler/, README.md checkpoint.safetensors, with the base's VAE and text encoders

Adapters are merged, and stand alone beside it.
"""

import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from didr_jax import lora
from didr_jax.checks import require_choice
from didr_jax.recipes.text_to_image.card import write_card
from didr_jax.recipes.text_to_image.task import Task
from didr_jax.training.parallel import to_host
from didr_jax.training.run import Products, Run
from didr_jax.training.startup import is_first_process
from didr_jax.types import InputError, PyTree
from didr_jax.weights import lora_files, single_file
from didr_jax.weights.clip import TEXT
from didr_jax.weights.engine import to_torch
from didr_jax.weights.files import write_safetensors
from didr_jax.weights.folder import part_json
from didr_jax.weights.hub import INDEX, Files, names_below
from didr_jax.weights.vae import VAE_TABLE
from didr_jax.whole_files import whole_folder, write_json

FORMATS = ("diffusers", "single_file")
WEIGHTS = "diffusion_pytorch_model.safetensors"  # diffusers' names
ADAPTER = "pytorch_lora_weights.safetensors"
CHECKPOINT = "checkpoint.safetensors"
SHARD = 10 * 10**9  # bytes of the largest file
# Names and files of the parts that a single file has, where a pipeline is made of one.
OF_A_FILE = {
    "vae": (WEIGHTS, VAE_TABLE),
    "text_encoder": ("model.safetensors", TEXT),
    "text_encoder_2": ("model.safetensors", TEXT),
}


def check_export(task: Task) -> None:
    """Raises InputError for an export that cannot be made."""
    section, backbone = task.config.export, task.backbone
    require_choice("export.format", section.format, FORMATS)
    if not section.pipeline:
        return
    if section.format == "single_file":
        if not (parts := backbone.checkpoint()):
            raise InputError(
                "config.export.pipeline: single files of this model have the network alone; set export.pipeline=False"
            )
        for _, weights, _ in parts.values():
            weights.check()
    else:
        backbone.require([INDEX, "vae", *backbone.text_parts])


def export(task: Task, products: Products, run: Run) -> None:
    """workdir/export/.  Of all files it reads, with full training and of the network alone, only configs."""
    params = to_host(run.load({"generator": products["align"]["generator"]})["generator"])
    if is_first_process():
        with whole_folder(run.path("export")) as folder:
            write_export(task, params, folder, run.log.say)
            write_card(task, run, folder)
    run.log.say(f"wrote {run.path('export')}: {task.backbone.few_step}")


def write_export(task: Task, params: PyTree, folder: str, say: Callable[[str], None] = print) -> None:
    """Writes what was trained of the generator, whole on this host, under `folder`."""
    backbone, section = task.backbone, task.config.export
    single, dtype, rank = section.format == "single_file", jnp.dtype(section.dtype), section.adapter_rank
    dialect = backbone.single_adapters if single else "diffusers"
    save_adapter = functools.partial(
        lora_files.save,
        os.path.join(folder, ADAPTER),
        table=backbone.single_table if dialect == "kohya" else backbone.table,
        prefix=backbone.part,
        dtype=dtype,
        dialect=dialect,
    )
    if task.config.network.generator == "full" and rank:
        base = jax.device_get(backbone.base.cast("float32").load(_host()))
        adapter, share = lora.nearest(params, base, rank, alpha=rank)
        save_adapter(adapter, rank)
        say(f"{ADAPTER}: adapters of rank {rank} or less on weights.base hold {share:.1%} of the squared change")
    if task.config.network.generator == "lora":
        adapter, alpha = jax.device_get(params), task.config.lora.alpha
        save_adapter(adapter, alpha)
        # From the file, not from the rounded copy that trained: merging rounds once.  Both as the host's own
        # arrays: under a mesh of several devices a computation on one of them is refused.
        params = lora.merge(jax.device_get(backbone.generator.cast("float32").load(_host())), adapter, alpha)
    if backbone.scheduler_json is not None:
        write_json(os.path.join(folder, "scheduler", "scheduler_config.json"), dict(backbone.scheduler_json))
    if single:
        return _single(task, params, folder, dtype)
    part = os.path.join(folder, backbone.part)
    write_safetensors(os.path.join(part, WEIGHTS), to_torch(params, backbone.table, dtype=dtype), max_bytes=SHARD)
    write_json(os.path.join(part, "config.json"), dict(backbone.config_json))
    if section.pipeline:
        _rest(task, folder, dtype)


def _single(task: Task, params: PyTree, folder: str, dtype: Any) -> None:
    """One file, in the names of the authors' own code."""
    backbone, whole = task.backbone, task.config.export.pipeline
    prefix = single_file.PARTS[backbone.part][0]
    parts = {backbone.part: (prefix, params, backbone.single_table)}
    if whole:
        parts |= {name: (start, weights.load(_host()), table) for name, (start, weights, table) in backbone.checkpoint().items()}
    tensors = {
        start + name: tensor
        for start, tree, table in parts.values()
        for name, tensor in to_torch(tree, table, dtype=dtype).items()
    }
    write_safetensors(os.path.join(folder, CHECKPOINT if whole else f"{backbone.part}.safetensors"), tensors)


def _rest(task: Task, folder: str, dtype: Any) -> None:
    """The base's other parts, linked where the file system can, and the index of all."""
    backbone, variant = task.backbone, task.config.weights.variant or None
    held = [part for part in ("vae", *backbone.text_parts) if part in OF_A_FILE and backbone.in_file(part)]
    encoders = [part for part in backbone.text_parts if part.startswith("text_encoder") and part not in held]
    read = Files([part for part in ("vae", *encoders) if part not in held], (*held, *backbone.text_parts), pipeline=True)
    names = names_below(backbone.folder)
    for name in [*read.chosen(names, variant), *(name for name in names if name.startswith("LICENSE"))]:
        plain = name.replace(f".{variant}.", ".") if variant and "-of-" not in name else name  # shards' names stand in an index
        _link(backbone.folder / name, Path(folder) / plain)
    for part in held:
        file, table = OF_A_FILE[part]
        weights = backbone.checkpoint()[part][1].load(_host())
        write_safetensors(os.path.join(folder, part, file), to_torch(weights, table, dtype=dtype))
    index = part_json(backbone.folder, "", INDEX)
    if backbone.scheduler_json is not None:
        index["scheduler"] = ["diffusers", backbone.scheduler_json["_class_name"]]
    else:
        _link(backbone.folder / "scheduler" / "scheduler_config.json", Path(folder) / "scheduler" / "scheduler_config.json")
    for key, value in index.items():
        if isinstance(value, list) and not os.path.isdir(os.path.join(folder, key)):  # a safety checker, say
            index[key] = [None, None]
    write_json(os.path.join(folder, INDEX), {key: value for key, value in index.items() if key != "_name_or_path"})


def _link(source: Path, target: Path) -> None:
    """A second name of a file, or a copy on another file system; what stood there before is replaced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)


def _host() -> SingleDeviceSharding | None:
    """The host's memory, which holds a network in float32; None where JAX was told to have no CPU."""
    try:
        return SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return None
