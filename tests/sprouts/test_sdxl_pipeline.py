"""The commands of the SDXL twin in a short form: train its networks, export, distill, align, export; diffusers draws.

Minutes long together; reward, CLIP and judge are those that ship.
"""

import importlib.util
import json

import diffusers
import numpy as np
import pytest
import torch

from didr_jax.recipes.sprouts.families.sdxl import SDXL
from didr_jax.text.clip import clip_encoder
from didr_jax.weights.clip import load_text
from tests.text_to_image.runs import run, trained_and_exported

pytestmark = pytest.mark.slow
pytest.importorskip("dicebear", reason="draws with dicebear-core, dicebear-styles, resvg-py (requirements-dev.txt)")
if importlib.util.find_spec("open_clip") is None:
    pytest.skip("needs CLIP's vocabulary (requirements-vocabularies.txt)", allow_module_level=True)

SHORT = {
    "data.train": 48, "data.held_out": 32, "data.pairs": 24, "eval.num": 16, "eval.reference_steps": 2, "vae.steps": 3, "vae.batch_size": 2,
    "words.steps": 80, "words.batch_size": 16, "words.optimizer.warmup": 10, "reference.steps": 3, "reference.batch_size": 8, "one_step.steps": 2,
    "one_step.batch_size": 8, "one_step.pairs": 16, "one_step.solver_steps": 2, "log.every": 20,
} | {f"{stage}.optimizer.name": "adamw" for stage in ("vae", "reference", "one_step")}  # fmt: skip
GAME = {"align.steps": 2, "align.batch_size": 4, "align.ta_updates": 1, "eval.num": 8, "eval.every": 0, "log.every": 1}
GAME |= {f"align.{network}_optimizer.name": "adamw" for network in ("generator", "ta")}  # which compiles faster than muon
PROMPTS = ["a cactus in a yellow bag pot with sleepy eyes on teal", "a plant in a pot"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("sprouts_sdxl")


@pytest.fixture(scope="module")
def exported(root):
    """The folder from the first two commands, and what its report said."""
    return trained_and_exported("sprouts_sdxl_pipeline", SHORT | {"data.cache": str(root / "album")}, root)


def opened(kind, folder, **more):
    """Of diffusers, as docs/sprouts.md opens what is written in half precision."""
    return kind.from_pretrained(folder, torch_dtype=torch.float32, **more)


def drawn(pipeline, prompts, **settings):
    """Pictures by diffusers, `[n, 64, 64, 3]`."""
    pipeline.set_progress_bar_config(disable=True)
    more = dict(height=64, width=64, output_type="np", generator=torch.Generator().manual_seed(0))
    return pipeline(prompts, **more, **settings).images


def test_eighty_steps_learn_to_read_captions_back(exported):
    """Not knowing what is asked for costs 2.2 nats a part; knowing how often each is, 1.7."""
    _, rows = exported
    assert rows["words"]["read"] < 1.6 and rows["words"]["pooled"] < 1.6
    assert set(rows) == {"vae", "words", "judge", "reference"}
    assert all(np.isfinite(value) for name in ("vae", "words", "judge") for value in rows[name].values())


def test_the_recipe_of_sdxl_reads_captions_as_the_training_did(exported):
    folder, family = exported[0] / "pipeline", SDXL()
    encoder = clip_encoder(folder, xl=True)
    theirs = encoder.encode(encoder.weights.load(), encoder.tokenize(PROMPTS))
    words = {name: load_text(folder / name)[1].cast(np.float32).load() for name in family.towers}
    ours = family.text(words, family.tokens(PROMPTS))
    for name, told in theirs.items():
        np.testing.assert_allclose(ours[name], told, atol=1e-5)


def test_diffusers_runs_the_pipeline_and_sees_the_same_text_and_network(exported):
    folder, family = exported[0] / "pipeline", SDXL()
    pipeline = opened(diffusers.StableDiffusionXLPipeline, folder)
    images = drawn(pipeline, PROMPTS, num_inference_steps=2)
    assert images.shape == (2, 64, 64, 3) and np.isfinite(images).all()
    with torch.no_grad():
        prompt, silent, pooled, silent_pooled = pipeline.encode_prompt(PROMPTS, do_classifier_free_guidance=True)
    words = {name: load_text(folder / name)[1].cast(np.float32).load() for name in family.towers}
    for sentences, told, mean in ((PROMPTS, prompt, pooled), ([""], silent[:1], silent_pooled[:1])):
        ours = family.text(words, family.tokens(sentences))
        np.testing.assert_allclose(ours["prompt"], told.numpy(), atol=1e-4)
        np.testing.assert_allclose(ours["pooled"], mean.numpy(), atol=1e-4)


def test_the_recipe_of_sdxl_distills_aligns_and_exports_it_and_diffusers_draws_in_one_step(exported, root):
    folder, _ = exported
    prompts = folder / "prompts"
    base = GAME | {"data.limit": 32, "data.cache": str(root / "cache"), "eval.prompts": str(prompts / "eval.txt"), "weights.base": str(folder / "pipeline")}  # fmt: skip
    settings = base | {"data.prompts": str(prompts / "distill.txt"), "weights.generator": str(folder / "generator" / "unet")}
    for mode in ("train", "export"):
        run("sprouts_sdxl_distill", settings, root / "distill", f"--mode={mode}", cache=root / "compiled")
    settings = base | {"data.prompts": str(prompts / "align.txt"), "weights.generator": str(root / "distill" / "export" / "unet")}
    for mode in ("train", "export"):
        run("sprouts_sdxl", settings, root / "aligned", f"--mode={mode}", cache=root / "compiled")
    for row in json.loads((root / "aligned" / "summary.json").read_text()).values():
        assert {"reward", "aesthetic", "clipscore", "named", "cheerful", "kl_others", "frechet"} <= set(row)
    unet = opened(diffusers.UNet2DConditionModel, root / "aligned" / "export", subfolder="unet")
    pipeline = opened(diffusers.StableDiffusionXLPipeline, folder / "pipeline", unet=unet)
    pipeline.scheduler = diffusers.LCMScheduler.from_config(pipeline.scheduler.config)
    images = drawn(pipeline, PROMPTS, num_inference_steps=1, timesteps=[399], guidance_scale=0.0)
    assert images.shape == (2, 64, 64, 3) and np.isfinite(images).all()
