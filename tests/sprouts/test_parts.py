"""The law of sprouts: captions say what they name, parts are drawn evenly, and the tilted law is what its formula says."""

import doctest
import math

import numpy as np
import pytest

from didr_jax.recipes.sprouts import parts


@pytest.fixture(scope="module")
def drawn():
    return parts.draw_parts(np.random.default_rng(0), 20_000)


def test_a_caption_is_read_back_as_exactly_the_parts_that_it_names(drawn):
    named = parts.draw_named(np.random.default_rng(1), 2000)
    for row, which, sentence in zip(drawn, named, parts.captions(drawn[:2000], named), strict=False):
        told = {part: int(value) for part, value, said in zip(parts.PARTS, row, which, strict=True) if said}
        assert parts.read_caption(sentence) == told, sentence


def test_captions_are_made_of_the_vocabulary(drawn):
    words = {word for row in drawn[:2000] for word in parts.caption(row, parts.PARTS).split()}
    assert words <= set(parts.vocabulary())


def test_no_caption_names_what_it_shall_not(drawn):
    named = parts.draw_named(np.random.default_rng(2), 500, never=("mouth",))
    assert not any("mouth" in parts.read_caption(c) for c in parts.captions(drawn[:500], named))
    assert 0.45 < named[:, :-2].mean() < 0.55  # the others as ever: six standard errors of 2,500 draws are .06


def test_held_out_pairs_are_never_drawn(drawn):
    assert not parts.held_out(drawn).any()
    pair = drawn[:1].copy()
    for part, word in zip(("plant", "pot"), parts.HELD_OUT[0], strict=True):
        pair[0, parts.PARTS.index(part)] = parts.WORDS[part].index(word)
    assert parts.held_out(pair).all()


@pytest.mark.parametrize("part", ["colour", "leaf", "eyes", "mouth", "ground"])
def test_parts_without_held_out_pairs_are_drawn_evenly(drawn, part):
    """Pearson's χ² of 20,000 draws: its mean is s − 1, its standard deviation √(2(s − 1)); five of those."""
    size = parts.SIZES[part]
    chi2 = len(drawn) * size * np.sum((parts.shares(drawn)[part] - 1 / size) ** 2)
    assert chi2 < size - 1 + 5 * math.sqrt(2 * (size - 1))


def test_another_mouth_is_another_and_nothing_else_changes(drawn):
    other = parts.with_other_mouth(np.random.default_rng(3), drawn)
    mouth = parts.PARTS.index("mouth")
    assert (other[:, mouth] != drawn[:, mouth]).all()
    np.testing.assert_array_equal(np.delete(other, mouth, 1), np.delete(drawn, mouth, 1))


@pytest.mark.parametrize("beta", [0.25, 0.5, 3.0])
def test_the_tilted_law_keeps_all_but_the_share_of_cheerful_faces(drawn, beta):
    """By weighing every drawn picture with exp(r/β): its table against the formula."""
    happy = parts.cheerful(drawn)
    weights = np.exp(happy / beta)
    weights /= weights.sum()
    assert weights[happy].sum() == pytest.approx(parts.tilted(happy.mean(), beta), rel=1e-12)
    mouth = parts.column(drawn, "mouth")
    before = np.bincount(mouth[happy], minlength=11) / happy.sum()
    after = np.bincount(mouth, weights * happy, minlength=11) / weights[happy].sum()
    np.testing.assert_allclose(after, before, rtol=1e-9)  # the smiles among themselves


def test_the_examples_in_docstrings_run():
    result = doctest.testmod(parts)
    assert result.attempted > 3 and result.failed == 0
