"""The weight engine and its files: exact both ways, one error for everything that does not fit."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from didr_jax.types import InputError
from didr_jax.weights.engine import to_flax, to_torch, unfilled, weights_of
from didr_jax.weights.files import read_tensors, require_variant, write_safetensors
from didr_jax.weights.rules import Rule, embedding, ignore, layer, norm

TABLE = [
    *layer(r"down.(\d+).(conv1|conv2)", "down_{}/{}"),
    *layer(r"blocks.(?P<layer>\d+).(mlp|out.0)", "blocks/{}"),
    *norm(r"blocks.(?P<layer>\d+).norm", "blocks/norm"),
    *[Rule("qkv.weight", f"{n}/kernel", "kernel", (i, 3)) for i, n in enumerate("qkv")],
    *layer("skip", "skip", layout="conv_1x1"),
    *layer("old_skip", "skip", layout="conv_1x1"),
    *embedding("tokens", "tokens"),
    Rule("pos", "pos", "squeeze"),
    Rule("scale", "logit_scale"),
    *ignore(r"(.+)_ids"),
]


def torch_state(dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = {
        "down.0.conv1.weight": (4, 3, 3, 2), "down.0.conv1.bias": (4,), "down.11.conv2.weight": (2, 4, 1, 1),
        "qkv.weight": (6, 5), "skip.weight": (3, 4, 1, 1), "tokens.weight": (7, 4), "pos": (1, 9, 4), "scale": (),
    }  # fmt: skip
    for i in range(12):  # two digits: the layers must come in numerical, not alphabetical, order
        shapes |= {f"blocks.{i}.mlp.weight": (3, 2), f"blocks.{i}.out.0.bias": (5,), f"blocks.{i}.norm.weight": (2,)}
    return {k: rng.normal(size=s).astype(dtype) for k, s in shapes.items()}


def flax_shapes(dtype=jnp.float32):
    leaf = lambda *shape: jax.ShapeDtypeStruct(shape, dtype)
    return {
        "down_0": {"conv1": {"kernel": leaf(3, 2, 3, 4), "bias": leaf(4)}},
        "down_11": {"conv2": {"kernel": leaf(1, 1, 4, 2)}},
        "blocks": {"mlp": {"kernel": leaf(12, 2, 3)}, "out.0": {"bias": leaf(12, 5)}, "norm": {"scale": leaf(12, 2)}},
        **{n: {"kernel": leaf(5, 2)} for n in "qkv"},
        "skip": {"kernel": leaf(4, 3)},
        "tokens": {"embedding": leaf(7, 4)},
        "pos": leaf(9, 4),
        "logit_scale": leaf(),
    }


def assert_same(got, want):
    assert set(got) == set(want)
    for name in want:
        a, b = np.asarray(got[name]), np.asarray(want[name])
        assert a.shape == b.shape and a.dtype == b.dtype, name
        np.testing.assert_array_equal(a.view(np.uint8) if a.ndim else a, b.view(np.uint8) if b.ndim else b, name)


def test_layouts_and_exact_round_trip():
    state = torch_state()
    params = to_flax(state, TABLE, flax_shapes())
    hwio = state["down.0.conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(params["down_0"]["conv1"]["kernel"], hwio)
    np.testing.assert_array_equal(params["blocks"]["mlp"]["kernel"][10], state["blocks.10.mlp.weight"].T)
    np.testing.assert_array_equal(params["k"]["kernel"], state["qkv.weight"][2:4].T)
    np.testing.assert_array_equal(params["skip"]["kernel"], state["skip.weight"][:, :, 0, 0].T)
    assert_same(to_torch(params, TABLE), state)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_narrow_types_survive_file_and_params(tmp_path, dtype):
    state = torch_state(dtype)
    write_safetensors(tmp_path / "m.safetensors", state)
    params = to_flax(read_tensors(tmp_path / "m.safetensors"), TABLE, flax_shapes())
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    assert_same(to_torch(params, TABLE, dtype=dtype), state)
    kept = to_flax(read_tensors(tmp_path / "m.safetensors"), TABLE, flax_shapes(), dtype=dtype)
    assert_same(to_torch(kept, TABLE), state)


def test_sharded_placement_equals_plain():
    mesh = jax.make_mesh((1,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    shapes = flax_shapes()
    shardings = jax.tree.map(lambda s: NamedSharding(mesh, PartitionSpec(*["fsdp"][: len(s.shape)])), shapes)
    params = to_flax(torch_state(), TABLE, shapes, shardings=shardings)
    assert params["blocks"]["mlp"]["kernel"].sharding == shardings["blocks"]["mlp"]["kernel"]
    assert_same(to_torch(params, TABLE), torch_state())


def test_everything_wrong_is_in_one_error():
    state = torch_state()
    del state["blocks.11.mlp.weight"], state["qkv.weight"]
    state |= {
        "down.0.conv1.bias": np.zeros(5, "f"),
        "skip.weight": np.zeros((3, 4), "f"),  # wrong rank for its layout
        "nobody.weight": np.zeros(1, "f"),
        "blocks.12.mlp.weight": np.zeros((3, 2), "f"),
        "position_ids": np.zeros(3, np.int64),  # on the ignore list
    }
    with pytest.raises(InputError) as e:
        to_flax(state, TABLE, flax_shapes())
    message = str(e.value)
    assert "2 missing: blocks.11.mlp.weight, qkv.weight" in message
    assert "2 unexpected: nobody.weight, blocks.12.mlp.weight" in message
    assert "2 misshapen" in message and "down.0.conv1.bias [5] for down_0/conv1/bias [4]" in message
    assert "position_ids" not in message and "\n" not in message


def test_promised_weights_are_those_that_would_be_read_at_once(tmp_path):
    """The file is opened when they are loaded, not before: what is in it then is what comes."""
    path, state = tmp_path / "m.safetensors", torch_state()
    weights = weights_of(lambda: read_tensors(path), TABLE, flax_shapes())
    write_safetensors(path, state)
    weights.check()
    assert_same(to_torch(weights.load(), TABLE), state)
    mesh = jax.make_mesh((1,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    place = NamedSharding(mesh, PartitionSpec())
    for dtype in (jnp.bfloat16, jnp.float16):
        rounded = weights.cast(dtype).load(place)
        assert {leaf.sharding for leaf in jax.tree.leaves(rounded)} == {place}
        assert_same(to_torch(rounded, TABLE), to_torch(to_flax(state, TABLE, flax_shapes(), dtype=dtype), TABLE))


def test_promised_weights_that_cannot_be_read_are_refused_by_name():
    state = torch_state()
    del state["blocks.11.mlp.weight"]
    weights = weights_of(lambda: state | {"nobody.weight": np.zeros(1)}, TABLE, flax_shapes(), where="m.safetensors")
    for use in (weights.check, weights.load):
        with pytest.raises(InputError, match="^m.safetensors: .*1 missing: blocks.11.mlp.weight; 1 unexpected: nobody.weight"):
            use()


def test_a_plan_has_shapes_and_cannot_load_them():
    weights = unfilled(flax_shapes())
    assert weights.cast(jnp.bfloat16).shapes["pos"].shape == (9, 4)
    with pytest.raises(LookupError, match="plan"):
        weights.load()


def test_older_names_are_read_and_the_first_is_written():
    state = torch_state()
    old = {("old_" + k if k.startswith("skip") else k): v for k, v in state.items()}
    assert_same(to_torch(to_flax(old, TABLE, flax_shapes()), TABLE), state)
    with pytest.raises(InputError, match="1 unexpected: old_skip.weight"):
        to_flax(state | old, TABLE, flax_shapes())


@pytest.mark.parametrize("pattern, target", [("a.+", "b"), ("a.((x|y)z)", "{}"), (r"a.(\d+)", "b"), ("a", "b_{}")])
def test_a_row_that_cannot_be_inverted_is_refused(pattern, target):
    with pytest.raises(ValueError):
        Rule(pattern, target)


def test_our_file_is_a_safetensors_file(tmp_path):
    import safetensors.numpy

    state = torch_state()
    write_safetensors(tmp_path / "ours.safetensors", state)
    assert_same(safetensors.numpy.load_file(tmp_path / "ours.safetensors"), state)
    safetensors.numpy.save_file(state, tmp_path / "theirs.safetensors")
    assert_same(read_tensors(tmp_path / "theirs.safetensors"), state)


def test_folders_variants_and_shards(tmp_path):
    state = torch_state()
    full, half = tmp_path / "full", tmp_path / "half"
    write_safetensors(full / "model.safetensors", state, max_bytes=300)
    assert len(list(full.glob("model-*-of-*.safetensors"))) > 2
    assert_same(read_tensors(full), state)
    assert_same(read_tensors(full, variant="fp16"), state)  # there is no other
    index = json.loads((full / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(v.nbytes for v in state.values())

    small = {k: v.astype(np.float16) for k, v in state.items()}
    write_safetensors(half / "diffusion_pytorch_model.fp16.safetensors", small)
    assert_same(read_tensors(half, variant="fp16"), small)
    assert_same(read_tensors(half), small)  # the only one there
    write_safetensors(half / "diffusion_pytorch_model.safetensors", state)
    assert_same(read_tensors(half), state)
    assert_same(read_tensors(half, variant="fp16"), small)

    require_variant("fp16", [full, half])  # a part that lacks it gives its plain files
    with pytest.raises(InputError, match="'fp61': no folder has files of that variant; there are fp16"):
        require_variant("fp61", [full, half])

    next(full.glob("model-00002-*")).unlink()
    with pytest.raises(InputError, match="not beside it: model-00002"):
        read_tensors(full)


def test_torch_pickles_only_weights_only(tmp_path):
    torch = pytest.importorskip("torch")
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}
    torch.save(state, tmp_path / "unet.bin")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "wrapped.pt")
    want = {"a": np.arange(6, dtype="f").reshape(2, 3), "b": np.array([1.5, -2], ml_dtypes.bfloat16)}
    assert_same(read_tensors(tmp_path / "unet.bin"), want)
    assert_same(read_tensors(tmp_path / "wrapped.pt"), want)
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(InputError, match="weights only"):
        read_tensors(tmp_path / "module.pt")


def test_damaged_and_absent_files(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", torch_state())
    whole = (tmp_path / "model.safetensors").read_bytes()
    for cut in (4, 100, len(whole) - 8):
        (tmp_path / "cut.safetensors").write_bytes(whole[:cut])
        with pytest.raises(InputError, match="not a whole safetensors file"):
            read_tensors(tmp_path / "cut.safetensors")
    with pytest.raises(InputError, match="no such file"):
        read_tensors(tmp_path / "absent.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds nothing"):
        read_tensors(tmp_path / "empty")
