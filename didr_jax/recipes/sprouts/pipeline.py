"""The trained networks as folders: a `ZImagePipeline` for diffusers, a CLIP, a reward, a judge, and prompts."""

import json
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from didr_jax.recipes.sprouts import judging, networks, parts
from didr_jax.recipes.sprouts.album import to_float
from didr_jax.rewards import aesthetic
from didr_jax.training.evaluation import over_rows
from didr_jax.training.parallel import to_host
from didr_jax.training.run import Products, Run
from didr_jax.training.startup import is_first_process
from didr_jax.types import PyTree
from didr_jax.weights.blip import AESTHETIC
from didr_jax.weights.clip import HF, HF_VISION
from didr_jax.weights.engine import to_torch
from didr_jax.weights.files import write_safetensors
from didr_jax.weights.qwen3 import qwen3_table
from didr_jax.weights.rules import Rule
from didr_jax.weights.vae import VAE_TABLE
from didr_jax.weights.zimage import zimage_table
from didr_jax.whole_files import whole_file, whole_folder, write_json

NEW = 1 / 8  # share of evaluation captions with a pair of plant and pot that was never trained on
# file -> how many captions, of which seed, parts that none names, share that names a pair that was never trained on
PROMPTS = {
    "distill.txt": (4096, 0, (), 0.0),
    "align.txt": (1024, 1, ("mouth",), 0.0),
    "eval.txt": (512, 2, ("mouth",), NEW),
}


def export(recipe, products: Products, run: Run) -> None:
    """workdir/export: pipeline/, generator/, clip/, preference/, judge/ and prompts/, weights in `config.export.dtype`."""
    params = {stage: to_host(run.load({"params": products[stage]["params"]})["params"]) for stage in recipe.stages}
    latents = recipe.latents(params["vae"])
    pictures = recipe.album("held_out")
    features = judging.seen(params["judge"], pictures.images)[1]
    head = in_published_units(recipe, params["preference"], pictures)  # by all processes, as the lines before
    if not is_first_process():
        return
    with whole_folder(run.path("export")) as folder:
        _write(recipe, params, latents, pictures, features, head, folder)
    run.log.say(f"wrote {run.path('export')}")


def _write(recipe, params, latents, pictures, features, head, folder: str) -> None:
    write = lambda *names: _Folder(os.path.join(folder, *names), np.dtype(recipe.config.export.dtype))
    write_json(os.path.join(folder, "pipeline", "model_index.json"), networks.MODEL_INDEX)
    write_json(os.path.join(folder, "pipeline", "scheduler", "scheduler_config.json"), networks.SCHEDULER)
    networks.chat_tokenizer().save_pretrained(os.path.join(folder, "pipeline", "tokenizer"))
    scaled = {**networks.VAE, "shift_factor": latents.shift, "scaling_factor": latents.scale}
    write("pipeline", "vae").network(params["vae"], VAE_TABLE, scaled, DIFFUSERS)
    table = qwen3_table(recipe.language.config, hidden_state=-1)
    write("pipeline", "text_encoder").network(params["words"]["language"], table, networks.TEXT_ENCODER)
    table = zimage_table(recipe.transformer.config)
    write("pipeline", "transformer").network(params["reference"], table, networks.TRANSFORMER, DIFFUSERS)
    write("generator", "transformer").network(params["one_step"], table, networks.TRANSFORMER, DIFFUSERS)
    write_json(os.path.join(folder, "generator", "scheduler", "scheduler_config.json"), networks.SCHEDULER)

    clip, preference = params["clip"], params["preference"]
    write("clip").network(clip, HF, networks.clip_json())
    networks.clip_tokenizer().save_pretrained(os.path.join(folder, "clip"))
    write("preference").network(preference["vision"], HF_VISION, networks.clip_json())
    write("preference").tensors(head, AESTHETIC, "head.safetensors")
    write("judge").tensors(params["judge"], judging.TABLE, "judge.safetensors")
    write_json(
        os.path.join(folder, "judge", "features.json"),
        judging.groups_as_json(judging.grouped(features, parts.cheerful(pictures.parts))),
    )
    for name, (n, seed, never, new) in PROMPTS.items():
        with whole_file(os.path.join(folder, "prompts", name)) as file:
            file.write("\n".join(prompts(n, seed, never, new)) + "\n")


def prompts(n: int, seed: int, never: Sequence[str] = ("mouth",), new: float = 0.0) -> list[str]:
    """n different captions; `never`: parts that none names; a share `new` names a pair that was never trained on."""
    rng, found = np.random.default_rng([seed, *b"prompts"]), dict[str, None]()
    while len(found) < n:
        drawn = parts.draw_parts(rng, 1)
        named = parts.draw_named(rng, 1, never)
        if len(found) < new * n:
            plant, pot = parts.HELD_OUT[rng.integers(len(parts.HELD_OUT))]
            for part, word in (("plant", plant), ("pot", pot)):
                drawn[0, parts.PARTS.index(part)] = parts.WORDS[part].index(word)
                named[0, parts.PARTS.index(part)] = True
        found[parts.captions(drawn, named)[0]] = None
    return [list(found)[i] for i in rng.permutation(n)]


def preferences(recipe, preference: PyTree, images: np.ndarray) -> np.ndarray:
    """The reward's scores `[n]` of pictures, uint8 `[n, 64, 64, 3]`, in its own units."""
    return over_rows(jax.jit(lambda params, rows: recipe.prefer(params, to_float(rows))), preference, images, 256)


def in_published_units(recipe, preference: PyTree, pictures) -> PyTree:
    """The preference's head, scaled so that the mix of rewards, which brings `aesthetic` to its published units, gets 0 for
    the mean of held-out faces that are not cheerful and 1 more for one that is."""
    scores = preferences(recipe, preference, pictures.images)
    zero = float(np.mean(scores[~parts.cheerful(pictures.parts)]))
    last = max(preference["head"])
    kernel, bias = (np.asarray(preference["head"][last][name]) for name in ("kernel", "bias"))
    scaled = {"kernel": kernel * aesthetic.SPREAD, "bias": (bias - zero) * aesthetic.SPREAD + aesthetic.CENTRE}
    return preference["head"] | {last: scaled}


DIFFUSERS = "diffusion_pytorch_model.safetensors"


class _Folder:
    """A folder of one network's files."""

    def __init__(self, path: str, dtype: Any):
        self._path, self._dtype = path, dtype

    def tensors(self, params: PyTree, table: list[Rule], name: str) -> None:
        write_safetensors(os.path.join(self._path, name), to_torch(params, table, dtype=self._dtype))

    def network(self, params: PyTree, table: list[Rule], config: dict, name: str = "model.safetensors") -> None:
        self.tensors(params, table, name)
        write_json(os.path.join(self._path, "config.json"), json.loads(json.dumps(config)))
