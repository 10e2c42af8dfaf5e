"""How each network of the pipeline is measured: on pictures and captions that its training never saw."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from didr_jax.objectives import denoising_loss
from didr_jax.recipes.sprouts import judging, parts
from didr_jax.recipes.sprouts.album import to_float
from didr_jax.recipes.sprouts.data import Encoded, clip_ids, raw_means
from didr_jax.recipes.sprouts.pipeline import NEW, preferences, prompts
from didr_jax.reporting.curves import curves
from didr_jax.reporting.page import write_report
from didr_jax.rewards.people import Ranked
from didr_jax.rewards.tac import Agreement, agreement
from didr_jax.training.evaluation import over_rows
from didr_jax.training.reports import picture_grid, save_picture, to_bytes, write_agreements, write_summary
from didr_jax.training.run import Products, Run
from didr_jax.training.startup import is_first_process
from didr_jax.types import PyTree

SIZE = 256  # rows at a time
OFFERED = 6  # pictures that are ranked against one another
RIVALS = 100  # captions among which CLIP is to find a picture's own


def evaluate(recipe, products: Products, run: Run) -> None:
    """summary.json, a row a network; tac.json, of the reward; reconstructions.png and reference.png; curves, report.html."""
    weights = {stage: products[stage]["params"] for stage in recipe.stages if stage in products}
    if "judge" not in recipe.config.stages:
        weights["judge"] = judging.read_judge(judging.SHIPPED / "judge")[0].cast(jnp.float32)
    params = {stage: run.load({"params": each})["params"] for stage, each in weights.items()}
    album, rng = recipe.album("held_out"), np.random.default_rng(recipe.config.eval.seed)
    held_out = album._replace(images=album.images[: recipe.config.eval.num], parts=album.parts[: recipe.config.eval.num])
    rows, pictures, told = {}, {}, {}
    if "vae" in params:
        raw = raw_means(recipe.family.vae, params["vae"], held_out.images)
        again = _decode(recipe, params["vae"], raw)
        rows["vae"] = _likeness(held_out.images, again)
        pairs = np.stack([held_out.images[:24], again[:24]], 1).reshape(-1, *again.shape[1:])
        pictures["reconstructions"] = picture_grid(pairs, 12)
    if "words" in params:
        rows["words"] = _surprise(recipe, params["words"], held_out.parts, rng)
    if "clip" in params:
        rows["clip"] = {"found": _found(recipe, params["clip"], held_out)}
    if "preference" in params:
        rows["preference"] = _agreement(recipe, params["preference"], album)
        told["preference"] = _aligned(recipe, params["preference"], album)
    if "judge" in params:
        found, features = judging.seen(params["judge"], held_out.images)
        rows["judge"] = {"right": float(np.mean(found == held_out.parts))}
        if "vae" in params:
            rows["vae"]["right"] = float(np.mean(judging.seen(params["judge"], again)[0] == held_out.parts))
    if {"vae", "words", "reference"} <= params.keys():
        scale = recipe.latents(params["vae"])
        latents = (raw - scale.shift) * scale.scale
        rows["reference"] = {"loss": _prediction_loss(recipe, params, latents, held_out.parts, rng)}
        captions = prompts(recipe.config.eval.num, recipe.config.eval.seed, new=NEW)
        images = reference_images(recipe, params, captions, scale)
        pictures["reference"] = picture_grid(images[:48], 12)
        if "judge" in params:
            groups = judging.grouped(judging.seen(params["judge"], album.images)[1], parts.cheerful(album.parts))
            rows["reference"] |= judging.verdict(*judging.seen(params["judge"], images), captions, groups)
            rows["judge"]["sampling_error"] = judging.sampling_error(captions)
    if is_first_process():
        write_summary(run.workdir, rows, run.log)
        if told:
            write_agreements(run.workdir, told)
        for name, picture in pictures.items():
            save_picture(run.path(f"{name}.png"), picture)
        curves(run.workdir)
        write_report(run.workdir)


def reference_images(recipe, params: PyTree, captions: list[str], scale: Encoded) -> np.ndarray:
    """Pictures of the multi-step reference, uint8 `[n, 64, 64, 3]`."""
    section = recipe.config.eval
    flow = jax.jit(functools.partial(recipe.many_steps, steps=section.reference_steps))
    z = np.asarray(jax.random.normal(jax.random.key(section.seed), (len(captions), *recipe.family.latent)))
    params = {name: params[name] for name in ("words", "reference", "vae")}
    latents = over_rows(flow, params, {"z": z, "tokens": recipe.family.tokens(captions)}, SIZE)
    return _decode(recipe, params["vae"], latents / scale.scale + scale.shift)


def _decode(recipe, vae: PyTree, raw: np.ndarray) -> np.ndarray:
    decode = jax.jit(lambda p, z: recipe.family.vae.apply({"params": p}, z, method="decode"))
    return to_bytes(over_rows(decode, vae, raw, SIZE))


def _likeness(images: np.ndarray, again: np.ndarray) -> dict[str, float]:
    error = images.astype(np.float64) - again
    return {"psnr": float(10 * np.log10(255**2 / np.mean(error**2)))}


def _surprise(recipe, params: PyTree, drawn: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    named = parts.draw_named(rng, len(drawn))
    tokens = recipe.family.tokens(parts.captions(drawn, named))
    _, figures = recipe.family.words_loss(params, tokens, jnp.asarray(parts.asked(drawn, named)))
    return {name: float(np.mean(value)) for name, value in figures.items()}


def _found(recipe, params: PyTree, pictures) -> float:
    """How often a picture's whole caption is nearer to it than those of `RIVALS` − 1 others."""
    ids = clip_ids(parts.captions(pictures.parts, np.ones(pictures.parts.shape, bool)))
    embed = jax.jit(lambda p, rows: recipe.clip_embeddings(p, to_float(rows["images"]), rows["ids"]))
    images, texts = over_rows(embed, params, {"images": pictures.images, "ids": ids}, SIZE)
    near = images @ texts.T
    block = np.arange(len(near)) // RIVALS
    near = np.where(block[:, None] == block[None], near, -np.inf)
    return float(np.mean(near.argmax(1) == np.arange(len(near))))


def _agreement(recipe, params: PyTree, album) -> dict[str, float]:
    n = len(album.other_parts)
    a, b = (preferences(recipe, params, images) for images in (album.images[:n], album.other_images))
    gain = parts.cheerful(album.parts[:n]) * 1.0 - parts.cheerful(album.other_parts)
    return {"agreement": float(np.mean(((a > b) == (gain > 0))[gain != 0])), "rms": float(np.sqrt(np.mean((a - b - gain) ** 2)))}


def _aligned(recipe, params: PyTree, album) -> Agreement:
    """Of the reward with the rule by which preferences were made: held-out pictures in groups of `OFFERED`, some of them
    cheerful."""
    n = len(album.images) // OFFERED * OFFERED
    scores = preferences(recipe, params, album.images[:n])
    rule = parts.cheerful(album.parts[:n]).astype(float).reshape(-1, OFFERED)
    return agreement([Ranked("a sprout", ("",) * OFFERED, each) for each in rule], list(np.reshape(scores, rule.shape)))


def _prediction_loss(recipe, params: PyTree, latents: np.ndarray, drawn: np.ndarray, rng: np.random.Generator) -> float:
    family, schedule, n = recipe.family, recipe.family.schedule, len(latents)
    rows = {
        "x0": latents.astype(np.float32),
        "eps": rng.standard_normal(latents.shape).astype(np.float32),
        "t": np.asarray(schedule.snap((rng.permutation(n) + 0.5) / n)),
        "tokens": family.tokens(parts.captions(drawn, parts.draw_named(rng, n))),
    }

    def loss(params, rows):
        text = family.text(params["words"], rows["tokens"])
        denoiser = lambda x_t, t: recipe.denoise(params["reference"], x_t, t, text)
        return denoising_loss(denoiser, schedule, rows["x0"], rows["eps"], rows["t"], family.weighting)

    return float(np.mean(over_rows(jax.jit(loss), params, rows, SIZE)))
