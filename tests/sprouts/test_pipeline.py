"""The commands that make the pipeline, in a short form: train every network, export, distill, align, export.

Minutes long together; what the networks learn in so few steps is little, but it is learned.
"""

import json

import diffusers
import numpy as np
import pytest

from didr_jax.recipes.sprouts.pipeline import PROMPTS
from didr_jax.recipes.text_to_image.export import ADAPTER
from tests.text_to_image.runs import run, trained_and_exported

pytestmark = pytest.mark.slow
pytest.importorskip("dicebear", reason="draws with dicebear-core, dicebear-styles, resvg-py (requirements-dev.txt)")

SHORT = {
    "data.train": 96, "data.held_out": 64, "data.judge": 256, "data.pairs": 64, "eval.num": 16, "eval.reference_steps": 2,
    "vae.steps": 3, "vae.batch_size": 2, "words.steps": 120, "words.batch_size": 32, "clip.steps": 3, "clip.batch_size": 16, "preference.steps": 2, "judge.steps": 150,
    "preference.batch_size": 8, "reference.steps": 3, "reference.batch_size": 8, "one_step.steps": 2, "one_step.batch_size": 8, "one_step.pairs": 64, "one_step.solver_steps": 2, "log.every": 50,
}  # fmt: skip
GAME = {"align.steps": 2, "align.batch_size": 4, "align.ta_updates": 1, "eval.num": 8, "eval.every": 0, "log.every": 1}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("sprouts")


@pytest.fixture(scope="module")
def exported(root):
    """The folder of a pipeline from the first two commands, and what its report said."""
    return trained_and_exported("sprouts_pipeline", SHORT | {"data.cache": str(root / "album")}, root)


def test_a_few_hundred_steps_learn_what_they_can(exported):
    """A uniform guess of the next of 640 ids costs 6.5 nats; of a part's value, it is right in a tenth of the cases."""
    _, rows = exported
    assert rows["words"]["spelled"] < 2.0
    assert rows["judge"]["right"] > 0.25
    assert set(rows) == {"vae", "words", "clip", "preference", "judge", "reference"}
    assert all(np.isfinite(value) for name in ("vae", "words", "clip", "preference") for value in rows[name].values())


def test_diffusers_runs_the_pipeline(exported):
    folder, _ = exported
    pipeline = diffusers.ZImagePipeline.from_pretrained(folder / "pipeline")
    image = pipeline("a cactus", height=64, width=64, num_inference_steps=2, guidance_scale=0.0, output_type="np").images
    assert image.shape == (1, 64, 64, 3) and np.isfinite(image).all()


def test_the_prompts_are_as_many_as_said_and_all_different(exported):
    for name, (n, *_) in PROMPTS.items():
        lines = (exported[0] / "prompts" / name).read_text().splitlines()
        assert len(lines) == len(set(lines)) == n


def test_the_recipe_of_zimage_distills_aligns_and_exports_it(exported, root):
    folder, _ = exported
    prompts = {"data.limit": 32, "data.cache": str(root / "cache"), "eval.prompts": str(folder / "prompts" / "eval.txt")}
    base = GAME | prompts | {"weights.base": str(folder / "pipeline")}
    settings = base | {"data.prompts": str(folder / "prompts" / "distill.txt"), "weights.generator": str(folder / "generator")}
    for mode in ("train", "export"):
        run("sprouts_distill", settings, root / "distill", f"--mode={mode}", cache=root / "compiled")
    settings = base | {
        "data.prompts": str(folder / "prompts" / "align.txt"), "weights.generator_adapter": str(root / "distill" / "export" / ADAPTER),
        "rewards.aesthetic": str(folder / "preference" / "head.safetensors"), "rewards.clip": str(folder / "preference"),
        "rewards.clipscore": str(folder / "clip"),
    }  # fmt: skip
    for mode in ("train", "export"):
        run("sprouts", settings, root / "aligned", f"--mode={mode}", cache=root / "compiled")
    for row in json.loads((root / "aligned" / "summary.json").read_text()).values():
        assert {"reward", "aesthetic", "clipscore", "named", "cheerful", "kl_others", "frechet"} <= set(row)
    transformer = diffusers.ZImageTransformer2DModel.from_pretrained(root / "aligned" / "export", subfolder="transformer")
    pipeline = diffusers.ZImagePipeline.from_pretrained(folder / "pipeline", transformer=transformer)
    image = pipeline("a palm", height=64, width=64, num_inference_steps=1, guidance_scale=0.0, output_type="np").images
    assert image.shape == (1, 64, 64, 3) and np.isfinite(image).all()
