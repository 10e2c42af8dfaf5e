"""The scale of a LoRA file, wherever its dialect keeps it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from didr_jax import lora
from didr_jax.types import InputError
from didr_jax.weights import lora_files
from didr_jax.weights.files import read_tensors, write_safetensors
from didr_jax.weights.rules import layer

BASE = {name: {"kernel": jax.ShapeDtypeStruct((6, 4), jnp.float32)} for name in ("in", "out")}
TABLE = layer("(in|out)", "{}")
RANK, ALPHA = 2, 4.0  # of the run that reads


def factors(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"lora_A": (RANK, 6), "lora_B": (4, RANK)}
    return {f"unet.{name}.{part}.weight": np.float32(rng.normal(size=shape))
            for name in ("in", "out") for part, shape in shapes.items()}  # fmt: skip


def write(path, metadata=None, **alphas):
    """The factors as a file, with alphas as tensors and text in the header."""
    tensors = factors() | {f"unet.{name}.alpha": np.asarray(value, np.float32) for name, value in alphas.items()}
    write_safetensors(path, tensors)
    if metadata is not None:
        raw = path.read_bytes()
        size = int.from_bytes(raw[:8], "little")
        head = json.dumps(json.loads(raw[8 : 8 + size]) | {"__metadata__": metadata}).encode()
        head += b" " * (-len(head) % 8)
        path.write_bytes(len(head).to_bytes(8, "little") + head + raw[8 + size :])
    return path


def scales(path) -> dict[str, float]:
    """How many times B·A the kernels change when the adapters are merged, by layer."""
    read = lora_files.saved(path, BASE, ALPHA, [TABLE], prefix="unet").load()
    merged = lora.merge({name: {"kernel": np.zeros((6, 4), np.float32)} for name in BASE}, read, ALPHA)
    found, file = {}, factors()
    for name in BASE:
        plain = (file[f"unet.{name}.lora_B.weight"] @ file[f"unet.{name}.lora_A.weight"]).T
        ratio = np.asarray(merged[name]["kernel"]) / plain
        np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-4)
        found[name] = float(ratio[0, 0])
    return found


def diffusers_metadata(**config):
    return {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in config.items()})}


@pytest.mark.parametrize(
    "metadata, alphas, inner, outer",
    [
        (None, {}, 1, 1),
        ({"format": "pt"}, {}, 1, 1),
        (diffusers_metadata(r=2, lora_alpha=0.5), {}, 0.25, 0.25),
        (diffusers_metadata(r=2, lora_alpha=4), {}, 2, 2),
        (diffusers_metadata(r=2, lora_alpha=2, alpha_pattern={"out": 6}), {}, 1, 3),
        (diffusers_metadata(r=2, lora_alpha=4, use_rslora=True), {}, 4 / 2**0.5, 4 / 2**0.5),
        (diffusers_metadata(r=2), {}, 4, 4),  # peft's default alpha is 8
        ({"lora_adapter_metadata": json.dumps({"r": 2, "lora_alpha": 6})}, {}, 3, 3),  # of a model saved alone
        ({"ss_network_dim": "2", "ss_network_alpha": "1"}, {}, 0.5, 0.5),
        ({"lora_alpha": "1.0"}, {}, 0.5, 0.5),
        (None, {"in": 1.0, "out": [6.0]}, 0.5, 3),
        ({"ss_network_alpha": "8"}, {"in": 1.0, "out": 2.0}, 0.5, 1),  # tensors are nearer to the layer
    ],
)
def test_an_update_is_scaled_by_the_files_own_alpha(metadata, alphas, inner, outer, tmp_path):
    found = scales(write(tmp_path / "adapter.safetensors", metadata, **alphas))
    assert found == pytest.approx({"in": inner, "out": outer}, rel=1e-5)


def test_pefts_folder_says_it_in_a_file_beside(tmp_path):
    path = write(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 1, "alpha_pattern": {}}), "utf-8-sig")
    assert scales(path) == pytest.approx({"in": 0.5, "out": 0.5}, rel=1e-5)
    other = write(tmp_path / "another.safetensors")  # is not what the config beside is about
    assert scales(other) == pytest.approx({"in": 1, "out": 1}, rel=1e-5)


def test_what_save_wrote_is_not_touched(tmp_path):
    adapters = {
        name: {"lora_a": np.ones((6, RANK), np.float32), "lora_b": np.full((RANK, 4), 1 / 3, np.float32)} for name in BASE
    }
    lora_files.save(tmp_path / "a.safetensors", adapters, ALPHA, TABLE, prefix="unet")
    read = lora_files.saved(tmp_path / "a.safetensors", BASE, ALPHA, [TABLE], prefix="unet").load()
    jax.tree.map(np.testing.assert_array_equal, read, adapters)
    assert len(read_tensors(tmp_path / "a.safetensors")) == 4


@pytest.mark.parametrize(
    "metadata, alphas, message",
    [
        (diffusers_metadata(lora_alpha="much"), {}, "lora_alpha = 'much' is no positive number"),
        (diffusers_metadata(lora_alpha=4, use_dora=True), {}, "says use_dora, which is no plain LoRA"),
        ({"lora_adapter_metadata": "{"}, {}, "lora_adapter_metadata cannot be read"),
        ({"lora_adapter_metadata": "[1]"}, {}, "is no table of settings"),
        ({"ss_network_alpha": "None"}, {}, "ss_network_alpha = 'None' is no positive number"),
        (None, {"in": np.nan}, "unet.in.alpha = .* is no positive number"),
        (None, {"in": [1.0, 2.0]}, "unet.in.alpha = .* is no positive number"),
        (None, {"mid": 1.0}, "holds unet.mid.alpha; expected are unet.LAYER.lora_A.weight"),
    ],
)
def test_a_scale_that_cannot_be_known_is_refused_in_one_line(metadata, alphas, message, tmp_path):
    with pytest.raises(InputError, match=message) as refused:
        scales(write(tmp_path / "adapter.safetensors", metadata, **alphas))
    assert "\n" not in str(refused.value)
