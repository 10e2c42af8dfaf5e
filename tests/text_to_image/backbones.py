"""The backbones that the shared suite of recipe tests runs over: a new one joins by a row.

A row says how a tiny pipeline of the backbone is made, how diffusers runs what the recipe exports, and what is
particular in its files; `test_recipe.py` does the rest.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import diffusers

from configs import sdxl, zimage
from didr_jax.recipes.text_to_image.stable_diffusion import StableDiffusion
from didr_jax.recipes.text_to_image.zimage import ZImage
from tests.parity.oracle import nchw
from tests.text_to_image import tiny_sdxl, tiny_zimage


@dataclasses.dataclass(frozen=True)
class Row:
    """A backbone under test.

    Attributes:
      name: of its file in `configs/`.
      config: that file.
      backbone: the class.
      tiny: module with HEIGHT, WIDTH, PROMPTS and `settings(root) -> (pipeline, {config key: value})`, a run that trains
        what the config's defaults say: all of both networks, or adapters.
      full, adapters: settings with which both networks are trained in full, or as adapters.
      network: the exported part's class in diffusers.
      client: `(pipeline, export folder) -> diffusers' pipeline with what was exported`.
      images: `(client, noise [n, h, w, c], output_type) -> images` of the first n prompts, one step.
      exported: files of an export besides weights and the network's config.
      read_by_export: files of the base that an export reads, of full training.
      parts: parts of the folder without which a run is refused.
      broken: `{tensor of the network: new name or None}`: a generator with these renamed, or cut, is refused.
      multiple: pixels that an image's sides must be multiples of.
    """

    name: str
    config: ModuleType
    backbone: type
    tiny: ModuleType
    full: Mapping[str, Any]
    adapters: Mapping[str, Any]
    network: type
    client: Callable
    images: Callable
    exported: Sequence[str]
    read_by_export: Sequence[str]
    parts: Sequence[str]
    broken: Mapping[str, str | None]
    multiple: int


def _sdxl_client(pipeline, folder):
    return diffusers.StableDiffusionXLPipeline.from_pipe(
        pipeline, unet=diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet"),
        scheduler=diffusers.LCMScheduler.from_pretrained(folder, subfolder="scheduler"),
    )  # fmt: skip


def _sdxl_images(client, noise, kind):
    return client(
        tiny_sdxl.PROMPTS[: len(noise)], height=tiny_sdxl.HEIGHT, width=tiny_sdxl.WIDTH, num_inference_steps=1, guidance_scale=0.0,
        latents=nchw(noise), output_type=kind,
    ).images  # fmt: skip


def _zimage_client(pipeline, folder):
    return diffusers.ZImagePipeline.from_pipe(
        pipeline, transformer=diffusers.ZImageTransformer2DModel.from_pretrained(folder, subfolder="transformer"),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler"),
    )  # fmt: skip


def _zimage_images(client, noise, kind):
    return client(
        tiny_zimage.PROMPTS[: len(noise)], tiny_zimage.HEIGHT, tiny_zimage.WIDTH, 1, guidance_scale=0.0, latents=nchw(noise),
        output_type=kind, max_sequence_length=tiny_zimage.MAX_LENGTH,
    ).images  # fmt: skip


ROWS = {
    "sdxl": Row(
        name="sdxl",
        config=sdxl,
        backbone=StableDiffusion,
        tiny=tiny_sdxl,
        full={},
        adapters={"network.generator": "lora", "network.ta": "lora", "lora.rank": 2, "lora.alpha": 4.0},
        network=diffusers.UNet2DConditionModel,
        client=_sdxl_client,
        images=_sdxl_images,
        exported=("scheduler/scheduler_config.json", "README.md"),
        read_by_export=("model_index.json", "scheduler/scheduler_config.json", "unet/config.json"),
        parts=("unet/config.json", "vae", "text_encoder_2", "tokenizer"),
        broken={
            "conv_in.bias": "time_embedding.extra.weight",
            "conv_out.weight": None,
            "add_embedding.linear_1.weight": None,
        },
        multiple=2,
    ),
    "zimage": Row(
        name="zimage",
        config=zimage,
        backbone=ZImage,
        tiny=tiny_zimage,
        full={"network.generator": "full", "network.ta": "full", "align.generator_optimizer.lr": 1e-3},
        adapters={},
        network=diffusers.ZImageTransformer2DModel,
        client=_zimage_client,
        images=_zimage_images,
        exported=("scheduler/scheduler_config.json", "README.md"),
        read_by_export=("model_index.json", "scheduler/scheduler_config.json", "transformer/config.json"),
        parts=("transformer/config.json", "vae", "text_encoder", "tokenizer", "scheduler"),
        broken={"x_pad_token": "t_embedder.extra.weight", "layers.1.attention.to_q.weight": None},
        multiple=4,
    ),
}  # fmt: skip
