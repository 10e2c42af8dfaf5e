"""FID's Inception and its weight files against pytorch-fid and torch-fidelity, on random weights."""

import jax
import numpy as np
import pytest
import torch

from didr_jax.evaluation.inception_features import inception
from didr_jax.evaluation.protocols import FID
from didr_jax.models.inception import Inception
from didr_jax.types import InputError
from didr_jax.weights.engine import to_torch
from didr_jax.weights.files import read_tensors, write_safetensors
from didr_jax.weights.inception import INCEPTION, inception_shapes, load_inception
from tests.parity import fid_oracles as oracles
from tests.parity.oracle import QUICK, assert_close


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Random weights under the published names."""
    path = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    write_safetensors(path, oracles.random_state())
    return path


@pytest.fixture(scope="module")
def pictures():
    """A photograph and noise, uint8 `[2, 299, 299, 3]`."""
    noise = np.random.default_rng(1).integers(0, 256, (299, 299, 3), dtype=np.uint8)
    return np.stack([oracles.photographs()[0][:299, :299], noise])


@pytest.fixture(scope="module")
def features(file, pictures):
    """By our network, under each protocol's pixel values."""
    out = {}
    for name in ("clean-fid", "pytorch-fid"):
        network = inception(file, name)
        run = jax.jit(network.apply, compiler_options=QUICK)
        out[name] = np.asarray(run(network.weights.load(), pictures))
    return out


def nchw(pictures):
    return torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy())


def test_features_equal_torch_fidelitys_network(features, pictures, tmp_path):
    network = oracles.torch_fidelity_network(oracles.torch_state(), tmp_path)
    with torch.no_grad():
        assert_close(features["clean-fid"], network(nchw(pictures)))


def test_features_equal_torchvisions_class_with_fids_changes(features, pictures):
    network = oracles.pytorch_fid_network(oracles.torch_state())
    with torch.no_grad():
        want = network(nchw(pictures).float() / 255)[0][:, :, 0, 0]
    assert_close(features["pytorch-fid"], want)


def test_features_equal_those_recorded_from_torch_fidelity(features):
    """Of the noise (the same everywhere, unlike a decoded photograph), for machines without the oracles."""
    picked = features["clean-fid"][1, [0, 300, 700, 1200, 1700, 1900, 2000, 2047]]  # of every branch of the last block
    assert_close(picked, [0.7078969, 0.1969978, 0.0432086, 0.1408144, 0.1292129, 0.0834928, 1.490639, 2.657438])


def test_names_are_those_of_the_published_files_in_both_directions(file):
    params = load_inception(file).load()
    names = {name for name in oracles.random_state() if not name.startswith("fc.")}
    again = to_torch(params, INCEPTION)
    assert set(again) == names and len(names) == 94 * 5
    state = read_tensors(file)
    for name in names:
        np.testing.assert_array_equal(np.asarray(again[name]), state[name], err_msg=name)


def test_the_network_has_the_published_size():
    """torchvision's 27,161,264 with the auxiliary head's 3,326,696 and the classifier's 2,049,000 away; and the statistics."""
    shapes = inception_shapes()
    sizes = {path[-1].key: 0 for path, _ in jax.tree_util.tree_leaves_with_path(shapes)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        sizes[path[-1].key] += int(np.prod(leaf.shape))
    assert sizes["kernel"] + sizes["scale"] + sizes["bias"] == 27_161_264 - 3_326_696 - 2_049_000
    assert sizes["mean"] == sizes["var"] == sizes["scale"]


@pytest.mark.parametrize("prefix", ["", "model."], ids=["DiffSynth's file", "DiffSynth's module"])
def test_files_without_the_classifier_are_read(prefix, tmp_path):
    state = {prefix + name: x for name, x in oracles.random_state().items() if not name.startswith("fc.")}
    write_safetensors(tmp_path / "model.safetensors", state)
    load_inception(tmp_path / "model.safetensors").check()


def test_a_torch_state_dict_is_read_with_its_counters(tmp_path):
    torch.save(oracles._counted(oracles.torch_state()), tmp_path / "pt_inception.pth")
    load_inception(tmp_path / "pt_inception.pth").check()


def test_torchscript_is_refused_with_the_remedy(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "inception-2015-12-05.pt")
    with pytest.raises(InputError, match="TorchScript.*pt_inception-2015-12-05-6726825d.pth.*save_file"):
        load_inception(tmp_path / "inception-2015-12-05.pt").load()


def test_imagenets_inception_is_refused(tmp_path):
    state = {**oracles.random_state(), "fc.weight": np.zeros((1000, 2048), np.float32)}
    write_safetensors(tmp_path / "inception_v3.safetensors", state)
    with pytest.raises(InputError, match="ImageNet, which is not FID's"):
        load_inception(tmp_path / "inception_v3.safetensors").load()


def test_what_is_missing_is_named(tmp_path):
    state = oracles.random_state()
    del state["Mixed_7c.branch_pool.bn.running_var"]
    write_safetensors(tmp_path / "cut.safetensors", state)
    with pytest.raises(InputError, match="cut.safetensors.*1 missing: Mixed_7c.branch_pool.bn.running_var"):
        load_inception(tmp_path / "cut.safetensors").check()


def test_unprepared_pictures_are_refused(file):
    with pytest.raises(InputError, match="299, 299, 3.*got .1, 256, 256, 3"):
        jax.eval_shape(Inception().apply, {"params": inception_shapes()}, np.zeros((1, 256, 256, 3), np.float32))


def test_pixels_are_scaled_as_each_port_scales_them():
    """TensorFlow's graph (x − 128)/128, pytorch-fid 2x/255 − 1: half a grey level apart."""
    assert {FID[n].pixels for n in ("clean-fid", "torch-fidelity", "dmd2", "dmd2-patch")} == {"(x-128)/128"}
    assert FID["pytorch-fid"].pixels == "2x/255-1"
