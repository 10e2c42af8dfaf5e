"""Who is better at the same reward, on figures that are known because they are made here."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "matched_reward.py"
SPEC = importlib.util.spec_from_file_location("matched_reward", PATH)
matched_reward = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(matched_reward)


def drawn(reward, fidelity, n=400):
    """Of n captions pictures whose reward and whose every figure have a spread of .1 over captions, the same for all."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(n)
    return matched_reward.Drawn(noise + fidelity, noise + fidelity, noise + reward, noise)


def measure(pictures, which):
    pictures = pictures.rows(which)
    reward, fidelity = np.mean(pictures.reward), np.mean(pictures.parts)
    return {"reward": reward, "cheerful": reward} | {name: sign * fidelity for name, sign in matched_reward.BETTER.items()}


def points_of(rng):
    run = matched_reward.Trained
    runs = [run("dmd2", 1.0, 9, 0, drawn(0, 5))]
    runs += [run("didr", 1 / r, 9, seed, drawn(r, 5 - r + (-1) ** seed)) for r in (1, 2) for seed in (0, 1)]
    runs += [run("dipp", 1 / r, 9, 0, drawn(r, 5 - 3 * r)) for r in (1, 2, 4)]
    runs += [run("refl", 1.0, steps, 0, drawn(steps, 4 - steps)) for steps in (1, 2)]
    return matched_reward.resampled(runs, drawn(0, 4), measure, rng)


def test_points_are_means_over_seeds_and_begin_without_a_reward():
    points = points_of(None)
    fidelity = lambda label: [round(float(point["named"]), 1) for point in points[label]]
    assert fidelity("didr") == [5, 4, 3] and fidelity("dipp") == [5, 2, -1, -7]
    assert fidelity("refl") == [4, 3, 2] and fidelity("dmd2") == [4, 5], "of the initial generator"


def test_two_objectives_are_compared_on_their_lines_where_both_have_been():
    rng = np.random.default_rng(0)
    samples = [points_of(None)] + [points_of(rng) for _ in range(60)]
    found = matched_reward.compared("didr", "dipp", "reward", samples)
    for mean, low, high in found.values():
        assert mean == pytest.approx(2.4, abs=0.1)  # 2r on the five rewards .4 to 2 that both reach
        assert low < mean < high and high - low > 1, "seeds differ by 2, so that the mean of two is off by up to 1"
    assert matched_reward.compared("didr", "refl", "cheerful", samples)["odd"][0] == pytest.approx(1, abs=0.1)
