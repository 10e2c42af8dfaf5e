"""README's snippet, as it stands; and the examples in the docstrings of what a notebook calls."""

import doctest
import importlib
import pathlib
import re

import jax.numpy as jnp
import numpy as np
import pytest

from didr_jax.closed_form import QuadraticReward, exact_diffused_reward_score

README = pathlib.Path(__file__).parent.parent / "README.md"
MODULES = ("schedules", "diffusion", "sampling", "few_step", "diffused_reward", "objectives", "closed_form", "distances")


def test_the_library_snippet_runs_and_its_score_is_exact():
    (snippet,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    names: dict = {}
    exec(snippet, names)
    linear = QuadraticReward(jnp.array([1.0, 0.0]), 0.0, jnp.zeros(2))
    exact = exact_diffused_reward_score(names["law"], linear, names["schedule"], names["x_t"], names["t"], beta=1.0)
    np.testing.assert_allclose(names["drs"], exact, rtol=1e-3, atol=1e-4)  # of a linear reward, to float32's rounding
    assert names["gradient"].shape == (8, 2) and names["figures"]["pull"].shape == (8,)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run(name):
    result = doctest.testmod(importlib.import_module(f"didr_jax.{name}"))
    assert result.attempted > 0 and result.failed == 0
