"""Pairs of pictures: which are kept, and what comes back from the file."""

import numpy as np
import pytest

from didr_jax.reporting.pairs import EXTREME, FIRST, SIDE, chosen, read_pairs, write_pairs

N = 200


@pytest.fixture
def made(tmp_path):
    rng = np.random.default_rng(0)
    before, after = rng.integers(0, 256, (2, N, 8, 8)).astype(np.uint8)
    rewards = rng.normal(size=(2, N))
    write_pairs(str(tmp_path), before, after, [f"digit {i}" for i in range(N)], *rewards, np.arange(3.0), np.ones(3))
    return before, after, rewards, read_pairs(str(tmp_path))


def test_all_rewards_and_the_chosen_pictures_come_back(made):
    before, after, rewards, pairs = made
    np.testing.assert_array_equal([pairs.reward_before, pairs.reward_after], rewards)
    np.testing.assert_array_equal(pairs.before, before[pairs.which])
    np.testing.assert_array_equal(pairs.after, after[pairs.which])
    assert pairs.captions.tolist() == [f"digit {i}" for i in pairs.which] and pairs.target.tolist() == [0, 1, 2]


def test_shown_are_the_first_ones_and_the_largest_changes_either_way(made):
    *_, pairs = made
    order = np.argsort(pairs.gain)
    assert set(pairs.which) == {*range(FIRST), *order[:EXTREME], *order[-EXTREME:]}
    assert pairs.which[pairs.extremes(1)].tolist() == order[::-1][:EXTREME].tolist()
    assert pairs.which[pairs.extremes(-1)].tolist() == order[:EXTREME].tolist()
    drawn = pairs.which[pairs.drawn()]
    assert sorted(drawn) == list(range(FIRST)) and (np.diff(pairs.gain[drawn]) <= 0).all()


def test_what_gained_is_no_loss(tmp_path):
    images = np.zeros((30, 4, 4), np.uint8)
    write_pairs(str(tmp_path), images, images, [""] * 30, np.zeros(30), np.arange(30) - 2.0)
    pairs = read_pairs(str(tmp_path))
    assert pairs.which[pairs.extremes(-1)].tolist() == [0, 1] and len(pairs.extremes(1)) == EXTREME


def test_large_pictures_are_kept_smaller_and_small_ones_untouched(tmp_path):
    images = np.full((2, 600, 1200, 3), 7, np.uint8)
    write_pairs(str(tmp_path), images, images, ["a", "b"])
    assert read_pairs(str(tmp_path)).after.shape == (2, SIDE // 2, SIDE, 3)


def test_without_rewards_or_pictures_there_is_what_there_is(tmp_path):
    none = np.empty((5, 0, 0), np.uint8)
    assert read_pairs(str(tmp_path)) is None
    write_pairs(str(tmp_path), none, none, [], np.zeros(5), np.ones(5))
    pairs = read_pairs(str(tmp_path))
    assert len(pairs.which) == 0 and pairs.gain.tolist() == [1] * 5


def test_fewer_than_are_shown_are_all_shown_once():
    assert chosen(np.zeros(3)).tolist() == [0, 1, 2]
