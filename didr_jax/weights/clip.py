"""CLIP checkpoints: Hugging Face folders (CLIP, PickScore, SD text encoders) and open_clip files (HPSv2.1).

The loaders read `config.json` and names of tensors; the tensors are read where their `Weights` are loaded.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from didr_jax.json_files import read_object
from didr_jax.models.clip import TextConfig, TextTower, VisionConfig, VisionTower, architecture
from didr_jax.models.config import building, require_sane
from didr_jax.types import InputError, PyTree, Weights
from didr_jax.weights.engine import unfilled, weights_of
from didr_jax.weights.files import Tensors, read_tensors
from didr_jax.weights.rules import Rule, embedding, ignore, layer, norm

Configs = tuple[VisionConfig, TextConfig]

LAYER = r"(?P<layer>\d+)"


def fused(name: str, target: str, layout: str = "as_is") -> list[Rule]:
    """A torch tensor that holds q, k and v one after another; `target` has a `{}` for their letter."""
    return [Rule(name, target.format(part), layout, part=(i, 3)) for i, part in enumerate("qkv")]


def _hf_layers(name: str, path: str) -> list[Rule]:
    return [
        *layer(rf"{name}encoder.layers.{LAYER}.self_attn.(q|k|v|out)_proj", f"{path}encoder/layers/attn/{{}}"),
        *layer(rf"{name}encoder.layers.{LAYER}.mlp.(fc1|fc2)", f"{path}encoder/layers/mlp/{{}}"),
        *norm(rf"{name}encoder.layers.{LAYER}.layer_norm(1|2)", f"{path}encoder/layers/norm{{}}"),
        *ignore(rf"{name}embeddings.position_ids"),
    ]


def _hf_vision(path: str) -> list[Rule]:
    return [
        Rule("vision_model.embeddings.class_embedding", f"{path}class_embed"),
        Rule("vision_model.embeddings.position_embedding.weight", f"{path}pos_embed"),
        *layer("vision_model.embeddings.patch_embedding", f"{path}patch_embed"),
        *norm("vision_model.pre_layrnorm", f"{path}pre_norm"),
        *_hf_layers("vision_model.", path),
        *norm("vision_model.post_layernorm", f"{path}post_norm"),
        *layer("visual_projection", f"{path}proj"),
    ]


def _hf_text(path: str, name: str = "text_model.") -> list[Rule]:
    return [
        *embedding(f"{name}embeddings.token_embedding", f"{path}token_embed"),
        Rule(f"{name}embeddings.position_embedding.weight", f"{path}pos_embed"),
        *_hf_layers(name, path),
        *norm(f"{name}final_layer_norm", f"{path}final_norm"),
    ]


def _open_clip_layers(name: str, path: str) -> list[Rule]:
    block, path = rf"{name}transformer.resblocks.{LAYER}", f"{path}encoder/layers"
    return [
        *fused(f"{block}.attn.in_proj_weight", f"{path}/attn/{{}}/kernel", "kernel"),
        *fused(f"{block}.attn.in_proj_bias", f"{path}/attn/{{}}/bias"),
        *layer(f"{block}.attn.out_proj", f"{path}/attn/out"),
        *layer(f"{block}.mlp.c_fc", f"{path}/mlp/fc1"),
        *layer(f"{block}.mlp.c_proj", f"{path}/mlp/fc2"),
        *norm(f"{block}.ln_(1|2)", f"{path}/norm{{}}"),
    ]


def _open_clip_vision(path: str) -> list[Rule]:
    return [
        Rule("visual.class_embedding", f"{path}class_embed"),
        Rule("visual.positional_embedding", f"{path}pos_embed"),
        *layer("visual.conv1", f"{path}patch_embed"),
        *norm("visual.ln_pre", f"{path}pre_norm"),
        *_open_clip_layers("visual.", path),
        *norm("visual.ln_post", f"{path}post_norm"),
        Rule("visual.proj", f"{path}proj/kernel"),  # applied from the right: already [in, out]
    ]


def _open_clip_text(path: str) -> list[Rule]:
    return [
        *embedding("token_embedding", f"{path}token_embed"),
        Rule("positional_embedding", f"{path}pos_embed"),
        *_open_clip_layers("", path),
        *norm("ln_final", f"{path}final_norm"),
        Rule("text_projection", f"{path}proj/kernel"),
        *ignore("(attn_mask|input_resolution|context_length|vocab_size)"),
    ]


# A text encoder of a diffusion pipeline.  transformers 5 writes CLIPTextModel without the `text_model.` prefix.
TEXT = [*_hf_text(""), *_hf_text("", name=""), *layer("text_projection", "proj")]
OPEN_CLIP_TEXT = [*_open_clip_text(""), *ignore("logit_scale")]
# A whole CLIP, parameters {"vision", "text", "logit_scale"}; and the image tower alone, out of the same files.
HF = [*_hf_vision("vision/"), *_hf_text("text/"), *layer("text_projection", "text/proj"),
      Rule("logit_scale", "logit_scale")]  # fmt: skip
OPEN_CLIP = [*_open_clip_vision("vision/"), *_open_clip_text("text/"), Rule("logit_scale", "logit_scale")]
HF_VISION = [
    *_hf_vision(""),
    *ignore(r"(text_model\..*|text_projection\.weight|logit_scale)"),
    *ignore("vision_model.embeddings.position_ids"),
]
OPEN_CLIP_VISION = [
    *_open_clip_vision(""),
    *ignore(r"(token_embedding\..*|positional_embedding|transformer\..*|ln_final\..*|text_projection|logit_scale)"),
    *ignore("(attn_mask|input_resolution|context_length|vocab_size)"),
]


SIZES = ("hidden_size", "num_attention_heads", "intermediate_size", "projection_dim")
DEPTHS, NUMBERS = ("num_hidden_layers",), ("layer_norm_eps",)


def hf_vision_config(c: Any, embed: int | None) -> VisionConfig:
    """`VisionConfig` of a transformers `CLIPVisionConfig`; `InputError` for what the tower does not do."""
    require_sane(vars(c), "CLIP", sizes=(*SIZES, "patch_size", "image_size"), depths=DEPTHS, numbers=NUMBERS)
    if c.num_channels != 3:
        raise InputError(f"CLIP config: num_channels={c.num_channels} is not supported; 3 is")
    return VisionConfig(
        c.hidden_size,
        c.num_hidden_layers,
        c.num_attention_heads,
        c.intermediate_size,
        c.patch_size,
        c.image_size,
        embed,
        c.hidden_act,
        c.layer_norm_eps,
    )


def hf_text_config(c: Any, embed: int | None) -> TextConfig:
    """`TextConfig` of a transformers `CLIPTextConfig`; `InputError` for odd values."""
    require_sane(vars(c), "CLIP", sizes=(*SIZES, "vocab_size", "max_position_embeddings"), depths=DEPTHS, numbers=NUMBERS)
    return TextConfig(
        c.hidden_size,
        c.num_hidden_layers,
        c.num_attention_heads,
        c.intermediate_size,
        c.vocab_size,
        c.max_position_embeddings,
        embed,
        c.hidden_act,
        c.layer_norm_eps,
        eos=None if c.eos_token_id == 2 else c.eos_token_id,
    )


KINDS = ("clip", "clip_text_model", "clip_vision_model")  # what transformers calls a CLIP and its halves


def vision_shapes(config: VisionConfig, param_dtype: Any = jnp.float32) -> PyTree:
    """Shapes of a `VisionTower`'s parameters, nothing allocated."""
    pixels = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    with building("CLIP"):
        return jax.eval_shape(VisionTower(config, param_dtype=param_dtype).init, jax.random.key(0), pixels)["params"]


def text_shapes(config: TextConfig, param_dtype: Any = jnp.float32) -> PyTree:
    """Shapes of a `TextTower`'s parameters."""
    ids = jax.ShapeDtypeStruct((1, config.positions), jnp.int32)
    with building("CLIP"):
        return jax.eval_shape(TextTower(config, param_dtype=param_dtype).init, jax.random.key(0), ids)["params"]


def clip_shapes(vision: VisionConfig, text: TextConfig, param_dtype: Any = jnp.float32) -> PyTree:
    """Shapes of a whole CLIP: {"vision", "text", "logit_scale"}."""
    return {
        "vision": vision_shapes(vision, param_dtype),
        "text": text_shapes(text, param_dtype),
        "logit_scale": jax.ShapeDtypeStruct((), jnp.float32),
    }


def load_text(
    folder: str | os.PathLike, open_tensors: Callable[[], Tensors] | None = None, *, dtype: Any = jnp.float32
) -> tuple[TextConfig, Weights]:
    """A pipeline's `text_encoder` or `text_encoder_2` folder -> (config, parameters of a `TextTower` in `dtype`).

    `open_tensors`: where the tensors are not in the folder but in a whole checkpoint, by the names of Hugging Face or of
    open_clip.  The tower projects if there is a projection.

    Raises:
      InputError: files that cannot be read, or a `CLIPTextModelWithProjection` without one.
    """
    from transformers import CLIPTextConfig

    open_tensors = open_tensors or functools.partial(read_tensors, folder)
    names = open_tensors().keys()
    table = OPEN_CLIP_TEXT if "positional_embedding" in names else TEXT
    projected = bool(names & {"text_projection.weight", "text_projection"})
    config = _hf_config(CLIPTextConfig, folder)
    if not projected and "CLIPTextModelWithProjection" in (config.architectures or ()):
        raise InputError(f"{folder} is a CLIPTextModelWithProjection and has no text_projection.weight; fetch it again")
    config = hf_text_config(config, config.projection_dim if projected else None)
    return config, weights_of(open_tensors, table, text_shapes(config, dtype), where=str(folder))


def load_clip(
    path: str | os.PathLike | None, arch: str | Configs | None = None, *, dtype: Any = jnp.float32
) -> tuple[Configs, Weights]:
    """A whole CLIP -> ((image, text) configuration, {"vision", "text", "logit_scale"} in `dtype`).

    `path`: a Hugging Face folder, or an open_clip file or folder; the names in the file tell which.  `arch`: the
    architecture of an open_clip file, by name or as configurations; a Hugging Face folder says it itself.  The logit
    scale stays float32 whatever `dtype`: rounded to bfloat16, it would shift PickScore by 1 %.  `path` None, for plans:
    the shapes of `arch`.
    """
    configs, weights = _told_apart(path, arch, HF, OPEN_CLIP)
    return configs, weights(clip_shapes(*configs, dtype))


def load_clip_apart(
    path: str | os.PathLike | None, arch: str | Configs | None = None, *, dtype: Any = jnp.float32
) -> tuple[Weights, Weights]:
    """As `load_clip`, in two: {"vision", "logit_scale"}, and {"text"}."""
    return _part(path, arch, dtype, ("vision", "logit_scale")), _part(path, arch, dtype, ("text",))


def _part(path, arch, dtype: Any, heads: Sequence[str]) -> Weights:
    def only(table: list[Rule]) -> list[Rule]:
        kept = lambda rule: rule.target is not None and rule.target.split("/")[0] in heads
        return [rule if kept(rule) else dataclasses.replace(rule, target=None) for rule in table]

    configs, weights = _told_apart(path, arch, only(HF), only(OPEN_CLIP))
    shapes = clip_shapes(*configs, dtype)
    return weights({head: shapes[head] for head in heads})


def load_vision(
    path: str | os.PathLike | None, arch: str | Configs | None = None, *, dtype: Any = jnp.float32
) -> tuple[VisionConfig, Weights]:
    """As `load_clip`, the image tower alone."""
    configs, weights = _told_apart(path, arch, HF_VISION, OPEN_CLIP_VISION)
    return configs[0], weights(vision_shapes(configs[0], dtype))


def _told_apart(path, arch, hf: list[Rule], open_clip: list[Rule]) -> tuple[Configs, Callable[[PyTree], Weights]]:
    """The configurations of the CLIP at `path`, and what makes weights of shapes."""
    given = architecture(arch) if isinstance(arch, str) else arch
    if path is None:
        if given is None:
            raise LookupError("a CLIP without a file needs its architecture")
        return given, unfilled

    def open_tensors() -> Tensors:
        return {name.removeprefix("module."): tensor for name, tensor in read_tensors(path).items()}

    if "visual.conv1.weight" in open_tensors():
        if given is None:
            raise InputError(f"{path} has open_clip names, which do not say the architecture; give arch")
        return given, lambda shapes: weights_of(open_tensors, open_clip, shapes, where=str(path))
    configs = _hf_configs(path) if arch is None or isinstance(arch, str) else arch
    return configs, lambda shapes: weights_of(open_tensors, hf, shapes, where=str(path))


def _hf_configs(path: str | os.PathLike) -> Configs:
    from transformers import CLIPConfig

    config = _hf_config(CLIPConfig, path if Path(path).is_dir() else Path(path).parent)
    width = config.projection_dim
    return hf_vision_config(config.vision_config, width), hf_text_config(config.text_config, width)


def _hf_config(kind: Any, folder: str | os.PathLike) -> Any:
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise InputError(f"{folder} has no config.json; give a Hugging Face CLIP folder or an open_clip file")
    said = read_object(path).get("model_type", kind.model_type)
    if said not in KINDS:
        raise InputError(f"{path} is not a CLIP's: it is of a model of type {said!r}; give the folder that came with the CLIP")
    try:
        return kind.from_pretrained(folder)
    except Exception as error:  # transformers has its own for every kind of odd value
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"{path} is not a CLIP's ({reason}); fetch it again") from error
