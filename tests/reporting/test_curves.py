"""Curves: what shares a panel, what is smoothed, and that pictures have two rows."""

import math

import matplotlib.figure
import numpy as np
import pytest
from PIL import Image

from didr_jax.reporting.curves import MOST, curves, drawings, histogram, panels, smooth
from didr_jax.training.metrics import RunLog, read_metrics

BOOKKEEPING = {"images_seen": 8, "images_per_second": 1.0, "utilisation": 0.4, "skipped": 0, "hacking/accuracy": 0.0}


@pytest.fixture
def log(tmp_path):
    log = RunLog(str(tmp_path))
    yield log
    log.close()


def lines_of(workdir, stage="align"):
    """{title: {figure: points}} of the panels of a stage."""
    records = [record for record in read_metrics(str(workdir)) if record["stage"] == stage]
    return {panel.title: {name: np.transpose(line).tolist() for name, line in panel.lines.items()} for panel in panels(records)}


def test_a_figure_and_what_evaluators_found_of_it_share_a_panel_and_bookkeeping_has_none(tmp_path, log):
    log.write("align", 0, {"eval/reward": 0.25})
    for step in (1, 2):
        log.write("align", step, {"loss": 1 / step, "reward": step} | BOOKKEEPING)
    log.write("align", 2, {"eval/reward": 0.75})
    assert lines_of(tmp_path) == {
        "reward": {"eval/reward": [[0, 0.25], [2, 0.75]], "reward": [[1, 1], [2, 2]]},
        "loss": {"loss": [[1, 1], [2, 0.5]]},
    }


def test_what_is_compared_stands_together(tmp_path, log):
    names = [
        "gap",
        "divergence",
        "pull",
        "grad_norm",
        "ta_grad_norm",
        "eval/to_data",
        "eval/to_tilted_data",
        "reward/hps",
        "eval/hps",
    ]
    log.write("align", 1, dict.fromkeys(names, 1.0) | {"pull_to_divergence": 1.0, "reward": 1.0, "eval/accuracy": 1.0})
    assert {title: set(lines) for title, lines in lines_of(tmp_path).items()} == {
        "reward": {"reward"},
        "distances": {"eval/to_data", "eval/to_tilted_data"},
        "hps": {"reward/hps", "eval/hps"},
        "accuracy": {"eval/accuracy"},
        "pull_to_divergence": {"pull_to_divergence"},
        "gap, divergence and pull": {"gap", "divergence", "pull"},
        "gradient norms": {"grad_norm", "ta_grad_norm"},
    }
    assert list(lines_of(tmp_path))[0] == "reward" and list(lines_of(tmp_path))[4] == "pull_to_divergence"


def test_smoothing_keeps_a_straight_line_where_it_is_and_takes_the_noise_off():
    steps, rng = np.arange(0, 1000, 5), np.random.default_rng(0)
    at, clean = smooth(steps, 2.0 * steps)
    inside = (at > 150) & (at < 850)
    np.testing.assert_allclose(clean[inside], 2 * at[inside], rtol=1e-3)
    level = smooth(steps, 3 + rng.normal(size=len(steps)))[1]
    assert abs(level.mean() - 3) < 0.1 and level.std() < 0.4


def test_smoothing_neither_lags_nor_leads_a_step():
    at, found = smooth(np.arange(401), np.arange(401) >= 200)
    assert abs(at[np.argmin(np.abs(found - 0.5))] - 199.5) <= 1


def test_what_is_not_finite_is_left_out_and_few_points_are_left_alone():
    at, found = smooth([0, 1, 2, 3, 4], [1.0, math.nan, math.inf, 1.0, 1.0])
    np.testing.assert_allclose(found, 1.0)
    assert [x.tolist() for x in smooth([0, 5], [1.0, 3.0])] == [[0, 5], [1, 3]]
    assert len(smooth(np.arange(5000), np.ones(5000))[0]) == MOST


@pytest.fixture
def saved_figures(monkeypatch):
    """Every figure that is drawn."""
    found, save = [], matplotlib.figure.Figure.savefig
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda self, *a, **k: (found.append(self), save(self, *a, **k))[1])
    return found


@pytest.mark.parametrize("n", [1, 5])
def test_a_picture_has_two_rows_and_every_figure(tmp_path, log, saved_figures, n):
    for step in range(20):
        log.write("align", step, {f"figure {i}": step * i for i in range(n)})
    curves(str(tmp_path))
    (figure,) = saved_figures
    shown = [axis for axis in figure.axes if axis.axison]
    assert [axis.get_title(loc="left") for axis in shown] == [f"figure {i}" for i in range(n)]
    assert len({round(axis.get_position().y0, 3) for axis in shown}) == min(n, 2)
    assert all(len(axis.lines) == 2 for axis in shown), "raw and smoothed"
    assert np.asarray(Image.open(tmp_path / "curves_align.png")).std() > 1


def test_every_stage_has_a_picture(tmp_path, log):
    for stage in ("pretrain", "align"):
        log.write(stage, 1, {"loss": 1.0})
    curves(str(tmp_path))
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["curves_align.png", "curves_pretrain.png"]


def test_drawings_of_a_page_are_told_in_words_keep_their_names_apart_and_wear_its_colours(tmp_path, log):
    for step in range(30):
        log.write("align", step, {"reward": 0.1 * step, "loss": 2.0, "skipped": 0})
    drawn = drawings(read_metrics(str(tmp_path)))["align"]
    assert [words.split(" ")[0] for words, _ in drawn] == ["reward", "loss"] and "from 0." in drawn[0][0]
    for i, (words, svg) in enumerate(drawn):
        assert svg.startswith("<svg") and f'aria-label="{words}"' in svg
        assert f'id="align-{i}-' in svg and "currentColor" in svg and "var(--line-1)" in svg
        assert "#0101" not in svg and "metadata" not in svg and len(svg) < 60_000


def test_a_histogram_weighs_and_tells_its_means():
    svg = histogram({"before": (np.arange(100.0), None), "target": (np.array([0.0, 10.0]), np.array([3.0, 1.0]))}, "reward", "h")
    assert 'aria-label="Histogram of the reward: before mean 49.5; target mean 2.5"' in svg
