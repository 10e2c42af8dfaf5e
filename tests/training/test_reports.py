"""Tables and pictures, read back from the files."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from didr_jax.training.metrics import RunLog
from didr_jax.training.reports import picture_grid, save_picture, scatter, write_summary


@pytest.fixture
def log(tmp_path):
    log = RunLog(str(tmp_path))
    yield log
    log.close()


def test_the_summary_is_a_row_per_model_in_the_file_and_on_the_screen(tmp_path, log, capsys):
    rows = {"reference": {"reward": 0.125}, "ours": {"reward": 1234.5678, "diversity": 0.5}}
    write_summary(str(tmp_path), rows, log)
    assert json.loads((tmp_path / "summary.json").read_text()) == rows
    head, reference, ours = (line.split("] ")[1] for line in capsys.readouterr().out.splitlines())
    assert head.split() == ["reward", "diversity"]
    assert reference.split() == ["reference", "0.125", "–"], "what a row has not is a dash, in its column"
    assert ours.split() == ["ours", "1235", "0.5"]
    assert len(head) == len(reference) == len(ours)


def test_a_grid_puts_images_row_by_row_with_white_between_and_where_one_is_missing():
    images = np.stack([np.full((2, 3), value, np.uint8) for value in (10, 20, 30)])
    got = picture_grid(images, columns=2, gap=1)
    want = np.full((5, 7), 255)
    want[:2, :3], want[:2, 4:], want[3:, :3] = 10, 20, 30
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, want)


def test_a_grid_is_no_wider_than_its_images_and_scales_by_whole_pixels():
    images = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    plain = picture_grid(images, columns=9)
    assert plain.shape == (2, 6, 3)
    np.testing.assert_array_equal(plain[:, :2], images[0])
    scaled = picture_grid(images, columns=9, scale=3)
    np.testing.assert_array_equal(scaled, np.kron(plain, np.ones((3, 3, 1), np.uint8)))


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3)])
def test_a_picture_comes_back_from_its_file(shape, tmp_path):
    picture = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    save_picture(str(tmp_path / "picture.png"), picture)
    np.testing.assert_array_equal(Image.open(tmp_path / "picture.png"), picture)


def test_clouds_have_a_panel_each_on_common_axes(tmp_path, monkeypatch):
    rng, close, limits = np.random.default_rng(0), plt.close, {}

    def look(figure):
        limits.update({axis.get_title(): (axis.get_xlim(), axis.get_ylim()) for axis in figure.axes})
        close(figure)

    monkeypatch.setattr(plt, "close", look)
    scatter(str(tmp_path / "clouds.png"), {"near": rng.normal(size=(50, 2)), "far": 10 + rng.normal(size=(50, 2))})
    assert limits.keys() == {"near", "far"} and limits["near"] == limits["far"]
    image = plt.imread(tmp_path / "clouds.png")
    assert image.shape[1] == 600 and all(half.std() > 0.01 for half in np.split(image, 2, axis=1))
