"""SDXL in small: a UNet that predicts v, told by two CLIP text towers, on latents of 4 channels."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from didr_jax.models.clip import TextOutput, TextTower
from didr_jax.models.unet import UNet
from didr_jax.models.unet_config import UNetConfig
from didr_jax.models.vae import AutoencoderKL, VAEConfig
from didr_jax.recipes.sprouts.album import SIDE
from didr_jax.recipes.sprouts.families import clip_vocabulary
from didr_jax.recipes.sprouts.families import sdxl_networks as networks
from didr_jax.recipes.sprouts.families.family import Family, Told, read_back, read_heads
from didr_jax.schedules import ddpm
from didr_jax.types import Array, PRNGKey, PyTree
from didr_jax.weights.clip import TEXT, hf_text_config
from didr_jax.weights.unet import unet_table

TIME_IDS = (SIDE, SIDE, 0, 0, SIDE, SIDE)  # original size, corner of the crop, target size


class SDXL(Family):
    """`StableDiffusionXLPipeline`: `text` is {"prompt": [b, 77, d], "pooled": [b, p]}, both zero where there is no text."""

    vae_json = networks.VAE
    latent = (SIDE // 4, SIDE // 4, 4)
    centred = False  # the pipeline scales latents and does not shift them
    # Not ε as SDXL's: in its units an x̂0 worse than the data's mean cost nothing at t = .97, and captions were not learned.
    prediction = weighting = "v"
    times = (0.0, 1.0)
    one_step_time = 0.399
    convolves = True
    part = "unet"
    network_json = networks.UNET
    model_index = networks.MODEL_INDEX
    scheduler = networks.SCHEDULER

    def __init__(self):
        from transformers import CLIPTextConfig

        self.schedule = ddpm()
        self.vae = AutoencoderKL(VAEConfig.from_json(networks.VAE))
        config = lambda name, raw: hf_text_config(CLIPTextConfig(**raw), networks.PROJECTED.get(name))
        self.towers = {name: TextTower(config(name, raw)) for name, raw in networks.TEXT_ENCODERS.items()}
        self.unet = UNet(UNetConfig.from_json(networks.UNET))
        self.table = unet_table(self.unet.config)

    def check(self) -> None:
        clip_vocabulary.published_file()

    def tokens(self, sentences: Sequence[str]) -> dict[str, np.ndarray]:
        """`{encoder: [n, 77]}` for either, and `{"silent": [n]}`, which is true of the empty caption."""
        settings = dict(padding="max_length", truncation=True, max_length=clip_vocabulary.TOKENS, return_tensors="np")
        read = networks.tokenizers()
        ids = {name: read[own](list(sentences), **settings)["input_ids"] for name, own in networks.TOKENIZER_OF.items()}
        return {name: rows.astype(np.int32) for name, rows in ids.items()} | {"silent": np.array([not s for s in sentences])}

    def init_words(self, key: PRNGKey) -> PyTree:
        ids = jnp.zeros((1, clip_vocabulary.TOKENS), int)
        towers = {name: tower.init(key, ids)["params"] for name, tower in self.towers.items()}
        return towers | {"heads": {"prompt": read_heads(networks.CONTEXT), "pooled": read_heads(networks.POOLED)}}

    def _told(self, words: PyTree, tokens: PyTree) -> dict[str, Array]:
        out: list[TextOutput] = [tower.apply({"params": words[name]}, tokens[name]) for name, tower in self.towers.items()]
        return {"prompt": jnp.concatenate([each.penultimate for each in out], -1), "pooled": out[-1].embedding}

    def words_loss(self, params: PyTree, tokens: PyTree, asked: Array) -> Told:
        """Nats `[b]` per part of reading the caption back: from the states of the end of text and all padding after it, which is
        most of what the UNet attends to; and from the pooled embedding."""
        told = self._told(params, tokens)
        after = jnp.cumsum(tokens["text_encoder"] == clip_vocabulary.END, 1) > 0
        states = jnp.mean(read_back(params["heads"]["prompt"], told["prompt"], asked), 0)
        read = jnp.sum(states * after, 1) / jnp.sum(after, 1)
        pooled = jnp.mean(read_back(params["heads"]["pooled"], told["pooled"][:, None], asked), (0, 2))
        return read + pooled, {"read": read, "pooled": pooled}

    def text(self, words: PyTree, tokens: PyTree) -> dict[str, Array]:
        """Penultimate states of both towers side by side, and the pooled embedding of the second."""
        told, silent = self._told(words, tokens), tokens["silent"]
        return {
            "prompt": jnp.where(silent[:, None, None], 0, told["prompt"]),
            "pooled": jnp.where(silent[:, None], 0, told["pooled"]),
        }

    def text_networks(self, words: PyTree):
        return {name: (words[name], TEXT, raw) for name, raw in networks.TEXT_ENCODERS.items()}

    def tokenizers(self):
        return networks.tokenizers()

    def init_network(self, key: PRNGKey) -> PyTree:
        prompt, pooled = jnp.zeros((1, clip_vocabulary.TOKENS, networks.CONTEXT)), jnp.zeros((1, networks.POOLED))
        added = {"text_embeds": pooled, "time_ids": jnp.zeros((1, len(TIME_IDS)))}
        return self.unet.init(key, jnp.zeros((1, *self.latent)), jnp.zeros(1), prompt, added)["params"]

    def predict(self, params: PyTree, x_t: Array, t: Array, text: PyTree) -> Array:
        ids = jnp.tile(jnp.array([TIME_IDS], jnp.float32), (len(x_t), 1))
        added = {"text_embeds": text["pooled"], "time_ids": ids}
        return self.unet.apply({"params": params}, x_t, self.schedule.timestep(t), text["prompt"], added)
