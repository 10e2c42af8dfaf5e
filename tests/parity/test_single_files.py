"""Single files in the names of the authors' own code: diffusers' `from_single_file` reads ours, and we read them back."""

import shutil

import diffusers
import jax
import numpy as np
import pytest
import torch
import transformers as T

from configs import sd15, sdxl, zimage
from didr_jax.recipes.text_to_image.export import CHECKPOINT, write_export
from didr_jax.recipes.text_to_image.stable_diffusion import StableDiffusion
from didr_jax.recipes.text_to_image.zimage import ZImage
from didr_jax.types import InputError
from didr_jax.weights.files import read_tensors
from tests.parity.oracle import randomise
from tests.text_to_image import runs, tiny_sdxl, tiny_zimage

LEVELS = dict(  # what numbering depends on: levels with and without attention, and samplers of both
    block_out_channels=(8, 8, 8), layers_per_block=1, norm_num_groups=4,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
)  # fmt: skip


def save_sdxl(folder):
    pipeline = tiny_sdxl.save_sdxl(folder)
    config = tiny_sdxl.XL | LEVELS | dict(transformer_layers_per_block=(1, 2, 1), attention_head_dim=(2, 2, 2))
    pipeline.unet = randomise(diffusers.UNet2DConditionModel(**config), 4)
    pipeline.save_pretrained(folder)
    return {
        "unet": pipeline.unet,
        "vae": pipeline.vae,
        "text_encoder": pipeline.text_encoder,
        "text_encoder_2": pipeline.text_encoder_2,
    }


def save_sd15(folder):
    tiny_sdxl.save_sd15(folder)
    unet = randomise(diffusers.UNet2DConditionModel(**LEVELS, attention_head_dim=2, cross_attention_dim=16), 6)
    unet.save_pretrained(folder / "unet")
    tiny_sdxl._scheduler().save_pretrained(folder / "scheduler")
    vae, text = diffusers.AutoencoderKL.from_pretrained(folder / "vae"), T.CLIPTextModel.from_pretrained(folder / "text_encoder")
    pipeline = diffusers.StableDiffusionPipeline(
        vae,
        text,
        T.CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet,
        tiny_sdxl._scheduler(),
        None,
        None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return {"unet": unet, "vae": vae, "text_encoder": text}


FAMILIES = {
    "sdxl": (save_sdxl, sdxl, diffusers.StableDiffusionXLPipeline),
    "sd15": (save_sd15, sd15, diffusers.StableDiffusionPipeline),
}
QUICK = {"network.dtype": "float32", "network.frozen_dtype": "float32", "data.dtype": "float32", "export.dtype": "float32",
         "image.height": 32, "image.width": 32}  # fmt: skip


@pytest.fixture(scope="module", params=["sdxl", pytest.param("sd15", marks=pytest.mark.slow)])
def family(request, tmp_path_factory):
    """(recipe of settings, torch models, diffusers' class, folder, the whole checkpoint that we wrote of it)."""
    save, config, kind = FAMILIES[request.param]
    root = tmp_path_factory.mktemp(request.param)
    models = save(root / "base")

    def recipe(**more):
        return runs.recipe_of(config, StableDiffusion, QUICK | {"weights.base": str(root / "base")}, **more)

    whole = recipe(export__format="single_file", export__pipeline=True)
    write_export(whole.task, whole.task.backbone.base.load(), str(root / "export"))
    return recipe, models, kind, root / "base", root / "export" / CHECKPOINT


def assert_same_state(got, want):
    """State dicts, to the bit."""
    theirs = want.state_dict()
    assert got.keys() == theirs.keys()
    assert [name for name, tensor in theirs.items() if not torch.equal(got[name], tensor)] == []


def without_weights(base, folder):
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return str(folder)


def test_diffusers_reads_a_whole_checkpoint_of_ours(family):
    _, models, kind, base, checkpoint = family
    pipeline = kind.from_single_file(str(checkpoint), config=str(base), local_files_only=True, torch_dtype=torch.float32)
    for part, model in models.items():
        assert_same_state(getattr(pipeline, part).state_dict(), model)


def test_a_whole_checkpoint_is_a_base_and_a_generator(family, tmp_path):
    recipe, _, _, base, checkpoint = family
    rest = without_weights(base, tmp_path / "rest")
    single = recipe(weights__base=str(checkpoint), weights__rest=rest).task.backbone
    folder = recipe(weights__generator=str(checkpoint)).task.backbone
    assert single.shared and not folder.shared
    same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a.load(), b.load())
    same(single.base, folder.base)
    same(folder.generator, folder.base)
    same(single.image.weights, folder.image.weights)
    same(single.encoder().weights, folder.encoder().weights)
    assert single.text_digest() != recipe(weights__base=rest).task.backbone.text_digest()
    single.image.weights.check()


def test_a_network_alone_leaves_the_rest_to_the_folder(family, tmp_path):
    """And from it the same file is written again, to the bit."""
    recipe, models, _, base, _ = family
    alone = recipe(export__format="single_file")
    write_export(alone.task, alone.task.backbone.base.load(), str(tmp_path))
    unet = diffusers.UNet2DConditionModel.from_single_file(
        str(tmp_path / "unet.safetensors"), config=str(base), subfolder="unet", local_files_only=True
    )
    assert_same_state(unet.state_dict(), models["unet"])

    single = recipe(weights__base=str(tmp_path / "unet.safetensors"), weights__rest=str(base), export__format="single_file")
    write_export(single.task, single.task.backbone.base.load(), str(tmp_path / "again"))
    assert (tmp_path / "again" / "unet.safetensors").read_bytes() == (tmp_path / "unet.safetensors").read_bytes()
    assert single.task.backbone.in_file("vae") is False
    single.task.backbone.image.weights.check()


def test_zimages_transformer_alone(tmp_path):
    pipeline = tiny_zimage.save_base(tmp_path / "base")
    settings = QUICK | {"weights.base": str(tmp_path / "base"), "network.generator": "full", "export.format": "single_file"}
    recipe = runs.recipe_of(zimage, ZImage, settings)
    write_export(recipe.task, recipe.task.backbone.base.load(), str(tmp_path / "export"))
    path = tmp_path / "export" / "transformer.safetensors"
    assert any(name.endswith("layers.0.attention.qkv.weight") for name in read_tensors(path))
    theirs = diffusers.ZImageTransformer2DModel.from_single_file(
        str(path), config=str(tmp_path / "base"), subfolder="transformer", local_files_only=True
    )
    assert_same_state(theirs.state_dict(), pipeline.transformer)
    for change in ({"weights.generator": str(path)}, {"weights.base": str(path), "weights.rest": str(tmp_path / "base")}):
        backbone = runs.recipe_of(zimage, ZImage, settings | change).task.backbone
        jax.tree.map(np.testing.assert_array_equal, backbone.generator.load(), recipe.task.backbone.base.load())
    whole = runs.recipe_of(zimage, ZImage, settings, export__pipeline=True)
    with pytest.raises(InputError, match="config.export.pipeline: single files of this model have the network alone"):
        whole.check("export")


def test_a_single_file_asks_for_the_folder_that_it_needs(family):
    recipe, _, _, _, checkpoint = family
    with pytest.raises(InputError, match="is a single file, which has no configs and tokenizers: set config.weights.rest"):
        recipe(weights__base=str(checkpoint)).check("export")
