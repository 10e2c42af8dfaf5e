"""Files of adapters in every dialect are the same adapters; what is none of them is refused by name."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from didr_jax import lora
from didr_jax.models.unet_config import UNetConfig
from didr_jax.types import InputError
from didr_jax.weights import lora_files
from didr_jax.weights.engine import to_torch
from didr_jax.weights.files import write_safetensors
from didr_jax.weights.ldm import ldm_unet_table
from didr_jax.weights.unet import unet_table
from didr_jax.weights.zimage import zimage_single_table, zimage_table
from tests.test_lora import CONFIG as ZIMAGE

ALPHA = 4.0  # of the run that reads
UNET = UNetConfig.from_json(
    dict(
        block_out_channels=(8, 8), layers_per_block=1, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 3), attention_head_dim=(2, 2),
        cross_attention_dim=12, norm_num_groups=4,
    )
)  # fmt: skip


def _dense(place, layers, inside, out, stack):
    return {f"{place}/{layer}/kernel": jax.ShapeDtypeStruct((*stack, inside, out), jnp.float32) for layer in layers}


UNET_SHAPES = _dense("down_blocks_1/attentions_0/transformer_blocks/attn2", ["to_q", "to_out"], 8, 8, (3,)) | _dense(
    "down_blocks_1/attentions_0", ["proj_in"], 8, 8, ()
)
UNET_SHAPES |= {"down_blocks_1/resnets_0/conv1/kernel": jax.ShapeDtypeStruct((3, 3, 8, 8), jnp.float32)}
ZIMAGE_SHAPES = _dense("layers/attention", ["to_q", "to_k", "to_v", "to_out"], 24, 24, (3,))
TABLES = {"unet": (unet_table(UNET), ldm_unet_table(UNET)), "transformer": (zimage_table(ZIMAGE), zimage_single_table(ZIMAGE))}


def _nested(shapes):
    tree: dict = {}
    for path, leaf in shapes.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


BASES = {"unet": _nested(UNET_SHAPES), "transformer": _nested(ZIMAGE_SHAPES)}
PLACE = "down_blocks.1.attentions.0"
RNG = np.random.default_rng(0)
Q = [(RNG.normal(size=(2, 8)), RNG.normal(size=(8, 2))) for _ in range(3)]  # (down, up) of attn2.to_q in three blocks


def kernel_update(path, part="unet"):
    """What the adapters of a file add to every kernel, by diffusers' names."""
    base = BASES[part]
    read = lora_files.saved(path, base, ALPHA, TABLES[part], prefix=part)
    adapters = read.load()
    assert jax.tree.map(lambda a: a.shape, read.shapes) == jax.tree.map(jnp.shape, adapters)
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), base)
    merged = to_torch(lora.merge(zeros, adapters, ALPHA), TABLES[part][0])
    return {name.removesuffix(".weight"): np.asarray(t) for name, t in merged.items() if np.any(np.asarray(t))}


def write(path, tensors, metadata=None):
    write_safetensors(path, {k: np.asarray(v, np.float32) for k, v in tensors.items()}, metadata=metadata)
    return path


FORMS = {
    "diffusers": ("unet.{}", "lora_A.weight", "lora_B.weight"),
    "diffusers before peft": ("unet.{}", "lora.down.weight", "lora.up.weight"),
    "peft": ("base_model.model.{}", "lora_A.weight", "lora_B.weight"),
    "peft, named": ("base_model.model.{}", "lora_A.default.weight", "lora_B.default.weight"),
    "comfyui": ("diffusion_model.{}", "lora_A.weight", "lora_B.weight"),
    "bare": ("{}", "lora_down.weight", "lora_up.weight"),
}


def named(form, factors=Q, places=None):
    start, down, up = FORMS[form]
    layers = places or [f"{PLACE}.transformer_blocks.{i}.attn2.to_q" for i in range(3)]
    return {
        f"{start.format(layer)}.{kind}": factor
        for layer, pair in zip(layers, factors, strict=False)
        for kind, factor in zip((down, up), pair, strict=True)
    }


def test_all_dialects_say_the_same(tmp_path):
    want = {f"{PLACE}.transformer_blocks.{i}.attn2.to_q": up @ down for i, (down, up) in enumerate(Q)}
    files = {form: named(form) for form in FORMS}
    for name, place in (("kohya", PLACE), ("kohya's SDXL", "input_blocks.3.1")):
        stems = [f"lora_unet_{place.replace('.', '_')}_transformer_blocks_{i}_attn2_to_q" for i in range(3)]
        files[name] = {f"{s}.{k}": f for s, pair in zip(stems, Q, strict=True) for k, f in zip(("lora_down.weight", "lora_up.weight"), pair, strict=True)}  # fmt: skip
        files[name] |= {f"{stem}.alpha": 2.0 for stem in stems}
    files["processors"] = {
        f"unet.{PLACE}.transformer_blocks.{i}.attn2.processor.to_q_lora.{kind}.weight": factor
        for i, pair in enumerate(Q)
        for kind, factor in zip(("down", "up"), pair, strict=True)
    }
    for form, tensors in files.items():
        found = kernel_update(write(tmp_path / "a.safetensors", tensors))
        assert found.keys() == want.keys(), form
        for layer, update in want.items():
            np.testing.assert_allclose(found[layer], update, rtol=1e-5, atol=1e-6, err_msg=form)


def test_ranks_may_differ_and_layers_may_lack(tmp_path):
    """Of three scanned layers two have adapters, of two ranks; what is fresh adds nothing and can still learn."""
    wide = (RNG.normal(size=(5, 8)), RNG.normal(size=(8, 5)))
    file = named("diffusers", [wide, Q[1]], [f"{PLACE}.transformer_blocks.{i}.attn2.to_q" for i in (0, 2)])
    path = write(tmp_path / "a.safetensors", file, {"ss_network_alpha": "3"})
    found = kernel_update(path)
    assert len(found) == 2
    np.testing.assert_allclose(found[f"{PLACE}.transformer_blocks.0.attn2.to_q"], 3 / 5 * wide[1] @ wide[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[f"{PLACE}.transformer_blocks.2.attn2.to_q"], 3 / 2 * Q[1][1] @ Q[1][0], rtol=1e-5, atol=1e-6)
    flat = flatten_dict(lora_files.saved(path, BASES["unet"], ALPHA, TABLES["unet"], prefix="unet").load(), sep="/")
    a = next(leaf for name, leaf in flat.items() if name.endswith("lora_a"))
    assert a.shape == (3, 8, 5) and np.all(np.abs(a[1]).max(0) > 0)


def test_a_1x1_convolution_may_have_four_axes(tmp_path):
    down, up = Q[0]
    for shape in ((lambda w: w), (lambda w: w[:, :, None, None])):
        file = named("bare", [(shape(down), shape(up))], [f"{PLACE}.proj_in"])
        found = kernel_update(write(tmp_path / "a.safetensors", file))[f"{PLACE}.proj_in"]
        np.testing.assert_allclose(found.reshape(8, 8), up @ down, rtol=1e-5, atol=1e-6)


def test_a_fused_layers_adapter_is_one_of_each(tmp_path):
    down, up = RNG.normal(size=(2, 24)), RNG.normal(size=(72, 2))
    file = {
        "diffusion_model.layers.1.attention.qkv.lora_A.weight": down,
        "diffusion_model.layers.1.attention.qkv.lora_B.weight": up,
    }
    file |= {
        "diffusion_model.layers.0.attention.out.lora_A.weight": down,
        "diffusion_model.layers.0.attention.out.lora_B.weight": up[:24],
    }
    found = kernel_update(write(tmp_path / "a.safetensors", file), "transformer")
    whole = np.concatenate([found[f"layers.1.attention.to_{letter}"] for letter in "qkv"])
    np.testing.assert_allclose(whole, up @ down, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["layers.0.attention.to_out.0"], up[:24] @ down, rtol=1e-5, atol=1e-5)


def test_a_folder_of_peft_or_diffusers(tmp_path):
    write(tmp_path / "pytorch_lora_weights.safetensors", named("diffusers"))
    assert len(kernel_update(tmp_path)) == 3
    (tmp_path / "pytorch_lora_weights.safetensors").rename(tmp_path / "adapter_model.safetensors")
    with pytest.raises(InputError, match="no adapter_config.json beside it, which is where peft keeps alpha"):
        kernel_update(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 1}))
    half = kernel_update(tmp_path)[f"{PLACE}.transformer_blocks.0.attn2.to_q"]
    np.testing.assert_allclose(half, Q[0][1] @ Q[0][0] / 2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("part, dialect", [("unet", "diffusers"), ("unet", "kohya"), ("transformer", "comfyui")])
def test_what_is_written_comes_back(part, dialect, tmp_path):
    shapes = {k: v for k, v in (UNET_SHAPES if part == "unet" else ZIMAGE_SHAPES).items() if len(v.shape) < 4}
    fresh = lora.init(jax.random.key(0), _nested(shapes), [""], rank=2)
    adapters = jax.tree.map(lambda a: jnp.asarray(RNG.normal(size=a.shape), jnp.float32), fresh)
    table = TABLES[part][dialect == "kohya"]
    lora_files.save(tmp_path / "a.safetensors", adapters, ALPHA, table, prefix=part, dialect=dialect)
    again = lora_files.saved(tmp_path / "a.safetensors", BASES[part], ALPHA, TABLES[part], prefix=part).load()
    jax.tree.map(np.testing.assert_array_equal, again, adapters)


@pytest.mark.parametrize(
    "key, message",
    [
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "adapts the text encoder .lora_te1_text"),
        ("text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight", "adapts the text encoder .text_encoder.text"),
        (f"unet.{PLACE}.proj_in.dora_scale", "dora_scale, which is no plain LoRA"),
        ("lora_unet_input_blocks_3_1_proj_in.hada_w1_a", "hada_w1_a, which is no plain LoRA"),
        ("unet.down_blocks.1.resnets.0.conv1.lora_A.weight", "adapts a convolution .unet.down_blocks.1.resnets.0.conv1"),
        ("lora_unet_input_blocks_3_0_in_layers_2.lora_down.weight", "adapts a convolution"),
        ("unet.down_blocks.7.attentions.0.proj_in.lora_A.weight", "holds unet.down_blocks.7.*expected are unet.LAYER"),
        ("transformer.layers.0.attention.to_q.lora_A.weight", "expected are unet.LAYER"),
        (f"{PLACE}.transformer_blocks.0.attn2.to_q.lora_down.weight", "twice"),
    ],
)
def test_what_is_no_adapter_of_the_network_is_refused_by_name(key, message, tmp_path):
    path = write(tmp_path / "a.safetensors", named("diffusers") | {key: np.ones((2, 8))})
    with pytest.raises(InputError, match=message) as refused:
        kernel_update(path)
    assert "\n" not in str(refused.value)
