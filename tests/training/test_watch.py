"""Which part went bad first, and what a run that stops leaves to read."""

import json
import math

import pytest

from didr_jax.training.watch import PARTS, bad_parts, diagnosis, write_stopped

NAN, INF = math.nan, math.inf


def test_bad_parts_come_in_causal_order_whatever_the_order_of_the_log():
    assert bad_parts({name: NAN for name in reversed(PARTS)}) == list(PARTS)


def test_figures_that_no_part_names_come_last_in_their_own_order():
    assert bad_parts({"zebra": NAN, "apple": -INF, "grad_norm": NAN, "loss": 1.0}) == ["grad_norm", "zebra", "apple"]


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_nan_and_both_infinities_are_bad_and_large_numbers_are_not(value):
    assert bad_parts({"reward": value, "loss": 3e38, "grad_norm": 0.0}) == ["reward"]


def test_the_diagnosis_is_one_line_that_names_the_stage_the_step_the_streak_and_the_source():
    line = diagnosis("align (3/3)", 120, {"grad_norm": NAN, "reward": INF, "ta_loss": 0.1}, streak=20)
    assert line == (
        "align (3/3) stopped at step 120: 20 steps in a row were not finite; "
        "first of all the reward (or the decoder before it) (not finite: reward, grad_norm)"
    )


def test_a_part_without_a_description_is_named_by_its_figure():
    assert "first of all huber (not finite: huber)" in diagnosis("align", 1, {"huber": NAN}, streak=2)


def test_updates_may_be_dropped_without_a_bad_figure():
    """Of several TA updates one is bad, and the figures are of the last."""
    assert "first of all an update (not finite: no logged figure)" in diagnosis("align", 1, {"loss": 1.0}, streak=2)


def test_stopped_json_is_json_by_the_letter(tmp_path):
    """NaN and Infinity are not JSON: they are written as text, so that any reader can read the file."""
    figures = {"loss": 0.25, "reward": NAN, "grad_norm": INF, "tilt": -INF}
    write_stopped(str(tmp_path), "align", 7, figures, "align stopped")

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    report = json.loads((tmp_path / "stopped.json").read_text(), parse_constant=refuse)
    assert report == {
        "stage": "align",
        "step": 7,
        "message": "align stopped",
        "not_finite": bad_parts(figures),
        "figures": {"loss": 0.25, "reward": "nan", "grad_norm": "inf", "tilt": "-inf"},
    }
