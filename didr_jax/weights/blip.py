"""ImageReward's checkpoint (`ImageReward.pt`) and the heads that it and the aesthetic predictor share."""

import os
from typing import Any

import jax
import jax.numpy as jnp

from didr_jax.models.blip import VIT_L_16, BertConfig, ImageReward, LinearHead
from didr_jax.models.clip import VisionConfig
from didr_jax.types import PyTree, Weights
from didr_jax.weights.clip import LAYER, fused
from didr_jax.weights.engine import unfilled, weights_of
from didr_jax.weights.files import read_tensors
from didr_jax.weights.rules import Rule, embedding, ignore, layer, norm

# The dense layers among the dropouts of an nn.Sequential.
_DENSE = (0, 2, 4, 6, 7)


def _head(name: str, path: str) -> list[Rule]:
    return [rule for i, k in enumerate(_DENSE) for rule in layer(f"{name}layers.{k}", f"{path}dense_{i}")]


def _vision(name: str, path: str) -> list[Rule]:
    block, blocks = rf"{name}blocks.{LAYER}", f"{path}encoder/layers"
    return [
        Rule(f"{name}cls_token", f"{path}class_embed", "squeeze"),
        Rule(f"{name}pos_embed", f"{path}pos_embed", "squeeze"),
        *layer(f"{name}patch_embed.proj", f"{path}patch_embed"),
        *fused(f"{block}.attn.qkv.weight", f"{blocks}/attn/{{}}/kernel", "kernel"),
        *fused(f"{block}.attn.qkv.bias", f"{blocks}/attn/{{}}/bias"),
        *layer(f"{block}.attn.proj", f"{blocks}/attn/out"),
        *layer(f"{block}.mlp.(fc1|fc2)", f"{blocks}/mlp/{{}}"),
        *norm(f"{block}.norm(1|2)", f"{blocks}/norm{{}}"),
        *norm(f"{name}norm", f"{path}norm"),
    ]


def _text(name: str, path: str) -> list[Rule]:
    block = rf"{name}encoder.layer.{LAYER}"
    attention = [
        rule
        for torch_name, ours in (("attention", "attn"), ("crossattention", "cross"))
        for rule in (
            *layer(f"{block}.{torch_name}.self.query", f"{path}layers/{ours}/q"),
            *layer(f"{block}.{torch_name}.self.key", f"{path}layers/{ours}/k"),
            *layer(f"{block}.{torch_name}.self.value", f"{path}layers/{ours}/v"),
            *layer(f"{block}.{torch_name}.output.dense", f"{path}layers/{ours}/out"),
            *norm(f"{block}.{torch_name}.output.LayerNorm", f"{path}layers/{ours}_norm"),
        )
    ]
    return [
        *embedding(f"{name}embeddings.word_embeddings", f"{path}token_embed"),
        Rule(f"{name}embeddings.position_embeddings.weight", f"{path}pos_embed"),
        *norm(f"{name}embeddings.LayerNorm", f"{path}embed_norm"),
        *attention,
        *layer(f"{block}.intermediate.dense", f"{path}layers/mlp/fc1"),
        *layer(f"{block}.output.dense", f"{path}layers/mlp/fc2"),
        *norm(f"{block}.output.LayerNorm", f"{path}layers/mlp_norm"),
        *ignore(f"{name}embeddings.position_ids"),
    ]


IMAGEREWARD = [
    *_vision("blip.visual_encoder.", "vision/"),
    *_text("blip.text_encoder.", "text/"),
    *_head("mlp.", "head/"),
    *ignore(r"blip.(vision_proj|text_proj|itm_head)(\..*)"),  # BLIP's pretraining heads
]
AESTHETIC = _head("", "")


def imagereward_shapes(vision: VisionConfig, text: BertConfig, param_dtype: Any = jnp.float32) -> PyTree:
    """Shapes of `ImageReward`'s parameters, nothing allocated."""
    size, tokens = (1, vision.image_size, vision.image_size, 3), jnp.zeros((1, 1), jnp.int32)
    model = ImageReward(vision, text, param_dtype=param_dtype)
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(size), tokens, tokens > 0)["params"]


def load_imagereward(
    path: str | os.PathLike | None,
    vision: VisionConfig = VIT_L_16,
    text: BertConfig = BertConfig(),
    *,
    dtype: Any = jnp.float32,
) -> Weights:
    """`ImageReward.pt` or its tensors as safetensors -> parameters of `models.blip.ImageReward`.

    `dtype`: of the towers' parameters, the head's stay float32.  `path` None, for plans: shapes.
    """
    return _weights(path, IMAGEREWARD, imagereward_shapes(vision, text, dtype))


def load_aesthetic_head(path: str | os.PathLike | None, embed: int = 768) -> Weights:
    """`sac+logos+ava1-l14-linearMSE.pth` or its tensors as safetensors -> parameters of `models.blip.LinearHead`."""
    shapes = jax.eval_shape(LinearHead().init, jax.random.key(0), jnp.zeros((1, embed)))["params"]
    return _weights(path, AESTHETIC, shapes)


def _weights(path: str | os.PathLike | None, table: list[Rule], shapes: PyTree) -> Weights:
    return unfilled(shapes) if path is None else weights_of(lambda: read_tensors(path), table, shapes, where=str(path))
