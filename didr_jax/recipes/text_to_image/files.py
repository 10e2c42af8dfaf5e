"""What each mode reads of the paths in a config, so that no more is fetched where they are names on the hub."""

import os
from collections.abc import Sequence

from didr_jax.recipes.text_to_image.backbone import Backbone
from didr_jax.recipes.text_to_image.latents import REWARD_VAE
from didr_jax.recipes.text_to_image.rewards import chosen
from didr_jax.rewards import REWARDS
from didr_jax.weights.adapters import picked_adapter
from didr_jax.weights.files import is_weights
from didr_jax.weights.hub import Files

ALONE = ("score", "tac")  # modes that read rewards, and of a pipeline the tokenizer that they may share
IMAGES = ("train", "eval", "sample")  # that make images


def files(config, backbone: Backbone, mode: str) -> dict[str, Files]:
    """By the config's key; opens nothing but the names in a single file."""
    wanted = _pipeline(config, backbone, mode) if config.weights.base else {}
    adapted, part = config.network.generator == "lora", backbone.part
    starts = mode in ("train", "eval")
    if starts or (adapted and mode in ("sample", "export")):
        wanted["weights.generator"] = Files(weights=("", part), texts=("", part, "scheduler"))
    elif mode == "compile" and not is_weights(config.weights.generator):  # is it the base itself?
        wanted["weights.generator"] = Files(texts=("", part))
    if starts:
        wanted["weights.generator_adapter"] = Files(weights=("",), texts=("",), pick=picked_adapter)
    if mode == "train" or (mode == "compile" and config.weights.base):
        wanted[REWARD_VAE] = Files(weights=("",) if mode == "train" else (), texts=("",))
    if mode in ("train", "eval", "compile", *ALONE):
        read = {k.key: k.files for name in chosen(config.rewards) for k in REWARDS[name].knobs.values() if k.files is not None}
        # plans know the published ones, and fetch none
        there = lambda key: mode != "compile" or os.path.exists(os.path.expanduser(config.rewards[key]))
        wanted |= {f"rewards.{key}": files for key, files in read.items() if there(key)}
    return wanted


def _pipeline(config, backbone: Backbone, mode: str) -> dict[str, Files]:
    texts = (backbone.part, "vae", "scheduler", *backbone.all_text_parts) if mode not in ALONE else ("tokenizer",)
    weights = _weights(config, backbone, mode)
    if backbone.file is None:
        return {"weights.base": Files(weights, texts, pipeline=True)}
    rest = [part for part in weights if part != backbone.part and not backbone.in_file(part)]
    return {"weights.base": Files(), "weights.rest": Files(rest, texts, pipeline=True, otherwise=backbone.repository)}


def _weights(config, backbone: Backbone, mode: str) -> Sequence[str]:
    """Of a pipeline's parts those whose weights the mode reads."""
    encoders = [part for part in backbone.all_text_parts if part.startswith("text_encoder")]
    if mode == "export" and config.export.pipeline:
        return backbone.part, "vae", *encoders
    own, adapted = not config.weights.generator, config.network.generator == "lora"
    network = mode == "train" or (own and (mode == "eval" or (adapted and mode in ("sample", "export"))))
    return [*([backbone.part] if network else []), *(["vae", *encoders] if mode in IMAGES else [])]
