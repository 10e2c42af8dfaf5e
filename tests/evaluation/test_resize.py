"""Crops and resizes of protocols against the code they are taken from, picture by picture."""

import numpy as np
import pytest

from didr_jax.evaluation.protocols import CLIP_SCORE, CMMD, DIVERSITY, FID
from didr_jax.evaluation.resize import centre, prepare, square, tensorflow_bilinear, to_8_bit, torch_bilinear
from didr_jax.types import InputError
from tests.parity import fid_oracles as oracles


@pytest.fixture(scope="module")
def pictures():
    """Photographs larger and smaller than 299, wide and tall, with odd margins."""
    china, flower = (np.ascontiguousarray(p) for p in oracles.photographs()[:2])
    return [china, flower[:, :301], china[100:251, :200], flower[:299, :299]]


def test_clean_fids_resize_is_equal(pictures):
    resizer = oracles.import_oracle("cleanfid.resize").build_resizer("clean")
    for x in pictures:
        got = FID["clean-fid"].prepare(x)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, resizer(x))


def test_pytorch_fids_resize_is_equal_to_rounding(pictures):
    resizer = oracles.import_oracle("cleanfid.resize").build_resizer("legacy_pytorch")
    for x in pictures:
        np.testing.assert_allclose(FID["pytorch-fid"].prepare(x), resizer(x), atol=1e-4)


def test_torch_fidelitys_resize_is_equal(pictures):
    import torch

    resize = oracles.import_oracle("torch_fidelity.interpolate_compat_tensorflow").interpolate_bilinear_2d_like_tensorflow1x
    for x in pictures:
        want = resize(torch.from_numpy(x.transpose(2, 0, 1)[None].astype(np.float32)), size=(299, 299), align_corners=False)
        np.testing.assert_array_equal(FID["torch-fidelity"].prepare(x), want[0].numpy().transpose(1, 2, 0))


def test_bilinear_resizes_equal_torchs_and_the_definition():
    """torch is always here.  TensorFlow 1's: pixel i from position i · n/size, restated in two loops."""
    import torch

    x = np.random.default_rng(0).integers(0, 256, (13, 29, 3), dtype=np.uint8)
    want = torch.nn.functional.interpolate(
        torch.from_numpy(x.transpose(2, 0, 1)[None].astype(np.float32)), size=(17, 17), mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(torch_bilinear(x, 17), want[0].numpy().transpose(1, 2, 0), atol=1e-4)
    got = tensorflow_bilinear(x, 17)
    for i in range(17):
        for j in range(17):
            y, z = i * 13 / 17, j * 29 / 17
            a, b = int(y), int(z)
            c, d = min(a + 1, 12), min(b + 1, 28)
            p = x.astype(float)
            top = p[a, b] + (p[a, d] - p[a, b]) * (z - b)
            low = p[c, b] + (p[c, d] - p[c, b]) * (z - b)
            np.testing.assert_allclose(got[i, j], top + (low - top) * (y - a), atol=1e-3)


def test_dmd2s_picture_is_equal(pictures):
    """Its own steps with torchvision and PIL, then clean-fid's resize."""
    from PIL import Image

    crop = oracles.import_torchvision().transforms.functional.center_crop
    resizer = oracles.import_oracle("cleanfid.resize").build_resizer("clean")
    for x in pictures:
        picture = Image.fromarray(x)
        picture = crop(picture, min(picture.size)).resize((512, 512), Image.LANCZOS)
        np.testing.assert_array_equal(FID["dmd2"].prepare(x), resizer(np.array(picture)))
    for x in (pictures[0], pictures[1], pictures[3]):
        patch = np.array(crop(Image.fromarray(x), 299))
        np.testing.assert_array_equal(FID["dmd2-patch"].prepare(x), resizer(patch))


def test_clips_picture_is_equal(pictures):
    """OpenAI's and open_clip's transform up to the tensor: torchvision's Resize and CenterCrop."""
    from PIL import Image

    T = pytest.importorskip("torchvision.transforms") if oracles.import_torchvision() else None
    steps = T.Compose([T.Resize(224, interpolation=T.InterpolationMode.BICUBIC), T.CenterCrop(224)])
    for x in pictures:
        want = np.array(steps(Image.fromarray(x)))
        np.testing.assert_array_equal(CLIP_SCORE["clip-l-14"].prepare(x), want)
        np.testing.assert_array_equal(DIVERSITY["clip-h-14"].prepare(x), want)
        crop = T.functional.center_crop(Image.fromarray(x), min(x.shape[:2])).resize((256, 256), Image.LANCZOS)
        np.testing.assert_array_equal(CLIP_SCORE["dmd2"].prepare(x), np.array(steps(crop)))


def test_cmmds_picture_is_the_published_crop_and_resize(pictures):
    """google-research/cmmd io_util: floor of the margins, PIL's bicubic with antialiasing."""
    from PIL import Image

    for x in pictures:
        w, h = Image.fromarray(x).size
        n = min(w, h)
        left, top = (w - n) // 2, (h - n) // 2
        want = Image.fromarray(x).crop((left, top, left + n, top + n)).resize((336, 336), Image.BICUBIC)
        np.testing.assert_array_equal(CMMD["cmmd"].prepare(x), np.array(want))


def test_the_odd_pixel_of_a_margin_is_rounded_half_to_even_or_cut():
    x = np.arange(12)[:, None, None] * np.ones((1, 12, 3), np.int64)
    assert centre(x, 9)[0, 0, 0] == 2 and centre(x, 9, int)[0, 0, 0] == 1  # margin 1.5
    assert centre(x, 11)[0, 0, 0] == 0  # margin .5: the even neighbour is 0
    assert square(x[:7], int).shape == (7, 7, 3)


def test_pictures_of_a_sampler_become_8_bit_as_the_protocol_says():
    """Half a grey level: 0.3 is 165.75."""
    assert to_8_bit(np.float32(0.3), "truncate") == 165 and to_8_bit(np.float32(0.3), "round") == 166
    np.testing.assert_array_equal(to_8_bit(np.array([-2.0, -1, 1, 2]), "truncate"), [0, 0, 255, 255])
    x = np.full((320, 320, 3), 0.3, np.float32)
    assert FID["dmd2-patch"].prepare(x).max() == 165 and FID["dmd2-patch"].prepare(x).shape == (299, 299, 3)
    np.testing.assert_allclose(FID["clean-fid"].prepare(x), 166, atol=1e-3)


def test_what_is_no_picture_is_refused():
    with pytest.raises(InputError, match="uint8 or float in .-1, 1., not int64 .5, 5, 3"):
        prepare(np.zeros((5, 5, 3), np.int64), ())
    with pytest.raises(InputError, match="200x400 has no middle of 299x299"):
        FID["dmd2-patch"].prepare(np.zeros((200, 400, 3), np.uint8))
