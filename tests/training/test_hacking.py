"""The alarm for reward hacking: when it is raised, how often in vain, and what a run does about it."""

import contextlib
import io
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import tiny, train_tiny

from didr_jax.exits import Hacked
from didr_jax.training.evaluation import Evaluator, Verdict
from didr_jax.training.hacking import HackingWatch, Tolerance, Watched, fallen, in_words, noise, unharmed
from didr_jax.training.metrics import read_metrics
from didr_jax.training.parallel import held
from didr_jax.training.recipe import Recipe
from didr_jax.training.stages import fit_stage
from didr_jax.training.validate import validate
from didr_jax.types import InputError


def watched(fall=0.0, share=0.0):
    return Watched("reward", {"kept": Tolerance(fall, share)})


def series(rewards, kept):
    return [{"reward": float(r), "kept": float(h)} for r, h in zip(rewards, kept, strict=True)]


def raised_at(rewards, kept, tolerance):
    """The evaluations after which the alarm is up."""
    all_of_them = series(rewards, kept)
    return [k for k in range(len(all_of_them)) if fallen(all_of_them[: k + 1], tolerance)]


# ---------------------------------------------------------------------------------------- the rule


def test_a_steady_fall_under_a_rising_reward_is_told_at_the_fourth_evaluation_and_from_then_on():
    assert raised_at([0, 1, 2, 3, 4, 5], [0.9, 0.8, 0.6, 0.5, 0.4, 0.3], watched(0.1)) == [3, 4, 5]


def test_it_tells_from_where_to_where_both_went():
    (one,) = fallen(series([0, 1, 2, 3], [0.9, 0.8, 0.6, 0.5]), watched(0.1))
    assert one == ("kept", 0.9, 0.5, 0.0, 3.0)
    assert in_words([one]) == ("the reward may be hacked: kept fell from 0.9 to 0.5, while the trained reward rose from 0 to 3")


def test_a_fall_after_a_healthy_rise_is_told_though_the_end_is_above_the_beginning():
    assert raised_at(range(9), [0.1, 0.5, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3], watched(0.15)) == [7, 8]


@pytest.mark.parametrize(
    "rewards, kept",
    [
        pytest.param([0, 1, 2, 3, 4], [0.9, 0.89, 0.88, 0.87, 0.86], id="less than the tolerance"),
        pytest.param([4, 3, 2, 1, 0], [0.9, 0.8, 0.6, 0.5, 0.4], id="the reward falls as well"),
        pytest.param([0, 0, 0, 0, 0], [0.9, 0.8, 0.6, 0.5, 0.4], id="the reward stands"),
        pytest.param([0, 1, 2, 3, 4], [0.9, 0.9, 0.9, 0.9, 0.2], id="one bad evaluation"),
        pytest.param([0, 1, 2, 3, 4], [0.5, 0.6, 0.7, 0.8, 0.9], id="both rise"),
        pytest.param([0, 1, 2], [0.9, 0.5, 0.1], id="three evaluations"),
    ],
)
def test_it_stays_down_where(rewards, kept):
    assert raised_at(rewards, kept, watched(0.1)) == []


def test_a_share_is_of_the_best_and_adds_to_the_fall():
    assert Tolerance(0.5, 0.1).below(-20) == 2.5
    falling = [20, 19, 18.5, 17.9, 17.8]
    assert raised_at(range(5), falling, watched(share=0.1)) == [4]
    assert raised_at(range(5), falling, watched(0.3, 0.1)) == []


def test_evaluations_that_are_not_finite_or_lack_a_figure_do_not_count():
    rewards, kept = [0, 1, math.nan, 2, 3], [0.9, 0.8, 0.7, 0.6, 0.5]
    assert raised_at(rewards, kept, watched(0.1)) == [4]
    gaps = [{"reward": 1.0}, *series([0, 1, 2, 3], [0.9, 0.8, 0.6, 0.5])]
    assert fallen(gaps, watched(0.1)) and not fallen(gaps[:-1], watched(0.1))


def test_its_noise_is_that_of_a_level_course_and_nothing_of_a_steady_one():
    x = np.random.default_rng(0).normal(scale=3.0, size=4001)
    assert noise(x) == pytest.approx(3.0, rel=0.05)
    assert noise([1, 2, 3, 2.9, 1]) < 0.3 and noise([3, 2, 1, 1]) == noise([5.0, -7.0]) == 0


# ---------------------------------------------------------------------------- raised in vain, and missed


def share_of_runs(make, tolerance, runs=80, evaluations=25):
    rng = np.random.default_rng(0)
    return np.mean([bool(raised_at(*make(rng, evaluations), tolerance)) for _ in range(runs)])


RISING = {"straight": lambda k: 20 * np.arange(k) / k, "saturating": lambda k: 20 * (1 - np.exp(-np.arange(k) / 5))}


@pytest.mark.parametrize("course", RISING)
def test_of_noise_under_a_rising_reward_few_runs_raise_it_and_with_a_tolerance_next_to_none(course):
    make = lambda rng, k: (RISING[course](k) + rng.normal(size=k), rng.normal(size=k))
    assert share_of_runs(make, watched(0)) < 0.1
    assert share_of_runs(make, watched(4)) <= 0.02


def test_of_noise_alone_hardly_any_run_raises_it():
    assert share_of_runs(lambda rng, k: rng.normal(size=(2, k)), watched(0)) <= 0.02


def test_what_wanders_less_than_the_tolerance_raises_nothing():
    make = lambda rng, k: (RISING["saturating"](k), 0.1 * np.cumsum(rng.normal(size=k)))
    assert share_of_runs(make, watched(2)) <= 0.01


def test_a_fall_twice_the_tolerance_is_never_missed():
    make = lambda rng, k: (RISING["straight"](k) + rng.normal(size=k), -16 * np.arange(k) / k + rng.normal(size=k))
    assert share_of_runs(make, watched(8)) == 1


# ------------------------------------------------------------------------------------- what is kept


def test_an_evaluation_is_unharmed_while_nothing_is_below_its_best_by_more_than_tolerated():
    good = series([0, 1, 2], [0.9, 0.95, 0.86])
    assert unharmed(good, watched(0.1)) == 2
    assert unharmed([*good, {"reward": 9.0, "kept": 0.84}], watched(0.1)) is None


def test_the_best_state_is_the_unharmed_one_of_the_largest_reward_after_some_training():
    watch = HackingWatch([watched(0.1)])
    marks = [watch.look(step, each)[0] for step, each in enumerate(series([9, 1, 3, 2, 5, 6], [0.9, 0.9, 0.85, 0.9, 0.5, 0.4]))]
    assert watch.best_step == 2
    assert [mark["hacking/kept"] for mark in marks] == [0, 0, 0, 0, 0, 0] and [len(mark) for mark in marks] == [2, 2, 2, 2, 1, 1]


def test_a_run_that_goes_on_knows_what_it_found_before():
    falling = series([0, 1, 2, 3], [0.9, 0.8, 0.6, 0.5])
    whole = HackingWatch([watched(0.1)])
    for step, each in enumerate(falling):
        last = whole.look(step, each)
    again = HackingWatch([watched(0.1)], dict(enumerate(falling[:3])))
    assert again.look(3, falling[3]) == last and last[1] and again.best_step == whole.best_step == 1


# ------------------------------------------------------------------------------------------ in a run

HARM = {0: 1.0, 4: 1.0, 8: 0.9, 12: 0.5, 16: 0.3, 20: 0.2}  # step -> the figure that is kept


class Harmed(Recipe):
    """Three numbers are fitted to zero, judged by made-up figures: the reward rises, and what is kept falls from step 12 on."""

    def __init__(self, config):
        self.config, self.stages = config, {"pretrain": self.pretrain}

    def pretrain(self, _products):
        steps = iter(HARM.items())

        def judge(products, frozen):
            step, kept = next(steps)
            return Verdict({"reward": float(step), "kept": kept})

        made_up = Evaluator(4, judge, watched=Watched("reward", {"kept": Tolerance(0.2)}))
        loss = lambda params, frozen, batch, noise: (jnp.sum((params["x"] - batch["shift"]) ** 2, -1), {})
        return fit_stage(
            "pretrain",
            self.config,
            start=held({"x": jnp.ones(3)}),
            loss=loss,
            data=lambda rng, n: {"shift": rng.normal(size=(n, 3)).astype(np.float32)},
            evals={"made up": made_up},
        )


def harmed(workdir, hacking):
    """(the products, what was said) of a run."""
    config = tiny(stages=("pretrain",), watch__hacking=hacking, checkpoint__keep=1)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        products = train_tiny(workdir, config, Harmed(config))
    return products, said.getvalue()


def marks(workdir):
    return {line["step"]: line["hacking/kept"] for line in read_metrics(str(workdir)) if "hacking/kept" in line}


def saved(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints" / "pretrain").iterdir() if path.name.isdigit())


@pytest.fixture(scope="module")
def warned(tmp_path_factory):
    """(workdir, products, what was said)."""
    workdir = tmp_path_factory.mktemp("warned")
    return workdir, *harmed(workdir, "warn")


def test_it_is_said_and_marked_and_the_run_goes_on(warned):
    workdir, _, said = warned
    assert marks(workdir) == {0: 0, 4: 0, 8: 0, 12: 0, 16: 1, 20: 1}
    assert "16  the reward may be hacked: kept fell from 1 to 0.3, while the trained reward rose from 0 to 16" in said
    assert saved(workdir) == [20]


def test_off_says_and_marks_nothing_and_trains_the_same(warned, tmp_path):
    products, said = harmed(tmp_path, "off")
    assert marks(tmp_path) == {} and "hacked" not in said
    np.testing.assert_array_equal(products["pretrain/params/x"], warned[1]["pretrain/params/x"])


def test_stop_ends_the_run_with_the_newest_and_the_best_state_saved(tmp_path):
    with pytest.raises(Hacked) as stopped:
        harmed(tmp_path, "stop")
    assert stopped.value.code == 76 and "\n" not in str(stopped.value)
    assert "the best state before is the save of step 8" in str(stopped.value)
    assert saved(tmp_path) == [8, 16]
    told = json.loads((tmp_path / "stopped.json").read_text())
    assert told["step"] == 16 and told["message"] == str(stopped.value) and told["not_finite"] == []


def test_what_to_do_is_one_of_three():
    with pytest.raises(InputError, match="watch.hacking"):
        validate(tiny(watch__hacking="panic"))
