"""Vendi score, in-prompt diversity and win rate against their definitions."""

import numpy as np
import pytest

from didr_jax.evaluation.diversity import in_prompt, mean_similarity, vendi, vendi_score
from didr_jax.evaluation.win_rate import win_rate
from didr_jax.types import InputError


def features(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape) + 0.5


def restated_vendi(x):
    """vertaix/Vendi-Score `score_X`: eigenvalues of the normalised kernel matrix over n."""
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    values = np.linalg.eigvalsh(x @ x.T / len(x))
    values = values[values > 0]
    return np.exp(-(values * np.log(values)).sum())


@pytest.mark.parametrize("n, d", [(12, 30), (50, 6), (8, 8)])
def test_vendi_is_the_published_definition_from_either_side(n, d):
    x = features(n, d)
    assert vendi_score(x) == pytest.approx(restated_vendi(x), rel=1e-9)


def test_vendi_counts_the_different_pictures():
    eye = np.eye(6)
    assert vendi_score(eye) == pytest.approx(6)
    assert vendi_score(np.ones((6, 3))) == pytest.approx(1)
    assert vendi_score(np.concatenate([eye[:2]] * 5) * 3.0) == pytest.approx(2)
    assert str(vendi(eye, "clip-l-14")) == "Vendi 6  [clip-l-14; 6 pictures]"


def test_similarity_is_the_mean_cosine_of_different_pictures():
    x = features(7, 4)
    cosines = [
        x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]) for i in range(7) for j in range(7) if i != j
    ]  # fmt: skip
    assert mean_similarity(x) == pytest.approx(np.mean(cosines), rel=1e-12)
    with pytest.raises(InputError, match="two pictures"):
        mean_similarity(x[:1])


def test_in_prompt_figures_are_means_over_prompts():
    x = features(5, 4, 9)
    cosine, score = in_prompt(x, "clip-l-14")
    assert cosine.value == pytest.approx(np.mean([mean_similarity(p) for p in x]))
    assert score.value == pytest.approx(np.mean([restated_vendi(p) for p in x]))
    assert score.spread == pytest.approx(np.std([restated_vendi(p) for p in x]))
    assert "5 prompts, 4 pictures each" in str(cosine)
    with pytest.raises(InputError, match=r"\[prompts, n, d\], got \[4, 9\]"):
        in_prompt(x[0], "clip-l-14")


def test_ties_count_half():
    got = win_rate([1.0, 2, 3, 4], [0.0, 2, 5, 1])
    assert (got.rate, got.wins, got.ties, got.losses) == (0.625, 2, 1, 1)
    assert win_rate([1.0, 1.05], [1.0, 1.0], tie=0.1).ties == 2
    assert win_rate([1.0], [0.5], tie=0.1).rate == 1


def test_the_two_sides_add_up_to_one():
    a, b = features(40), features(40, seed=1)
    ours, theirs = win_rate(a, b), win_rate(b, a)
    assert ours.rate + theirs.rate == pytest.approx(1)
    assert ours.low + theirs.high == pytest.approx(1, abs=1e-12)


def test_the_interval_is_that_of_a_share():
    """400 independent pairs, a third won: the normal interval ± 1.96 √(p(1 − p)/n)."""
    won = np.arange(400) % 3 == 0
    got = win_rate(won.astype(float), np.full(400, 0.5))
    p = won.mean()
    half = 1.96 * np.sqrt(p * (1 - p) / 400)
    assert got.low == pytest.approx(p - half, abs=0.005) and got.high == pytest.approx(p + half, abs=0.005)


def test_pictures_of_one_prompt_are_drawn_together():
    """Ten copies of each pair say no more than one: the interval must not shrink."""
    a, b = features(50), features(50, seed=1)
    one, ten = win_rate(a, b), win_rate(np.repeat(a[:, None], 10, 1), np.repeat(b[:, None], 10, 1))
    assert (one.rate, one.low, one.high) == (ten.rate, ten.low, ten.high)
    assert (one.prompts, ten.wins) == (50, 10 * one.wins)
    assert "50 prompts" in str(ten) and str(one).startswith(f"win rate {one.rate:.4f} (")


def test_what_does_not_pair_is_refused():
    with pytest.raises(InputError, match=r"\[3\] against \[4\]"):
        win_rate(np.zeros(3), np.zeros(4))
    with pytest.raises(InputError, match="1 scores are not finite, the first in pair 1"):
        win_rate([0.0, np.nan], [0.0, 0.0])
