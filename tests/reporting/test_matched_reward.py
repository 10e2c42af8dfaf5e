"""Who is better at the same reward, on figures that are known because they are made here."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from digits_measures import Measures, Seen, tilted  # noqa: E402
from matched_reward import Trained, compared, resampled, rows_of  # noqa: E402

ROWS, BETTER = 400, {"fidelity": 1, "distance": -1}


def figures(reward, fidelity):
    """Of ROWS pictures whose every figure has a spread of .1 over rows, the same for all."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(ROWS)

    def of(which):
        mean = float(np.mean(noise if which is None else noise[which]))
        return {"reward": mean + reward, "fidelity": mean + fidelity, "distance": -mean - fidelity}

    return of


def points_of(rng):
    runs = [Trained("dmd2", 1.0, 9, 0, figures(0, 5))]
    runs += [Trained("didr", 1 / r, 9, seed, figures(r, 5 - r + (-1) ** seed)) for r in (1, 2) for seed in (0, 1)]
    runs += [Trained("dipp", 1 / r, 9, 0, figures(r, 5 - 3 * r)) for r in (1, 2, 4)]
    runs += [Trained("refl", 1.0, steps, 0, figures(steps, 4 - steps)) for steps in (1, 2)]
    return resampled(runs, dict.fromkeys((0, 1), figures(0, 4)), ROWS, rng)


def test_points_are_means_over_seeds_and_begin_without_a_reward():
    points = points_of(None)
    fidelity = lambda label: [round(float(point["fidelity"]), 1) for point in points[label]]
    assert fidelity("didr") == [5, 4, 3] and fidelity("dipp") == [5, 2, -1, -7]
    assert fidelity("refl") == [4, 3, 2] and fidelity("dmd2") == [4, 5], "of the initial generator"


def test_two_objectives_are_compared_on_their_lines_where_both_have_been():
    rng = np.random.default_rng(0)
    samples = [points_of(None)] + [points_of(rng) for _ in range(60)]
    found = compared("didr", "dipp", "reward", samples, BETTER)
    for mean, low, high in found.values():
        assert mean == pytest.approx(2.4, abs=0.1)  # 2r on the five rewards .4 to 2 that both reach
        assert low < mean < high and high - low > 1, "seeds differ by 2, so that the mean of two is off by up to 1"
    assert compared("didr", "refl", "reward", samples, BETTER)["distance"][0] == pytest.approx(1, abs=0.1)


def digits(rng, n=2000, shift=0.0):
    label = np.arange(n) % 10
    features = rng.standard_normal((n, 4)) @ np.diag([1, 2, 0.5, 1]) + label[:, None] + shift
    return Seen(features, np.ones(n, bool), features[:, 0] - label, label)


def test_a_law_is_tilted_within_each_class_until_it_has_the_reward():
    law = digits(np.random.default_rng(1))
    weights = tilted(law, 0.8)
    assert weights @ law.reward == pytest.approx(0.8, abs=1e-6)
    assert [weights[law.label == c].sum() for c in range(10)] == pytest.approx([0.1] * 10)
    assert weights @ law.features[:, 1] - 4.5 == pytest.approx(0, abs=0.2), "what the reward does not see stays"
    assert np.sum(tilted(law, 9.0) > 1e-3) <= 20, "beyond its best images there is nothing"


def test_the_reference_has_no_distance_from_itself_and_a_tilt_of_it_none_from_its_tilt():
    rng = np.random.default_rng(2)
    real, reference = digits(rng), digits(rng)
    measure = Measures(real, reference)
    own = measure(reference)
    assert own["to_reference"] == pytest.approx(0, abs=1e-6) and own["to_tilted_reference"] == pytest.approx(0, abs=1e-6)
    assert own["odd"] == pytest.approx(0.01, abs=1e-3) and own["spread"] == pytest.approx(1)
    chosen = rng.choice(len(reference.label), len(reference.label), p=tilted(reference, 0.5))
    found = measure(rows_of(reference, chosen))
    assert found["to_tilted_reference"] < 0.1 < 0.2 < found["to_reference"], "its mean lies .5 away; drawn labels are uneven"
    away = measure(digits(rng, shift=9.0))
    assert away["odd"] > 0.99 and away["to_data"] == pytest.approx(4 * 9.0**2, rel=0.05)
