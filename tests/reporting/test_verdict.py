"""The verdict: its words follow from the numbers."""

import numpy as np
import pytest

from didr_jax.reporting.pairs import Pairs
from didr_jax.reporting.verdict import compared, standard_errors, verdict

TABLE = {
    "reference, 30 steps": {"reward": 0.1, "to_tilted_data": 1.0, "accuracy": 0.9, "images": 5.0},
    "one step, initial": {"reward": 0.0, "to_tilted_data": 2.0, "accuracy": 0.90, "images": 5.0},
    "one step, didr": {"reward": 1.0, "to_tilted_data": 3.0, "accuracy": 0.905, "images": 6.0},
}


def pairs_of(gain):
    none, zero = np.empty(0), np.zeros(len(gain))
    return Pairs(zero, zero + gain, none, none, none, none)


SURE = pairs_of(1 + np.random.default_rng(0).normal(size=400))


def judged(after=1.0, pairs=SURE, alarms=None, watched=True):
    table = TABLE | {"one step, didr": TABLE["one step, didr"] | {"reward": after}}
    return verdict(table, "didr", pairs, alarms or {}, watched)


@pytest.mark.parametrize("after, pairs, alarms, watched, level, words", [
    (1.0, SURE, {}, True, "good", "nothing that is watched fell"),
    (1.0, SURE, {}, False, "open", "The reward rose"),
    (1.0, SURE, {"accuracy": 300}, True, "bad", "at the pictures' expense"),
    (0.01, pairs_of(0.01 + np.random.default_rng(0).normal(size=400)), {}, True, "open", "did not change beyond its error"),
    (-0.5, pairs_of(-0.5 + np.random.default_rng(0).normal(size=400)), {}, True, "bad", "did not rise"),
    (1.0, None, {}, True, "good", "The reward rose"),
])  # fmt: skip
def test_it_is(after, pairs, alarms, watched, level, words):
    found = judged(after, pairs, alarms, watched)
    assert found.level == level and words in found.headline


def test_it_tells_the_change_its_error_and_what_moved_with_it():
    found = judged(alarms={"accuracy": 300})
    gain = SURE.gain
    error = f"{np.std(gain, ddof=1) / 20:.2g}"
    assert found.sentences == [
        f"The reward went from 0 to 1 (+1 ± {error}); {np.mean(gain > 0):.1%} of 400 pairs of the same noise are higher.",
        "Worse: to_tilted_data 2 → 3.",
        "About as before: accuracy 0.9 → 0.905.",
        "Besides: images 5 → 6.",
        "The alarm for reward hacking is up for accuracy (since step 300).",
    ]
    assert "its error is not known" in judged(pairs=None).sentences[0]


def test_rows_are_found_by_the_convention_of_all_recipes():
    assert compared(TABLE, "didr") == ("one step, initial", "one step, didr")
    assert compared({"one-step initial": {}, "dipp": {}}, "dipp") == ("one-step initial", "dipp")
    assert compared(TABLE, "refl") is None and verdict(TABLE, "refl", None, {}, True).level == "open"


def test_errors_are_of_means_and_of_the_paired_change():
    rng = np.random.default_rng(0)
    common = rng.normal(size=10_000)
    pairs = pairs_of(np.zeros(10_000))._replace(reward_before=common, reward_after=common + 0.1 * rng.normal(size=10_000))
    np.testing.assert_allclose(standard_errors(pairs), [0.01, 0.01, 0.001], rtol=0.05)
    assert np.isnan(standard_errors(None)).all()
