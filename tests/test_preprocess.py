"""Differentiable preprocessing against PIL, torch and transformers' CLIP processor, on photographs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from didr_jax.rewards.preprocess import CLIP_MEAN, CLIP_STD, resize_and_crop, resize_and_pad, resize_bicubic

LEVEL = 1 / 255


def photo(name: str, height: int, width: int) -> np.ndarray:
    """The upper left `height` x `width` of a photograph, mirrored on where it is too small; uint8."""
    image = load_sample_image(f"{name}.jpg")
    pads = [(0, max(0, n - m)) for n, m in zip((height, width), image.shape, strict=False)]
    return np.pad(image, (*pads, (0, 0)), mode="symmetric")[:height, :width]


def pil_resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """PIL's bicubic, rows then columns: asked for at once, recent versions take tall narrow images the other way."""
    for w, h in ((width, image.shape[0]), (width, height)):
        image = np.asarray(Image.fromarray(image).resize((w, h), Image.BICUBIC))
    return image


def assert_same_photo(got: np.ndarray, want: np.ndarray) -> None:
    """`got` in [0, 1], unrounded, against 8-bit `want`.

    PIL rounds after each of its two passes, and the second widens the first's half level by at most a quarter:
    1.125 levels.  Rounded to 8 bits itself, the image is never more than one level away."""
    assert np.abs(np.rint(got * 255) - want).max() <= 1
    assert np.abs(got - want * LEVEL).max() <= 1.125 * LEVEL
    assert np.mean(np.abs(got - want * LEVEL) > LEVEL) < 2e-4


def signed(image: np.ndarray) -> jax.Array:
    return jnp.asarray(image, jnp.float32)[None] / 127.5 - 1


def unit(pixels: jax.Array) -> np.ndarray:
    """Undoes CLIP's mean and std: [0, 1]."""
    return np.asarray(pixels[0]) * CLIP_STD + CLIP_MEAN


SIZES = [(427, 640), (640, 427), (300, 300), (100, 151), (224, 224), (1024, 1024), (333, 90)]


@pytest.mark.parametrize("height, width", [(224, 224), (149, 224), (448, 700), (427, 320)])
@pytest.mark.parametrize("name", ["china", "flower"])
def test_resize_is_pil_bicubic(name, height, width):
    image = photo(name, 427, 640)
    got = resize_bicubic(jnp.asarray(image, jnp.float32)[None] * LEVEL, height, width)[0]
    assert_same_photo(np.asarray(got), pil_resize(image, height, width))


def torch_pad(x, size, antialias=True):
    """hpsv2's ToTensor, ResizeMaxSize, Normalize in torch: [1, h, w, 3] in [-1, 1] -> [1, size, size, 3]."""
    h, w = x.shape[1:3]
    height, width = (round(n * (size / float(max(h, w)))) for n in (h, w))
    x = x.permute(0, 3, 1, 2) / 2 + 0.5
    x = torch.nn.functional.interpolate(x, size=(height, width), mode="bicubic", antialias=antialias)
    down, across = size - height, size - width
    x = torch.nn.functional.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2))
    return (x.permute(0, 2, 3, 1) - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)


@pytest.mark.parametrize("antialias", [True, False], ids=["antialias", "plain"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pad_is_hps(size, antialias):
    image = signed(photo("flower", *size))
    got = resize_and_pad(image, antialias=antialias)
    assert np.abs(got - torch_pad(torch.from_numpy(np.array(image)), 224, antialias).numpy()).max() < 5e-4


@pytest.mark.parametrize("size", SIZES[:-1], ids=str)
def test_crop_is_the_clip_processor(size):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    image = photo("china", *size)
    want = CLIPImageProcessorPil()(Image.fromarray(image), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    got = resize_and_crop(signed(image), half=int)
    assert_same_photo(unit(got), np.rint((want * CLIP_STD + CLIP_MEAN) * 255))


def test_crop_rounds_half_to_even_as_torchvision():
    # 224 x 227: three columns too many, round(1.5) = 2 from the left; transformers takes 1.
    image = photo("flower", 224, 227)
    want = {round: image[:, 2:226], int: image[:, 1:225]}
    for half, columns in want.items():
        assert np.abs(unit(resize_and_crop(signed(image), half=half)) - columns * LEVEL).max() < 1e-5


@pytest.mark.parametrize("preprocess", [resize_and_pad, resize_and_crop])
@pytest.mark.parametrize("value", [-1.0, 1.0])
def test_black_and_white_have_the_gradient_of_grey(preprocess, value):
    # They sit on the clip's bounds, where the gradient must neither halve nor flicker with rounding.
    total = jax.jit(jax.grad(lambda x: jnp.sum(preprocess(x, 32))))
    edge, grey = (total(jnp.full((1, 97, 61, 3), v)) for v in (value, 0.0))
    assert float(jnp.abs(grey).max()) > 0
    np.testing.assert_allclose(edge, grey, atol=1e-6)


@pytest.mark.parametrize("preprocess", [resize_and_pad, resize_and_crop])
def test_saturated_images_are_clipped_as_saving_would(preprocess):
    image = 3 * jax.random.normal(jax.random.key(0), (1, 50, 40, 3))
    np.testing.assert_array_equal(preprocess(image, 28), preprocess(jnp.clip(image, -1, 1), 28))
    grad = jax.jit(jax.grad(lambda x: jnp.sum(preprocess(x, 28) ** 2)))(image)
    assert np.isfinite(grad).all()
    assert not np.any(np.where(np.abs(image) > 1.001, grad, 0))


@pytest.mark.parametrize("antialias", [True, False], ids=["antialias", "plain"])
def test_gradient_is_torchs(antialias):
    image = np.asarray(signed(photo("china", 90, 131)))
    cotangent = np.random.default_rng(0).normal(size=(1, 28, 28, 3)).astype(np.float32)
    x = torch.from_numpy(image.copy()).requires_grad_()
    (torch_pad(x, 28, antialias) * torch.from_numpy(cotangent)).sum().backward()
    grad = jax.grad(lambda x: jnp.sum(resize_and_pad(x, 28, antialias=antialias) * cotangent))(jnp.asarray(image))
    assert np.abs(grad - x.grad.numpy()).max() <= 1e-4 * np.abs(x.grad.numpy()).max()


def test_size_is_static_under_jit():
    fn = jax.jit(functools.partial(resize_and_pad, size=16))
    assert fn(jnp.zeros((2, 20, 10, 3))).shape == (2, 16, 16, 3)
