"""A text-to-image pipeline of pictures with known parts, made from nothing: every network of it, and judges.

    vae         pictures <-> latents
    words       what remembers of captions what they named: the pipeline's text encoders
    reference   the denoiser of latents, told by captions: what an alignment is to keep
    clip        pictures and captions in one space: held out, it measures whether a picture is what was asked for
    preference  a reward that prefers cheerful faces, from exact counterfactual pairs: the same picture, another mouth
    judge       a classifier of all parts on pictures that no other stage has seen: it only measures
    one_step    the denoiser again, taught by regression to go from noise to where the reference's solver ends

The networks of the first three, and the noise between them, are those of a family (`families`): Z-Image's or SDXL's.
`--mode=export` writes all as folders that diffusers and transformers read, and that `configs/sprouts.py` or
`configs/sprouts_sdxl.py` aligns.  From pure noise the reference answers with the mean of all pictures, whatever the noise;
`one_step` is a start that listens to it.  The one-step generator is then distilled from it, and aligned, by that family's own
recipe on that folder.
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
from didr_jax.objectives import denoising_loss
from didr_jax.recipes.sprouts import judging, networks, parts, pipeline, report
from didr_jax.recipes.sprouts.album import SIDE, Album, album, to_float
from didr_jax.recipes.sprouts.data import Encoded, blurred, clip_ids, raw_means, rough, roughness
from didr_jax.recipes.sprouts.families.family import Family
from didr_jax.rewards.cosine import unit
from didr_jax.rewards.preprocess import resize_and_crop
from didr_jax.sampling import denoise
from didr_jax.training.evaluation import over_rows
from didr_jax.training.parallel import held, made
from didr_jax.training.recipe import Recipe
from didr_jax.training.run import Products
from didr_jax.training.stages import Stage, fit_stage
from didr_jax.types import Array, InputError, PyTree, Weights

FIRST = 0.999  # time at which many steps begin
SEEDS = {"train": 0, "held_out": 1, "judge": 2}  # of the albums


class Sprouts(Recipe):
    """The recipe of `configs/sprouts_pipeline.py` and `configs/sprouts_sdxl_pipeline.py`."""

    free = ("eval", "export", "data.cache")

    def __init__(self, config, family: Family):
        self.config, self.family = config, family
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

    def check(self, mode: str) -> None:
        self.family.check()
        missing = [stage for stage in pipeline.NEEDED if stage not in self.config.stages]
        if mode == "export" and missing:
            raise InputError(f"config.stages lacks {', '.join(missing)}, without which there is no pipeline to export")
        if mode in ("train", "eval") and "judge" not in self.config.stages:
            judging.read_judge(judging.SHIPPED / "judge")[0].check()

    def album(self, which: str) -> Album:
        """Pictures that are drawn once and kept: "train", "held_out" or "judge"."""
        data = self.config.data
        pairs = {"train": data.pairs, "held_out": data.pairs // 8, "judge": 0}[which]
        return album(data.cache, data[which], SEEDS[which], min(data[which], pairs))

    def latents(self, vae: PyTree) -> Encoded:
        """Of the training pictures; their shift and scale are the pipeline's."""
        return Encoded(raw_means(self.family.vae, vae, self.album("train").images), self.family.centred)

    def fresh(self, init, salt: int) -> Weights:
        key = jax.random.fold_in(jax.random.key(self.config.seed), salt)
        return made(lambda: init(key))

    # -------------------------------------------------------------------------------- functions

    def denoise(self, params: PyTree, x_t: Array, t: Array, text: PyTree) -> Array:
        """x̂0 of the family's network."""
        family = self.family
        return to_x0(family.prediction, family.predict(params, x_t, t, text), x_t, t, family.schedule)

    def many_steps(self, params: PyTree, rows: PyTree, *, steps: int) -> Array:
        """Latents of the reference by so many deterministic steps from noise `rows["z"]`, for `rows["tokens"]`."""
        family, z = self.family, rows["z"]
        text = family.text(params["words"], rows["tokens"])
        denoiser = lambda x_t, t: self.denoise(params["reference"], x_t, t, text)
        flat, begin = family.convolves and self.config.unroll, jnp.full(len(z), FIRST)
        return denoise(denoiser, family.schedule, z, begin, num_steps=steps, remat=False, unroll=flat)

    def clip_embeddings(self, params: PyTree, images: Array, ids: Array) -> tuple[Array, Array]:
        """Unit-length embeddings `[b, d]` of pictures in [-1, 1] and of captions."""
        image = self.vision.apply({"params": params["vision"]}, resize_and_crop(images, SIDE))
        return unit(image), unit(self.caption.apply({"params": params["text"]}, ids).embedding)

    def prefer(self, params: PyTree, images: Array) -> Array:
        """The reward `[b]`, as `rewards.aesthetic` computes it."""
        embedding = self.vision.apply({"params": params["vision"]}, resize_and_crop(images, SIDE))
        return LinearHead().apply({"params": params["head"]}, unit(embedding))

    # ----------------------------------------------------------------------------------- stages

    def vae_stage(self, _products: Products) -> Stage:
        section, vae = self.config.vae, self.family.vae

        def loss(params, frozen, batch, noise):
            images = batch["images"]
            mean, logvar = vae.apply({"params": params}, images, method="encode")
            raw = mean + jnp.exp(logvar / 2) * noise
            weight = 1 + section.contrast * jnp.mean(jnp.abs(images - blurred(images)), -1, keepdims=True)
            off = jnp.abs(vae.apply({"params": params}, raw, method="decode") - images)
            error = jnp.mean(weight * off, (1, 2, 3)) / jnp.mean(weight, (1, 2, 3))
            kl = jnp.mean(mean**2 + jnp.exp(logvar) - 1 - logvar, (1, 2, 3)) / 2
            return error + section.kl * kl, {"error": error, "kl": kl}

        def images(rng, n):
            pictures = self.album("train").images
            return {"images": to_float(pictures[rng.integers(len(pictures), size=n)])}

        start = self.fresh(lambda key: vae.init(key, jnp.zeros((1, SIDE, SIDE, 3)))["params"], 0)
        draw = lambda key, n: jax.random.normal(key, (n, *self.family.latent))
        return fit_stage("vae", self.config, start=start, loss=loss, data=images, draw=draw)

    def words(self, _products: Products) -> Stage:
        family = self.family
        loss = lambda params, frozen, batch, noise: family.words_loss(params, batch["tokens"], batch["asked"])

        def captions(rng, n):
            drawn = parts.draw_parts(rng, n)
            named = parts.draw_named(rng, n)
            return {"tokens": family.tokens(parts.captions(drawn, named)), "asked": parts.asked(drawn, named)}

        return fit_stage("words", self.config, start=self.fresh(family.init_words, 1), loss=loss, data=captions)

    def reference(self, products: Products) -> Stage:
        section, vae, family = self.config.reference, products["vae"]["params"], self.family
        latents = functools.cache(lambda: self.latents(vae.load()).latents)

        def noise(key, n):
            time_key, noise_key = jax.random.split(key)
            low, high = family.times
            t = jax.random.uniform(time_key, (n,), minval=low, maxval=high)
            return {"t": family.schedule.snap(t), "eps": jax.random.normal(noise_key, (n, *family.latent))}

        def loss(params, frozen, batch, noise):
            text = family.text(frozen["words"], batch["tokens"])
            denoiser = lambda x_t, t: self.denoise(params, x_t, t, text)
            return denoising_loss(denoiser, family.schedule, batch["x0"], noise["eps"], noise["t"], family.weighting), {}

        def captioned(rng, n):
            drawn = self.album("train").parts
            which = rng.integers(len(drawn), size=n)
            silent = rng.random(n) < section.condition_dropout
            sentences = parts.captions(drawn[which], parts.draw_named(rng, n))
            sentences = ["" if empty else sentence for empty, sentence in zip(silent, sentences, strict=True)]
            return {"x0": latents()[which], "tokens": family.tokens(sentences)}

        start, frozen = self.fresh(family.init_network, 2), {"words": products["words"]["params"]}
        return fit_stage("reference", self.config, start=start, loss=loss, data=captioned, draw=noise, frozen=frozen)

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
        section, family = self.config.one_step, self.family
        reference, words = products["reference"]["params"], products["words"]["params"]

        @functools.cache
        def pairs():
            """Noise, captions, and where the solver ends that goes from one under the other."""
            rng = np.random.default_rng([self.config.seed, *b"one_step"])
            drawn = parts.draw_parts(rng, section.pairs)
            tokens = family.tokens(parts.captions(drawn, parts.draw_named(rng, section.pairs)))
            rows = {"z": rng.standard_normal((section.pairs, *family.latent), np.float32), "tokens": tokens}
            params = {"reference": reference.load(), "words": words.load()}
            flow = jax.jit(functools.partial(self.many_steps, steps=section.solver_steps))
            return rows | {"x0": over_rows(flow, params, rows, 256)}

        def loss(params, frozen, batch, noise):
            text = family.text(frozen["words"], batch["tokens"])
            t = jnp.full(len(batch["z"]), family.one_step_time, jnp.float32)
            x0 = self.denoise(params, batch["z"], t, text)
            return jnp.mean((x0 - batch["x0"]) ** 2, (1, 2, 3)), {}

        def batch(rng, n):
            which = rng.integers(section.pairs, size=n)
            return jax.tree.map(lambda column: column[which], pairs())

        return fit_stage("one_step", self.config, start=reference, loss=loss, data=batch, frozen={"words": words})
