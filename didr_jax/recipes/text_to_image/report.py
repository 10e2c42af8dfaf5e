"""How a text-to-image run is judged and what it hands on: rewards, pictures, samples, exported weights.

Everything is drawn from the evaluation's own noise, the same for the generator before and after.
"""

import json
import os
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding
from PIL import Image

from didr_jax import lora
from didr_jax.text.prompts import read_prompts
from didr_jax.training.metrics import RunLog
from didr_jax.training.reports import curves, write_summary
from didr_jax.types import PyTree
from didr_jax.weights.engine import to_torch
from didr_jax.weights.files import write_safetensors

WEIGHTS = "diffusion_pytorch_model.safetensors"  # diffusers' names
ADAPTER = "pytorch_lora_weights.safetensors"
SHARD = 10 * 10**9  # bytes of the largest file


def first_prompts(task, n: int) -> list[str]:
    """The first n prompts of `config.eval.prompts`, or of the training file where that is empty."""
    section = task.config.eval
    if section.prompts:
        return read_prompts(section.prompts, task.config.data.column, n)
    return task.prompts[:n]


def trained(task, frozen: PyTree, products: dict) -> tuple[PyTree, PyTree | None]:
    """(parameters, adapter) of the trained generator."""
    return task.pair("generator", frozen, products["align"]["generator"])


def initial(task, frozen: PyTree, products: dict) -> tuple[PyTree, PyTree | None]:
    """(parameters, adapter) of the generator that training began with."""
    if task.config.network.generator == "lora":
        return task.pair("generator", frozen, _beside(products, task.start("generator")))
    return _beside(products, task.backbone.load("generator", task.config.network.frozen_dtype)), None


def _beside(products: PyTree, tree: PyTree) -> PyTree:
    """`tree` on every device of the mesh that holds `products`; as it is if they are on no mesh."""
    place = getattr(jax.tree.leaves(products)[0], "sharding", None)
    return jax.device_put(tree, NamedSharding(place.mesh, PartitionSpec())) if isinstance(place, NamedSharding) else tree


class Judge:
    """Images and reward terms of a generator on given prompts, `config.eval.batch_size` at a time."""

    def __init__(self, task, frozen: PyTree, prompts: list[str], seed: int):
        self._task, self._frozen, self.prompts, self._seed = task, frozen, prompts, seed
        self._table = task.table(prompts)
        task.release_encoder()
        # Parameters are arguments: a program must not hold a copy of a model as a constant.
        self._latents = jax.jit(task.generate)
        self._finish = jax.jit(self._image_and_terms)

    def _image_and_terms(self, frozen, x0, c):
        terms = {} if self._task.mix is None else self._task.score(frozen, x0, c).terms
        return self._task.decode(frozen, x0), terms

    def run(self, generator: tuple[PyTree, PyTree | None]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Images `[n, H, W, 3]` in [-1, 1] and `{reward: [n]}` in published units."""
        n, size = len(self.prompts), self._task.config.eval.batch_size
        shape, key = self._task.noise_shape, jax.random.key(self._seed)
        images, terms = [], []
        for start in range(0, n, size):
            rows = np.minimum(np.arange(start, start + size), n - 1)  # the last batch is filled up
            c = jax.tree.map(lambda column: np.asarray(column[rows]), self._table)
            z = jnp.stack([jax.random.normal(jax.random.fold_in(key, i), shape) for i in rows])
            image, scores = self._finish(self._frozen, self._latents(*generator, z, c), c)
            images.append(np.asarray(image))
            terms.append(jax.tree.map(np.asarray, scores))
        joined = jax.tree.map(lambda *parts: np.concatenate(parts)[:n], *terms)
        return np.concatenate(images)[:n], joined


def _judge(task, products: dict, n: int, seed: int) -> tuple[Judge, PyTree]:
    frozen = _beside(products, task.judged())
    return Judge(task, frozen, first_prompts(task, n), seed), frozen


def _means(terms: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: float(np.nanmean(values)) for name, values in terms.items()}


def figures(task, products: dict) -> dict[str, float]:
    """Mean of every reward, trained and held out, on the evaluation prompts."""
    judge, frozen = _judge(task, products, task.config.eval.num, task.config.eval.seed)
    return _means(judge.run(trained(task, frozen, products))[1])


def evaluate(task, products: dict, workdir: str, log: RunLog) -> None:
    """summary.json (a row before, one after), before.png and after.png for the same noise, and curves."""
    config = task.config
    judge, frozen = _judge(task, products, config.eval.num, config.eval.seed)
    rows, steps = {}, task.backbone.few_step.label
    for file, label, generator in (
        ("before", f"{steps}, initial", initial), ("after", f"{steps}, {config.align.objective}", trained)
    ):  # fmt: skip
        images, terms = judge.run(generator(task, frozen, products))
        rows[label] = _means(terms)
        colour_grid(os.path.join(workdir, f"{file}.png"), images, config.eval.columns)
    write_summary(workdir, rows, log)
    curves(workdir)
    log.say(f"wrote summary.json, before.png, after.png and curves_align.png to {workdir}")


def sample(task, products: dict, workdir: str, log: RunLog) -> None:
    """A PNG per evaluation prompt in workdir/samples, and prompts.jsonl beside them, as `--mode=score` reads it."""
    judge, frozen = _judge(task, products, task.config.sample.num, task.config.sample.seed)
    images, _ = judge.run(trained(task, frozen, products))
    folder = os.path.join(workdir, "samples")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "prompts.jsonl"), "w", encoding="utf-8") as file:
        for i, (image, prompt) in enumerate(zip(images, judge.prompts)):
            name = f"{i:05d}.png"
            Image.fromarray(to_bytes(image)).save(os.path.join(folder, name))
            file.write(json.dumps({"image": name, "prompt": prompt}, ensure_ascii=False) + "\n")
    log.say(f"wrote {len(images)} images and prompts.jsonl to {folder}")


def export(task, products: dict, workdir: str, log: RunLog) -> None:
    """workdir/export/PART/ for diffusers' `from_pretrained`, adapters merged, and the adapters alone beside it."""
    backbone, dtype = task.backbone, jnp.dtype(task.config.export.dtype)
    folder = os.path.join(workdir, "export")
    params = products["align"]["generator"]
    if task.config.network.generator == "lora":
        adapter, alpha = jax.device_get(params), task.config.lora.alpha  # small; on the host it meets any base
        lora.save(os.path.join(folder, ADAPTER), adapter, alpha, backbone.table, prefix=backbone.part, dtype=dtype)
        # From the file, not from the rounded copy that trained: merging rounds once.
        params = lora.merge(backbone.load("generator", "float32", _host()), adapter, alpha)
    part = os.path.join(folder, backbone.part)
    write_safetensors(os.path.join(part, WEIGHTS), to_torch(params, backbone.table, dtype=dtype), max_bytes=SHARD)
    _write_json(os.path.join(part, "config.json"), backbone.config_json)
    if backbone.scheduler_json is not None:
        _write_json(os.path.join(folder, "scheduler", "scheduler_config.json"), backbone.scheduler_json)
    log.say(f"wrote {folder}: {backbone.few_step}")


def _host() -> SingleDeviceSharding | None:
    """The host's memory, which holds a network in float32; None where JAX was told to have no CPU."""
    try:
        return SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return None


def _write_json(path: str, values: Mapping) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        json.dump(dict(values), file, indent=2)


def to_bytes(images: np.ndarray) -> np.ndarray:
    """[-1, 1] -> uint8, rounded as diffusers does."""
    return np.round((np.clip(np.asarray(images, np.float32), -1, 1) + 1) * 127.5).astype(np.uint8)


def colour_grid(path: str, images: np.ndarray, columns: int) -> None:
    """A PNG of images `[n, h, w, 3]` in [-1, 1], `columns` to a row, two white pixels between them."""
    n, h, w, _ = images.shape
    columns = min(columns, n)
    rows, gap = -(-n // columns), 2
    canvas = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, 3), 255, np.uint8)
    for i, image in enumerate(to_bytes(images)):
        top, left = (i // columns) * (h + gap), (i % columns) * (w + gap)
        canvas[top : top + h, left : left + w] = image
    Image.fromarray(canvas).save(path)
