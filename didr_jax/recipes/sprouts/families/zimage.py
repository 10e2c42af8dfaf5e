"""Z-Image in small: a flow transformer told by Qwen3, on latents of 16 channels."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from didr_jax.models.qwen3 import Qwen3, Qwen3Config
from didr_jax.models.vae import AutoencoderKL, VAEConfig
from didr_jax.models.zimage import ZImageTransformer
from didr_jax.models.zimage_config import ZImageConfig
from didr_jax.recipes.sprouts.album import SIDE
from didr_jax.recipes.sprouts.families import zimage_networks as networks
from didr_jax.recipes.sprouts.families.family import Family, Told, read_back, read_heads
from didr_jax.schedules import rectified_flow
from didr_jax.text.qwen import tokenize
from didr_jax.types import Array, PRNGKey, PyTree
from didr_jax.weights.qwen3 import qwen3_table
from didr_jax.weights.zimage import zimage_table

AFTER = 5  # tokens of the chat template after the caption


class ZImage(Family):
    """`ZImagePipeline`: `text` is {"caption": [b, TOKENS, d], "length": [b]}."""

    vae_json = networks.VAE
    latent = (SIDE // 8, SIDE // 8, 16)
    centred = True
    prediction = weighting = "velocity"
    times = (0.001, 0.999)
    one_step_time = 1.0
    convolves = False
    part = "transformer"
    network_json = networks.TRANSFORMER
    model_index = networks.MODEL_INDEX
    scheduler = networks.SCHEDULER

    def __init__(self):
        self.schedule = rectified_flow()
        self.vae = AutoencoderKL(VAEConfig.from_json(networks.VAE))
        text = Qwen3Config.from_json(networks.TEXT_ENCODER)
        self.language, self.encoder = Qwen3(text, hidden_state=-1), Qwen3(text, hidden_state=-2)
        self.transformer = ZImageTransformer(ZImageConfig.from_json(networks.TRANSFORMER))
        self.table = zimage_table(self.transformer.config)

    def tokens(self, sentences: Sequence[str]) -> dict[str, np.ndarray]:
        """`{"ids", "mask": [n, TOKENS]}`."""
        ids, mask = tokenize(networks.chat_tokenizer(), sentences, networks.TOKENS)
        return {"ids": ids, "mask": mask}

    def init_words(self, key: PRNGKey) -> PyTree:
        tokens = jnp.zeros((1, networks.TOKENS), int)
        heads = read_heads(self.language.config.hidden_size)
        return {"language": self.language.init(key, tokens, tokens)["params"], "heads": heads}

    def words_loss(self, params: PyTree, tokens: PyTree, asked: Array) -> Told:
        """Nats `[b]` per token of captions in the chat template, and per part of reading the caption back.

        It is read back from the states of every token that follows it.
        """
        ids, mask = tokens["ids"], tokens["mask"]
        states = self.language.apply({"params": params["language"]}, ids, mask)
        logits = states @ params["language"]["embed_tokens"]["embedding"].T  # tied
        surprise = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], ids[:, 1:])
        spelled = jnp.sum(surprise * mask[:, 1:], 1) / jnp.sum(mask[:, 1:], 1)

        after = mask.sum(1, keepdims=True) - 1 - jnp.arange(AFTER)
        told = jnp.take_along_axis(self.text(params, tokens)["caption"], after[..., None], 1)
        read = jnp.mean(read_back(params["heads"], told, asked), (0, 2))
        return spelled + read, {"spelled": spelled, "read": read}

    def text(self, words: PyTree, tokens: PyTree) -> dict[str, Array]:
        """Hidden states of the last layer but one."""
        language = words["language"]
        used = {
            "embed_tokens": language["embed_tokens"],
            "layers": jax.tree.map(lambda a: a[: self.encoder.depth], language["layers"]),
        }
        states = self.encoder.apply({"params": used}, tokens["ids"], tokens["mask"])
        return {"caption": jnp.where(tokens["mask"][..., None], states, 0), "length": tokens["mask"].sum(1)}

    def text_networks(self, words: PyTree):
        table = qwen3_table(self.language.config, hidden_state=-1)
        return {"text_encoder": (words["language"], table, networks.TEXT_ENCODER)}

    def tokenizers(self):
        return {"tokenizer": networks.chat_tokenizer()}

    def init_network(self, key: PRNGKey) -> PyTree:
        text = jnp.zeros((1, networks.TOKENS, self.encoder.config.hidden_size))
        return self.transformer.init(key, jnp.zeros((1, *self.latent)), jnp.zeros(1), text, jnp.ones(1, int))["params"]

    def predict(self, params: PyTree, x_t: Array, t: Array, text: PyTree) -> Array:
        return -self.transformer.apply({"params": params}, x_t, 1 - t, text["caption"], text["length"])
