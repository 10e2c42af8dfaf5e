"""A text-to-image pipeline of pictures with known parts, made from nothing: every network of `ZImagePipeline`, and judges.

    vae         pictures <-> latents of 8 × 8 × 16
    words       a language model of captions that remembers what they named: the pipeline's text encoder
    reference   the flow transformer on latents and captions: what an alignment is to keep
    clip        pictures and captions in one space: held out, it measures whether a picture is what was asked for
    preference  a reward that prefers cheerful faces, from exact counterfactual pairs: the same picture, another mouth
    judge       a classifier of all parts on pictures that no other stage has seen: it only measures
    one_step    the transformer again, taught by regression to go from noise to where the reference's flow ends

`--mode=export` writes them as folders that diffusers and transformers read, and that `configs/sprouts.py` aligns.
From pure noise the reference answers with the mean of all pictures, whatever the noise; `one_step` is a start that listens
to it.  The one-step generator is then distilled from it, and aligned, by the recipe `zimage` on that folder.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from didr_jax.diffusion import to_x0
from didr_jax.models.blip import LinearHead
from didr_jax.models.clip import TextTower, VisionTower
from didr_jax.models.part_judge import PartJudge
from didr_jax.models.qwen3 import Qwen3
from didr_jax.models.vae import AutoencoderKL
from didr_jax.models.zimage import ZImageTransformer
from didr_jax.objectives import denoising_loss
from didr_jax.recipes.sprouts import networks, parts, pipeline, report
from didr_jax.recipes.sprouts.album import SIDE, Album, album, to_float
from didr_jax.recipes.sprouts.data import LATENT, Encoded, blurred, chat_tokens, clip_ids, encoded, rough, roughness
from didr_jax.rewards.cosine import unit
from didr_jax.rewards.preprocess import resize_and_crop
from didr_jax.sampling import denoise
from didr_jax.schedules import rectified_flow
from didr_jax.training.evaluation import over_rows
from didr_jax.training.parallel import held, made
from didr_jax.training.recipe import Recipe
from didr_jax.training.run import Products
from didr_jax.training.stages import Stage, fit_stage
from didr_jax.types import Array, PyTree, Weights

AFTER = 5  # tokens of the chat template after the caption
SEEDS = {"train": 0, "held_out": 1, "judge": 2}  # of the albums


class Sprouts(Recipe):
    """The recipe of `configs/sprouts_pipeline.py`."""

    free = ("eval", "export", "data.cache")

    def __init__(self, config):
        self.config = config
        self.schedule = rectified_flow()
        self.vae = AutoencoderKL(networks.vae_config())
        text = networks.text_encoder_config()
        self.language, self.encoder = Qwen3(text, hidden_state=-1), Qwen3(text, hidden_state=-2)
        self.transformer = ZImageTransformer(networks.transformer_config())
        vision, caption = networks.clip_configs()
        self.vision, self.caption = VisionTower(vision), TextTower(caption)
        self.judge_network = PartJudge(parts.SIZES)
        self.stages = {
            "vae": self.vae_stage,
            "words": self.words,
            "reference": self.reference,
            "clip": self.clip,
            "preference": self.preference,
            "judge": self.judge,
            "one_step": self.one_step,
        }
        self.modes = {
            "eval": functools.partial(report.evaluate, self),
            "export": functools.partial(pipeline.export, self),
        }

    def album(self, which: str) -> Album:
        """Pictures that are drawn once and kept: "train", "held_out" or "judge"."""
        data = self.config.data
        pairs = {"train": data.pairs, "held_out": data.pairs // 8, "judge": 0}[which]
        return album(data.cache, data[which], SEEDS[which], min(data[which], pairs))

    def latents(self, vae: PyTree) -> Encoded:
        """Of the training pictures; their shift and scale are the pipeline's."""
        return encoded(self.vae, vae, self.album("train").images)

    def fresh(self, init, salt: int) -> Weights:
        key = jax.random.fold_in(jax.random.key(self.config.seed), salt)
        return made(lambda: init(key))

    # -------------------------------------------------------------------------------- functions

    def text(self, words: PyTree, tokens: PyTree) -> dict[str, Array]:
        """What the transformer is told: hidden states of the last layer but one, by the parameters of stage `words`."""
        language = words["language"]
        used = {
            "embed_tokens": language["embed_tokens"],
            "layers": jax.tree.map(lambda a: a[: self.encoder.depth], language["layers"]),
        }
        states = self.encoder.apply({"params": used}, tokens["ids"], tokens["mask"])
        return {"caption": jnp.where(tokens["mask"][..., None], states, 0), "length": tokens["mask"].sum(1)}

    def denoise(self, params: PyTree, x_t: Array, t: Array, text: PyTree) -> Array:
        """x̂0 of the flow transformer."""
        velocity = -self.transformer.apply({"params": params}, x_t, 1 - t, text["caption"], text["length"])
        return to_x0("velocity", velocity, x_t, t, self.schedule)

    def many_steps(self, params: PyTree, rows: PyTree, *, steps: int) -> Array:
        """Latents of the reference by so many deterministic steps from noise `rows["z"]`, for `rows["tokens"]`."""
        text = self.text(params["words"], rows["tokens"])
        denoiser = lambda x_t, t: self.denoise(params["reference"], x_t, t, text)
        return denoise(denoiser, self.schedule, rows["z"], jnp.full(len(rows["z"]), 0.999), num_steps=steps, remat=False)

    def clip_embeddings(self, params: PyTree, images: Array, ids: Array) -> tuple[Array, Array]:
        """Unit-length embeddings `[b, d]` of pictures in [-1, 1] and of captions."""
        image = self.vision.apply({"params": params["vision"]}, resize_and_crop(images, SIDE))
        return unit(image), unit(self.caption.apply({"params": params["text"]}, ids).embedding)

    def prefer(self, params: PyTree, images: Array) -> Array:
        """The reward `[b]`, as `rewards.aesthetic` computes it."""
        embedding = self.vision.apply({"params": params["vision"]}, resize_and_crop(images, SIDE))
        return LinearHead().apply({"params": params["head"]}, unit(embedding))

    def words_loss(self, params: PyTree, tokens: PyTree, asked: Array) -> tuple[Array, dict[str, Array]]:
        """Nats `[b]` per token of captions in the chat template, and per part of reading the caption back.

        Small transformers learn to look for a word among others slowly, and in one place at once: what a caption asks for
        (`asked [b, 7]`, a part's value, or their number where it is silent) shall be readable, by a linear map, from the
        states of every token that follows it.
        """
        ids, mask = tokens["ids"], tokens["mask"]
        states = self.language.apply({"params": params["language"]}, ids, mask)
        logits = states @ params["language"]["embed_tokens"]["embedding"].T  # tied
        surprise = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], ids[:, 1:])
        spelled = jnp.sum(surprise * mask[:, 1:], 1) / jnp.sum(mask[:, 1:], 1)

        after = mask.sum(1, keepdims=True) - 1 - jnp.arange(AFTER)
        told = jnp.take_along_axis(self.text(params, tokens)["caption"], after[..., None], 1)
        read = []
        for i, part in enumerate(parts.PARTS):
            guess = told @ params["heads"][part]
            read.append(optax.softmax_cross_entropy_with_integer_labels(guess, jnp.broadcast_to(asked[:, i, None], after.shape)))
        read_back = jnp.mean(jnp.stack(read), (0, 2))
        return spelled + read_back, {"spelled": spelled, "read": read_back}

    # ----------------------------------------------------------------------------------- stages

    def vae_stage(self, _products: Products) -> Stage:
        section = self.config.vae

        def loss(params, frozen, batch, noise):
            images = batch["images"]
            mean, logvar = self.vae.apply({"params": params}, images, method="encode")
            raw = mean + jnp.exp(logvar / 2) * noise
            weight = 1 + section.contrast * jnp.mean(jnp.abs(images - blurred(images)), -1, keepdims=True)
            off = jnp.abs(self.vae.apply({"params": params}, raw, method="decode") - images)
            error = jnp.mean(weight * off, (1, 2, 3)) / jnp.mean(weight, (1, 2, 3))
            kl = jnp.mean(mean**2 + jnp.exp(logvar) - 1 - logvar, (1, 2, 3)) / 2
            return error + section.kl * kl, {"error": error, "kl": kl}

        def images(rng, n):
            pictures = self.album("train").images
            return {"images": to_float(pictures[rng.integers(len(pictures), size=n)])}

        start = self.fresh(lambda key: self.vae.init(key, jnp.zeros((1, SIDE, SIDE, 3)))["params"], 0)
        draw = lambda key, n: jax.random.normal(key, (n, *LATENT))
        return fit_stage("vae", self.config, start=start, loss=loss, data=images, draw=draw)

    def words(self, _products: Products) -> Stage:
        loss = lambda params, frozen, batch, noise: self.words_loss(params, batch["tokens"], batch["asked"])

        def captions(rng, n):
            drawn = parts.draw_parts(rng, n)
            named = parts.draw_named(rng, n)
            return {"tokens": chat_tokens(parts.captions(drawn, named)), "asked": parts.asked(drawn, named)}

        def init(key):
            tokens, width = jnp.zeros((1, networks.TOKENS), int), self.language.config.hidden_size
            heads = {part: jnp.zeros((width, size + 1)) for part, size in parts.SIZES.items()}
            return {"language": self.language.init(key, tokens, tokens)["params"], "heads": heads}

        return fit_stage("words", self.config, start=self.fresh(init, 1), loss=loss, data=captions)

    def reference(self, products: Products) -> Stage:
        section, vae = self.config.reference, products["vae"]["params"]
        latents = functools.cache(lambda: self.latents(vae.load()).latents)

        def noise(key, n):
            time_key, noise_key = jax.random.split(key)
            t = jax.random.uniform(time_key, (n,), minval=0.001, maxval=0.999)
            return {"t": t, "eps": jax.random.normal(noise_key, (n, *LATENT))}

        def loss(params, frozen, batch, noise):
            text = self.text(frozen["words"], batch["tokens"])
            denoiser = lambda x_t, t: self.denoise(params, x_t, t, text)
            return denoising_loss(denoiser, self.schedule, batch["x0"], noise["eps"], noise["t"], "velocity"), {}

        def captioned(rng, n):
            drawn = self.album("train").parts
            which = rng.integers(len(drawn), size=n)
            silent = rng.random(n) < section.condition_dropout
            sentences = parts.captions(drawn[which], parts.draw_named(rng, n))
            sentences = ["" if empty else sentence for empty, sentence in zip(silent, sentences, strict=True)]
            return {"x0": latents()[which], "tokens": chat_tokens(sentences)}

        def init(key):
            text = jnp.zeros((1, networks.TOKENS, self.encoder.config.hidden_size))
            return self.transformer.init(key, jnp.zeros((1, *LATENT)), jnp.zeros(1), text, jnp.ones(1, int))["params"]

        frozen = {"words": products["words"]["params"]}
        return fit_stage(
            "reference", self.config, start=self.fresh(init, 2), loss=loss, data=captioned, draw=noise, frozen=frozen
        )

    def clip(self, _products: Products) -> Stage:
        def loss(params, frozen, batch, noise):
            images, texts = self.clip_embeddings(params, rough(batch["images"], noise), batch["ids"])
            logits = jnp.exp(params["logit_scale"]) * images @ texts.T
            own = jnp.arange(len(logits))
            either = optax.softmax_cross_entropy_with_integer_labels
            found = jnp.argmax(logits, 1) == own
            return (either(logits, own) + either(logits.T, own)) / 2, {"found": found}

        def pairs(rng, n):
            pictures = self.album("train")
            which = rng.integers(len(pictures.parts), size=n)
            sentences = parts.captions(pictures.parts[which], parts.draw_named(rng, n))
            return {"images": to_float(pictures.images[which]), "ids": clip_ids(sentences)}

        def init(key):
            pixels, ids = jnp.zeros((1, SIDE, SIDE, 3)), jnp.zeros((1, networks.TOKENS), int)
            return {
                "vision": self.vision.init(key, pixels)["params"],
                "text": self.caption.init(key, ids)["params"],
                "logit_scale": jnp.asarray(np.log(1 / 0.07), jnp.float32),
            }

        return fit_stage("clip", self.config, start=self.fresh(init, 3), loss=loss, data=pairs, draw=roughness)

    def preference(self, products: Products) -> Stage:
        clip = products["clip"]["params"]
        head = self.fresh(lambda key: LinearHead().init(key, jnp.zeros((1, networks.EMBED)))["params"], 4)

        def fill(shapes, places):
            begin = {"vision": clip.load()["vision"], "head": head.load()}
            return held(begin).load(places)

        def loss(params, frozen, batch, noise):
            a, b = (self.prefer(params, rough(batch[which], noise)) for which in ("images", "other_images"))
            return (a - b - batch["better"]) ** 2, {"agreement": (a > b) == (batch["better"] > 0)}

        def pairs(rng, n):
            pictures = self.album("train")
            gain = parts.cheerful(pictures.parts[: len(pictures.other_parts)]) * 1.0 - parts.cheerful(pictures.other_parts)
            which = rng.choice(np.flatnonzero(gain), size=n)
            images, others = to_float(pictures.images[which]), to_float(pictures.other_images[which])
            return {"images": images, "other_images": others, "better": gain[which].astype(np.float32)}

        start = Weights({"vision": clip.shapes["vision"], "head": head.shapes}, fill)
        return fit_stage("preference", self.config, start=start, loss=loss, data=pairs, draw=roughness)

    def judge(self, _products: Products) -> Stage:
        def loss(params, frozen, batch, noise):
            logits, _ = self.judge_network.apply({"params": params}, rough(batch["images"], noise))
            pairs = [(logits[part], batch["parts"][:, i]) for i, part in enumerate(parts.PARTS)]
            surprise = [optax.softmax_cross_entropy_with_integer_labels(guess, true) for guess, true in pairs]
            right = [jnp.argmax(guess, -1) == true for guess, true in pairs]
            return sum(surprise), {"accuracy": jnp.mean(jnp.stack(right), 0)}

        def labelled(rng, n):
            pictures = self.album("judge")
            which = rng.integers(len(pictures.parts), size=n)
            return {"images": to_float(pictures.images[which]), "parts": pictures.parts[which]}

        start = self.fresh(lambda key: self.judge_network.init(key, jnp.zeros((1, SIDE, SIDE, 3)))["params"], 5)
        return fit_stage("judge", self.config, start=start, loss=loss, data=labelled, draw=roughness)

    def one_step(self, products: Products) -> Stage:
        section, reference, words = self.config.one_step, products["reference"]["params"], products["words"]["params"]

        @functools.cache
        def pairs():
            """Noise, captions, and where the flow from one under the other ends."""
            rng = np.random.default_rng([self.config.seed, *b"one_step"])
            drawn = parts.draw_parts(rng, section.pairs)
            tokens = chat_tokens(parts.captions(drawn, parts.draw_named(rng, section.pairs)))
            rows = {"z": rng.standard_normal((section.pairs, *LATENT), np.float32), "tokens": tokens}
            params = {"reference": reference.load(), "words": words.load()}
            flow = jax.jit(functools.partial(self.many_steps, steps=section.solver_steps))
            return rows | {"x0": over_rows(flow, params, rows, 256)}

        def loss(params, frozen, batch, noise):
            text = self.text(frozen["words"], batch["tokens"])
            x0 = self.denoise(params, batch["z"], jnp.ones(len(batch["z"])), text)
            return jnp.mean((x0 - batch["x0"]) ** 2, (1, 2, 3)), {}

        def batch(rng, n):
            which = rng.integers(section.pairs, size=n)
            return jax.tree.map(lambda column: column[which], pairs())

        return fit_stage("one_step", self.config, start=reference, loss=loss, data=batch, frozen={"words": words})
