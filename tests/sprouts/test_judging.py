"""Figures of pictures against the truth, on parts that are known because they are made here."""

import numpy as np
import pytest

from didr_jax.recipes.sprouts import judging, parts


@pytest.fixture(scope="module")
def asked():
    rng = np.random.default_rng(0)
    drawn = parts.draw_parts(rng, 4000)
    return drawn, parts.captions(drawn, parts.draw_named(rng, len(drawn), never=("mouth",)))


@pytest.fixture(scope="module")
def features():
    """Of 4,000 pictures; cheerful ones have another mean and another spread."""
    rng = np.random.default_rng(1)
    return rng.standard_normal((4000, 3)) @ rng.standard_normal((3, 3))


def groups_of(features, happy):
    return {kind: (features[happy == kind].mean(0), np.cov(features[happy == kind].T)) for kind in (True, False)}


def test_pictures_drawn_from_the_law_are_as_asked_and_as_even_as_draws_are(asked, features):
    drawn, captions = asked
    happy = parts.cheerful(drawn)
    features = features + 2.0 * happy[:, None]
    found = judging.verdict(drawn, features, captions, groups_of(features, happy))
    assert found["named"] == 1.0
    assert found["cheerful"] == pytest.approx(6 / 11, abs=5 * 0.5 / 4000**0.5)
    # 2n·KL is about χ² with 51 degrees of freedom less what the captions name: mean `sampling_error`, relative deviation .2
    assert found["kl_others"] == pytest.approx(judging.sampling_error(captions), rel=1.0)
    assert found["kl_smiles"] < 0.01 and found["frechet"] == pytest.approx(0, abs=0.01)


def test_one_grin_on_everything_is_told_by_the_smiles_and_not_by_the_others(asked, features):
    drawn, captions = asked
    grin = drawn.copy()
    grin[:, parts.PARTS.index("mouth")] = parts.WORDS["mouth"].index("grin")
    groups = groups_of(features, parts.cheerful(drawn))
    before, after = (judging.verdict(rows, features, captions, groups) for rows in (drawn, grin))
    assert after["cheerful"] == 1.0 and after["kl_smiles"] == pytest.approx(np.log(6))
    assert after["kl_others"] == before["kl_others"] and after["named"] == 1.0


def test_a_wrong_part_counts_where_it_was_named(asked, features):
    drawn, captions = asked
    wrong = drawn.copy()
    ground = parts.PARTS.index("ground")
    wrong[:, ground] = (wrong[:, ground] + 1) % parts.SIZES["ground"]
    told = [parts.read_caption(caption) for caption in captions]
    share = sum("ground" in which for which in told) / sum(map(len, told))
    found = judging.verdict(wrong, features, captions, groups_of(features, parts.cheerful(drawn)))
    assert found["named"] == pytest.approx(1 - share)


def test_captions_with_a_new_pair_are_told_apart(features):
    drawn = parts.draw_parts(np.random.default_rng(2), 2)
    plant, pot = parts.HELD_OUT[0]
    captions = [f"a {plant} in a {pot} pot", "a cactus in a square pot"]
    for row in drawn:
        row[:2] = parts.WORDS["plant"].index("cactus"), parts.WORDS["pot"].index("square")
    found = judging.verdict(drawn, features[:2], captions, groups_of(features, np.arange(4000) % 2 == 0))
    assert found["named_new"] == 0.5 and found["named"] == 0.75  # its plant is right, its pot is not


def test_moments_of_a_mixture_are_those_of_the_pooled_features(features):
    happy = np.arange(4000) < 1500
    features = features + 3.0 * happy[:, None]
    mean, cov = judging.mixed(groups_of(features, happy), 1500 / 4000)
    np.testing.assert_allclose(mean, features.mean(0), rtol=1e-12)
    np.testing.assert_allclose(cov, np.cov(features.T), atol=4e-3)  # variances of 10; 1/(n − 1) of each group, not of all


def test_kl_to_even_is_the_entropy_that_is_missing():
    assert judging.kl_to_even(np.array([0, 0, 1, 1]), 4) == pytest.approx(np.log(2))
    assert np.isnan(judging.kl_to_even(np.array([], int), 4))
