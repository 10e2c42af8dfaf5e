"""Tables of a prompt set: means by group, errors over prompts, HPSv2's chunk means."""

import numpy as np
import pytest

from didr_jax.suites.prompts import Prompt
from didr_jax.suites.tables import chunk_means, mean_of, rows_of, text_of

STYLES = ("anime", "photo")
PROMPTS = [Prompt(i, str(i), "a", {"style": STYLES[i % 2], "size": "all of one"}) for i in range(200)]


def test_errors_are_those_of_a_mean_over_prompts_however_many_pictures_each_has():
    """Pictures of one prompt are not independent: with four alike of each the error is that of one."""
    values = np.random.default_rng(0).normal(size=(400, 1))
    one, four = mean_of(values), mean_of(np.repeat(values, 4, axis=1))
    assert one.error == pytest.approx(values.std() / 20, rel=0.1)
    assert four == pytest.approx(one)


def test_what_is_not_finite_is_counted_and_left_out():
    values = np.array([[1.0, 3.0], [np.nan, 5.0], [np.nan, np.inf]])
    assert mean_of(values)[::2] == (3.5, 3)
    assert np.isnan(mean_of(np.full((2, 1), np.nan)).mean)


def test_chunk_means_are_those_of_hpsv2s_program():
    scores = np.random.default_rng(1).normal(size=800)
    means = [np.mean(scores[i : i + 80]) for i in range(0, 800, 80)]
    assert chunk_means(scores[:, None], 10) == pytest.approx((np.mean(means), np.std(means)))


def test_every_group_of_every_heading_has_a_row_and_so_has_all():
    scores = {"hps": np.arange(200.0)[:, None], "custom": np.ones((200, 1))}
    rows = rows_of(PROMPTS, scores, {"hps": 10})
    assert [(row.heading, row.group, row.prompts) for row in rows] == [
        ("style", "anime", 100), ("style", "photo", 100), ("size", "all of one", 200), ("", "all", 200),
    ]  # fmt: skip
    assert rows[0].figures["hps"].mean == 99 and rows[-1].figures["hps"].mean == 99.5
    assert set(rows[0].chunks) == {"hps"} and rows[0].chunks["hps"][0] == 99 and not rows[-1].chunks
    lines = text_of(rows)
    assert lines[0].split() == ["group", "prompts", "hps", "custom"] and lines[2].split()[:3] == ["style", "photo", "100"]
    assert lines[-1].startswith("hps, mean and standard deviation of chunk means: anime 99.00")
