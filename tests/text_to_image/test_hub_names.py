"""A tiny pipeline and its rewards laid out as a hub cache, offline: names do wherever paths do."""

import shutil

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from huggingface_hub import constants  # noqa: E402

from configs import sdxl  # noqa: E402
from didr_jax.cli import _build  # noqa: E402
from didr_jax.training.validate import validate  # noqa: E402
from didr_jax.types import InputError  # noqa: E402
from didr_jax.weights.files import read_tensors  # noqa: E402
from tests.hub_server import COMMIT, in_cache  # noqa: E402
from tests.text_to_image import runs, tiny_sdxl  # noqa: E402
from tests.text_to_image.test_reward_vae import save_tiny_vae  # noqa: E402


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    _, settings = tiny_sdxl.settings(root)
    save_tiny_vae(root / "tiny")
    for repo, folder in (("maker/tiny", "tiny"), ("maker/base", "base"), ("maker/one-step", "generator"), ("maker/clip", "hps")):
        in_cache(root / "cache", repo, root / folder)
    return root, settings


@pytest.fixture
def built(made, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(made[0] / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    names = {
        "weights.base": "maker/base", "weights.generator": "maker/one-step:diffusion_pytorch_model.safetensors",
        "rewards.hps": "maker/clip", "rewards.pickscore": "", "rewards.clip_tokenizer": "maker/base:tokenizer",
        "network.reward_vae": "maker/tiny", "data.cache": str(tmp_path / "cache"),
    }  # fmt: skip

    def build(mode="train", **change):
        config = runs.config_of(sdxl, made[1] | names | {key.replace("__", "."): value for key, value in change.items()})
        validate(config)
        return config, _build(config, str(tmp_path / "run"), mode)

    return build


def test_everything_is_found_by_name_and_the_commit_is_kept(built, made):
    config, recipe = built()
    recipe.check("train")
    assert config.weights.base == f"maker/base@{COMMIT}"
    assert config.weights.generator == f"maker/one-step@{COMMIT}:diffusion_pytorch_model.safetensors"
    assert config.network.reward_vae == f"maker/tiny@{COMMIT}"
    assert config.rewards.hps == f"maker/clip@{COMMIT}" and config.rewards.clip_tokenizer == f"maker/base@{COMMIT}:tokenizer"
    here = runs.recipe_of(sdxl, type(recipe.task.backbone), made[1]).task.backbone
    for which in ("base", "generator"):
        jax.tree.map(np.testing.assert_array_equal, getattr(recipe.task.backbone, which).load(), getattr(here, which).load())
    assert recipe.task.backbone.text_digest() == here.text_digest()


@pytest.mark.parametrize("generator", ["maker/base", "maker/base:unet", "models"])
def test_a_pipelines_name_or_folder_is_a_generator(built, made, generator):
    """Of SDXL too, and the base's own weights are held once."""
    if generator == "models":
        generator = str(made[0] / "cache" / "models--maker--base")
    _, recipe = built(weights__generator=generator)
    assert recipe.task.backbone.shared


def test_a_part_that_is_not_in_the_cache_matters_to_the_modes_that_read_it(built, made, tmp_path, monkeypatch):
    shutil.copytree(made[0] / "cache", tmp_path / "less", symlinks=True)
    unet = next((tmp_path / "less" / "models--maker--base" / "snapshots").iterdir()) / "unet"
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "less"))
    for mode in ("sample", "export", "compile"):
        built(mode)
    with pytest.raises(InputError, match="config.weights.base = 'maker/base@.*hf download maker/base --include"):
        built("train")


def test_averaging_leaves_its_notes_in_a_unets_config(built, made, tmp_path):
    """As `EMAModel.save_pretrained` writes it."""
    averaged = diffusers.training_utils.EMAModel(
        (unet := diffusers.UNet2DConditionModel.from_pretrained(made[0] / "base" / "unet")).parameters(),
        model_cls=type(unet), model_config=unet.config,
    )  # fmt: skip
    shutil.copytree(made[0] / "base", tmp_path / "base")
    averaged.save_pretrained(tmp_path / "base" / "unet")
    assert "inv_gamma" in (tmp_path / "base" / "unet" / "config.json").read_text()
    _, recipe = built(weights__base=str(tmp_path / "base"))
    recipe.check("train")
    assert set(read_tensors(tmp_path / "base" / "unet")) == set(read_tensors(made[0] / "base" / "unet"))
