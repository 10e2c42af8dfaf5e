"""The trained networks as folders: a family's pipeline for diffusers, a CLIP, a reward, a judge, and prompts."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from didr_jax.recipes.sprouts import judging, networks, parts
from didr_jax.recipes.sprouts.album import Album, to_float
from didr_jax.recipes.sprouts.data import Encoded
from didr_jax.recipes.sprouts.families.family import Family
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
from didr_jax.weights.rules import Rule
from didr_jax.weights.vae import VAE_TABLE
from didr_jax.whole_files import whole_file, whole_folder, write_json

NEEDED = ("vae", "words", "reference", "one_step")  # stages without which there is no pipeline and no generator
NEW = 1 / 8  # share of evaluation captions with a pair of plant and pot that was never trained on
# file -> how many captions, of which seed, parts that none names, share that names a pair that was never trained on
PROMPTS = {
    "distill.txt": (4096, 0, (), 0.0),
    "align.txt": (1024, 1, ("mouth",), 0.0),
    "eval.txt": (512, 2, ("mouth",), NEW),
}


def export(recipe, products: Products, run: Run) -> None:
    """workdir/export: pipeline/, generator/, prompts/, and clip/, preference/, judge/ where their stages are in the config; weights
    in `config.export.dtype`."""
    stages = recipe.config.stages
    params = {stage: to_host(run.load({"params": products[stage]["params"]})["params"]) for stage in stages}
    latents = recipe.latents(params["vae"])
    pictures = recipe.album("held_out") if {"preference", "judge"} & params.keys() else None
    more = {stage: JUDGES[stage](recipe, params[stage], pictures) for stage in JUDGES if stage in params}  # by all processes
    if not is_first_process():
        return
    with whole_folder(run.path("export")) as folder:
        _write(recipe, params, latents, more, folder)
    run.log.say(f"wrote {run.path('export')}")


def _write(recipe, params: PyTree, latents: Encoded, more: Mapping[str, Callable[["_Folder"], None]], folder: str) -> None:
    to = lambda *names: _Folder(os.path.join(folder, *names), np.dtype(recipe.config.export.dtype))
    _write_pipeline(recipe.family, params, latents, to)
    for stage, write in more.items():
        write(to(stage))
    for name, (n, seed, never, new) in PROMPTS.items():
        with whole_file(os.path.join(folder, "prompts", name)) as file:
            file.write("\n".join(prompts(n, seed, never, new)) + "\n")


def _write_pipeline(family: Family, params: PyTree, latents: Encoded, to: Callable[..., "_Folder"]) -> None:
    """pipeline/, and generator/: the network that `one_step` taught, with its scheduler."""
    to("pipeline").json("model_index.json", family.model_index)
    for name, tokenizer in family.tokenizers().items():
        tokenizer.save_pretrained(to("pipeline", name).path)
    for name, (part, table, config) in family.text_networks(params["words"]).items():
        to("pipeline", name).network(part, table, config)
    scaled = {**family.vae_json, "shift_factor": latents.shift, "scaling_factor": latents.scale}
    to("pipeline", "vae").network(params["vae"], VAE_TABLE, scaled, DIFFUSERS)
    for name, stage in (("pipeline", "reference"), ("generator", "one_step")):
        to(name, family.part).network(params[stage], family.table, family.network_json, DIFFUSERS)
        to(name, "scheduler").json("scheduler_config.json", family.scheduler)


def _clip(recipe, params: PyTree, _pictures) -> Callable[["_Folder"], None]:
    def write(folder: "_Folder") -> None:
        folder.network(params, HF, networks.clip_json())
        networks.clip_tokenizer().save_pretrained(folder.path)

    return write


def _preference(recipe, params: PyTree, pictures: Album) -> Callable[["_Folder"], None]:
    head = in_published_units(recipe, params, pictures)

    def write(folder: "_Folder") -> None:
        folder.network(params["vision"], HF_VISION, networks.clip_json())
        folder.tensors(head, AESTHETIC, "head.safetensors")

    return write


def _judge(recipe, params: PyTree, pictures: Album) -> Callable[["_Folder"], None]:
    features = judging.grouped(judging.seen(params, pictures.images)[1], parts.cheerful(pictures.parts))

    def write(folder: "_Folder") -> None:
        folder.tensors(params, judging.TABLE, "judge.safetensors")
        folder.json("features.json", judging.groups_as_json(features))

    return write


# stage -> (recipe, its parameters, held-out pictures) -> what writes its folder
JUDGES: dict[str, Callable[..., Callable[["_Folder"], None]]] = {"clip": _clip, "preference": _preference, "judge": _judge}


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
        self.path, self._dtype = path, dtype

    def tensors(self, params: PyTree, table: Sequence[Rule], name: str) -> None:
        write_safetensors(os.path.join(self.path, name), to_torch(params, table, dtype=self._dtype))

    def json(self, name: str, content: Mapping[str, Any]) -> None:
        write_json(os.path.join(self.path, name), json.loads(json.dumps(content)))

    def network(self, params: PyTree, table: Sequence[Rule], config: Mapping[str, Any], name: str = "model.safetensors") -> None:
        self.tensors(params, table, name)
        self.json("config.json", config)
