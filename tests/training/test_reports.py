"""Tables and pictures, read back from the files."""

import json
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from didr_jax.training.metrics import RunLog
from didr_jax.training.reports import curves, picture_grid, save_picture, scatter, write_summary


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


@pytest.fixture
def drawn(monkeypatch):
    """The curves of every figure that is closed: {title of the figure: {title of the panel: points}}."""
    found, close = {}, plt.close

    def look(figure):
        panels = {axis.get_title(): axis.lines[0].get_xydata().tolist() for axis in figure.axes if axis.axison}
        found[figure.get_suptitle()] = panels
        close(figure)

    monkeypatch.setattr(plt, "close", look)
    return found


def test_every_stage_has_a_picture_with_a_panel_per_figure_and_none_for_bookkeeping(tmp_path, log, drawn):
    bookkeeping = {"images_seen": 8, "images_per_second": 1.0, "utilisation": 0.4, "skipped": 0}
    for step in (1, 2):
        log.write("pretrain", step, {"loss": 1 / step} | bookkeeping)
        log.write("align", step, {"loss": -step, "reward": step} | bookkeeping)
    curves(str(tmp_path))
    assert drawn == {
        "pretrain": {"loss": [[1, 1.0], [2, 0.5]]},
        "align": {"loss": [[1, -1], [2, -2]], "reward": [[1, 1], [2, 2]]},
    }
    for stage in drawn:
        assert plt.imread(tmp_path / f"curves_{stage}.png").std() > 0.01


def test_figures_that_are_told_less_often_are_drawn_where_they_are_told(tmp_path, log, drawn):
    """An evaluator tells its own before the first step, and at its own period."""
    log.write("align", 0, {"eval/reward": 0.25})
    for step in (1, 2, 3):
        log.write("align", step, {"loss": 0.5})
    log.write("align", 2, {"eval/reward": 0.75})
    curves(str(tmp_path))
    assert drawn == {"align": {"eval/reward": [[0, 0.25], [2, 0.75]], "loss": [[1, 0.5], [2, 0.5], [3, 0.5]]}}


def test_many_figures_go_on_in_further_rows(tmp_path, log, drawn):
    log.write("align", 1, {f"figure {i}": i for i in range(7)})
    curves(str(tmp_path))
    assert len(drawn["align"]) == 7


def test_a_figure_that_is_not_finite_leaves_a_gap_and_no_error(tmp_path, log, drawn):
    values = [1.0, math.nan, math.inf, 0.5]
    for step, loss in enumerate(values):
        log.write("align", step, {"loss": loss})
    curves(str(tmp_path))
    np.testing.assert_array_equal(drawn["align"]["loss"], list(enumerate(values)))


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
