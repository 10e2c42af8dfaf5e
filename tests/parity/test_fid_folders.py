"""FID, patch-FID and KID of two folders of real photographs equal those of torch-fidelity and clean-fid, end to end.

The photographs are scikit-learn's and scikit-image's, cropped, and distorted in one folder; Inception's weights are random.
Whole programs of both sides: files, crops, resizes, network, moments, distance.
"""

import dataclasses

import numpy as np
import pytest
import torch

from didr_jax.evaluation.collect import Options, statistics_of
from didr_jax.evaluation.frechet import fid
from didr_jax.evaluation.inception_features import inception
from didr_jax.evaluation.kid import kid
from didr_jax.evaluation.protocols import FID
from didr_jax.weights.files import write_safetensors
from tests.parity import fid_oracles as oracles

pytestmark = pytest.mark.slow

REL = 1e-3
FIRST = 256  # features that clean-fid is given: its root of 2048 dimensions takes minutes


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return oracles.two_folders(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    write_safetensors(path, oracles.random_state())
    return path


def ours(file, folders, name, first=None):
    """Statistics of both folders under our protocol, of the first features."""
    network = inception(file, name)
    stats = [statistics_of(network, folder, options=Options(batch_size=8)) for folder in folders]
    return [dataclasses.replace(s, features=s.features[:, :first]) for s in stats]


def dmd2_picture(x):
    """`resize_and_center_crop` of DMD2's evaluator, without patches."""
    from PIL import Image

    picture = Image.fromarray(x)
    crop = oracles.import_torchvision().transforms.functional.center_crop
    return np.array(crop(picture, min(picture.size)).resize((512, 512), Image.LANCZOS))


def dmd2_patch(x):
    from PIL import Image

    return np.array(oracles.import_torchvision().transforms.functional.center_crop(Image.fromarray(x), 299))


@pytest.mark.parametrize(
    "name, mode, picture",
    [
        ("clean-fid", "clean", None),
        ("pytorch-fid", "legacy_pytorch", None),
        ("dmd2", "clean", dmd2_picture),
        ("dmd2-patch", "clean", dmd2_patch),
    ],
)
def test_clean_fids_program(name, mode, picture, folders, file):
    clean = oracles.import_oracle("cleanfid.fid")
    network = oracles.pytorch_fid_network(oracles.torch_state(), normalize_input=mode != "clean")
    seen = []

    @torch.no_grad()
    def extract(x):  # as its feature_extractor for each mode scales pictures
        x = (x - 128) / 128 if mode == "clean" else x / 255
        seen.append(network(x)[0][:, :FIRST, 0, 0])
        return seen[-1]

    want = clean.compute_fid(
        *map(str, folders), mode=mode, custom_feat_extractor=extract, custom_image_tranform=picture,
        device=torch.device("cpu"), batch_size=8, verbose=False,
    )  # fmt: skip
    real, distorted = ours(file, folders, name, FIRST)
    got = fid(real, distorted, name)
    print(got, "clean-fid:", want)
    assert want > 0.1 and got.value == pytest.approx(want, rel=REL)

    x, y = np.split(torch.cat(seen).numpy(), 2)
    row = dataclasses.replace(FID[name], kid_size=16)
    np.random.seed(row.kid_seed)
    want = 1000 * clean.kernel_distance(y, x, max_subset_size=16)  # draws from its second argument first
    got = kid(real, distorted, row)
    print(got, "clean-fid:", want)
    assert got.value == pytest.approx(want, rel=REL)


def test_torch_fidelitys_program(folders, file, tmp_path):
    """With all 2048 features."""
    program = oracles.import_oracle("torch_fidelity")
    torch.save(oracles.torch_state(), tmp_path / "inception.pth")
    want = program.calculate_metrics(
        input1=str(folders[0]), input2=str(folders[1]), cuda=False, fid=True, kid=True, kid_subset_size=20, verbose=False,
        feature_extractor_weights_path=str(tmp_path / "inception.pth"), batch_size=1, cache=False,
    )  # fmt: skip
    row = dataclasses.replace(FID["torch-fidelity"], kid_size=20)
    real, distorted = ours(file, folders, row)
    got = fid(real, distorted, row), kid(real, distorted, row)
    print(*got, want)
    assert got[0].value == pytest.approx(want["frechet_inception_distance"], rel=REL)
    assert got[1].value == pytest.approx(1000 * want["kernel_inception_distance_mean"], rel=REL)
    assert got[1].spread == pytest.approx(1000 * want["kernel_inception_distance_std"], rel=REL)
