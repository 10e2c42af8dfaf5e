"""A trained generator for other programs: diffusers' folders, adapters merged, and the adapters alone beside it."""

import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from didr_jax import lora
from didr_jax.recipes.text_to_image.task import Task
from didr_jax.training.parallel import to_host
from didr_jax.training.run import Products, Run
from didr_jax.training.startup import is_first_process
from didr_jax.types import PyTree
from didr_jax.weights.engine import to_torch
from didr_jax.weights.files import write_safetensors
from didr_jax.whole_files import whole_folder, write_json

WEIGHTS = "diffusion_pytorch_model.safetensors"  # diffusers' names
ADAPTER = "pytorch_lora_weights.safetensors"
SHARD = 10 * 10**9  # bytes of the largest file


def export(task: Task, products: Products, run: Run) -> None:
    """workdir/export/PART/ for diffusers' `from_pretrained`.  Of all files it reads, with full training, only configs."""
    params = to_host(run.load({"generator": products["align"]["generator"]})["generator"])
    if is_first_process():
        with whole_folder(run.path("export")) as folder:
            write_export(task, params, folder, run.log.say)
    run.log.say(f"wrote {run.path('export')}: {task.backbone.few_step}")


def write_export(task: Task, params: PyTree, folder: str, say: Callable[[str], None]) -> None:
    """Writes what was trained of the generator, whole on this host, under `folder`."""
    backbone, dtype, rank = task.backbone, jnp.dtype(task.config.export.dtype), task.config.export.adapter_rank
    if task.config.network.generator == "full" and rank:
        base = jax.device_get(backbone.base.cast("float32").load(_host()))
        adapter, share = lora.nearest(params, base, rank, alpha=rank)
        lora.save(os.path.join(folder, ADAPTER), adapter, rank, backbone.table, prefix=backbone.part, dtype=dtype)
        say(f"{ADAPTER}: adapters of rank {rank} or less on weights.base hold {share:.1%} of the squared change")
    if task.config.network.generator == "lora":
        adapter, alpha = jax.device_get(params), task.config.lora.alpha
        lora.save(os.path.join(folder, ADAPTER), adapter, alpha, backbone.table, prefix=backbone.part, dtype=dtype)
        # From the file, not from the rounded copy that trained: merging rounds once.  Both as the host's own
        # arrays: under a mesh of several devices a computation on one of them is refused.
        params = lora.merge(jax.device_get(backbone.generator.cast("float32").load(_host())), adapter, alpha)
    part = os.path.join(folder, backbone.part)
    write_safetensors(os.path.join(part, WEIGHTS), to_torch(params, backbone.table, dtype=dtype), max_bytes=SHARD)
    write_json(os.path.join(part, "config.json"), dict(backbone.config_json))
    if backbone.scheduler_json is not None:
        write_json(os.path.join(folder, "scheduler", "scheduler_config.json"), dict(backbone.scheduler_json))


def _host() -> SingleDeviceSharding | None:
    """The host's memory, which holds a network in float32; None where JAX was told to have no CPU."""
    try:
        return SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return None
