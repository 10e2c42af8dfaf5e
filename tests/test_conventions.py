"""Pair accuracy as each set's own program counts ties, against loops that read as the published programs do."""

import numpy as np
import pytest

from didr_jax.rewards.conventions import CONVENTIONS, best_threshold, by_prompt, inversions, pooled, three_way
from didr_jax.rewards.people import Ranked
from didr_jax.rewards.tac import Scored, agreements
from didr_jax.types import InputError


def rankings_with_ties(n=40, seed=0, source="", pictures=None):
    """Of n prompts: people's ranks and a reward's scores, both with many ties."""
    rng = np.random.default_rng(seed)
    sizes = [pictures or int(rng.integers(2, 7)) for _ in range(n)]
    people = [rng.integers(0, 3, size).astype(float) for size in sizes]
    people[0] = np.arange(sizes[0]) * 1.0  # something is preferred somewhere
    return [Ranked("", ("",) * len(each), each, source) for each in people], [rng.integers(0, 4, size) / 2 for size in sizes]


def each_pair(ranked, scores):
    for i in range(len(scores)):
        for j in range(i + 1, len(scores)):
            yield ranked.people[i], ranked.people[j], scores[i], scores[j]


def right_of_strict(ranked, scores):
    decided = [(a, b, r, s) for a, b, r, s in each_pair(ranked, scores) if a != b]
    return sum((r > s) if a > b else (r < s) for a, b, r, s in decided), len(decided)


def test_imagereward_leaves_out_peoples_ties_and_counts_the_rewards_as_wrong():
    rankings, scores = rankings_with_ties()
    counted = [right_of_strict(*one) for one in zip(rankings, scores, strict=True)]
    assert pooled(rankings, scores) == sum(right for right, _ in counted) / sum(number for _, number in counted)
    assert by_prompt(rankings, scores) == pytest.approx(np.mean([right / number for right, number in counted if number]))
    assert pooled(rankings, [0 * each for each in scores]) == 0


def test_hpdv2_counts_inversions_of_a_strict_ranking():
    rankings, scores = rankings_with_ties()
    shares = []
    for ranked, each in zip(rankings, scores, strict=True):
        places = np.argsort(np.argsort(-each, kind="stable"), kind="stable")  # 0 is best, the first in the file of equals
        ranks = -ranked.people
        n, inverted = len(each), 0
        for i in range(n):
            for j in range(i + 1, n):
                inverted += (places[i] > places[j] and ranks[i] < ranks[j]) or (places[i] < places[j] and ranks[i] > ranks[j])
        shares.append(1 - inverted / (n * (n - 1) / 2))
    assert inversions(rankings, scores) == pytest.approx(np.mean(shares))


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5])
def test_pickscore_has_three_answers_by_a_softmax_and_a_threshold(threshold):
    rankings, scores = rankings_with_ties(pictures=2)
    points = []
    for ranked, (a, b) in zip(rankings, scores, strict=True):
        label = "tie" if ranked.people[0] == ranked.people[1] else int(ranked.people[1] > ranked.people[0])
        p = np.exp([a, b]) / np.exp([a, b]).sum()
        answer = "tie" if abs(p[1] - p[0]) <= threshold else int(p[1] > p[0])
        points.append(1 if label == answer else 0.5 if "tie" in (label, answer) else 0)
    assert three_way(rankings, scores, threshold) == pytest.approx(np.mean(points))


def test_the_threshold_is_the_best_of_the_validation_split_and_is_used_on_the_test():
    """People tie what is close: a threshold above 0 pays, and is found on pictures that are not judged."""
    rng = np.random.default_rng(0)

    def split(n):
        gaps = rng.normal(size=n)
        people = [np.array([1.0, 0.0]) if g > 0.6 else np.array([0.0, 1.0]) if g < -0.6 else np.array([0.5, 0.5]) for g in gaps]
        rankings = [Ranked("", ("", ""), each, "Pick-a-Pic") for each in people]
        return Scored(rankings, {"red": [np.array([g, 0.0]) for g in gaps]})

    test, validation = split(300), split(300)
    chosen = best_threshold(validation.rankings, validation.scores["red"])
    assert 0.2 <= chosen <= 0.4, "tanh(.6/2) = .29"
    without, found = agreements(test)["red"], agreements(test, validation)["red"]
    assert (without.threshold, found.threshold) == (0.0, chosen)
    assert found.published["PickScore"] > 0.95 > without.published["PickScore"]
    with pytest.raises(InputError, match="config.tac.validation is for Pick-a-Pic"):
        agreements(Scored(rankings_with_ties(source="HPDv2")[0], {"red": rankings_with_ties()[1]}), validation)


@pytest.mark.parametrize("source", CONVENTIONS)
def test_every_set_is_told_by_its_own_rules_and_an_unknown_one_by_none(source):
    rankings, scores = rankings_with_ties(source=source, pictures=2)
    found = agreements(Scored(rankings, {"red": scores}))["red"]
    assert found.published == {name: rule(rankings, scores, 0.0) for name, rule in CONVENTIONS[source].items()}
    assert agreements(Scored([each._replace(source="") for each in rankings], {"red": scores}))["red"].published == {}
