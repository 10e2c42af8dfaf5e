"""A profiler's window, read back: the steps that were asked for, and no others."""

import jax
import jax.numpy as jnp
import pytest
from tiny_runs import tiny

from didr_jax.training.profiling import ProfileWindow


@jax.jit
def update(state):
    return state + 1


def run(workdir, stage="align", total=6, **profile):
    """`total` steps named in the trace by their number, through a window on `align`."""
    section = tiny(profile__stage="align", **{f"profile__{key}": value for key, value in profile.items()}).profile
    window, state = ProfileWindow(section, stage, str(workdir)), jnp.zeros(4)
    for nth in range(total):
        window.before(nth, state)
        with jax.profiler.TraceAnnotation(f"step {nth}"):
            state = update(state)
    window.close(state)
    return window, state


def traced(workdir):
    """Names of the steps in the traces that a run left, a set for each trace."""
    found = []
    for file in sorted((workdir / "profile").rglob("*.xplane.pb")):
        lines = [line for plane in jax.profiler.ProfileData.from_file(str(file)).planes for line in plane.lines]
        found.append({event.name for line in lines for event in line.events if event.name.startswith("step ")})
    return found


@pytest.mark.parametrize("first, steps, wanted", [(2, 2, {"step 2", "step 3"}), (0, 1, {"step 0"})])
def test_the_asked_steps_are_traced_and_no_other(tmp_path, first, steps, wanted):
    run(tmp_path, first=first, steps=steps)
    assert traced(tmp_path) == [wanted]


def test_a_run_that_ends_inside_the_window_leaves_what_it_saw(tmp_path):
    window, state = run(tmp_path, first=4, steps=10)
    assert traced(tmp_path) == [{"step 4", "step 5"}]
    window.close(state)  # again: nothing is open any more
    run(tmp_path / "next", first=0, steps=1)  # and the profiler is free for the next window
    assert traced(tmp_path / "next") == [{"step 0"}]


@pytest.mark.parametrize("stage, first", [("distill", 0), ("align", 100)])
def test_another_stage_and_one_too_short_are_not_traced(tmp_path, stage, first):
    run(tmp_path, stage=stage, first=first, steps=2)
    assert not (tmp_path / "profile").exists()
