"""A step's programs: one for each shape of a batch, each compiled once and said."""

import jax
import numpy as np

from didr_jax.training.metrics import Progress, RunLog
from didr_jax.training.programs import Programs


def test_each_shape_is_compiled_once_and_every_one_but_the_first_is_said(tmp_path):
    traced, said = [], []

    @jax.jit
    def step(state, frozen, batch):
        traced.append(batch.shape)
        return state + (batch @ frozen).sum(), {"rows": batch.shape[0]}

    progress = Progress(RunLog(str(tmp_path)), "align", "align", first=0, total=5, batch_size=1)
    least = lambda operations: sum(operations.values()) / 100
    programs = Programs(step, least, progress, said.append, "align")
    frozen, state, took = np.ones((4, 3), np.float32), np.float32(0), []
    for rows in (2, 2, 5, 2, 5):
        state, metrics = programs(state, frozen, np.ones((rows, 4), np.float32))
        assert metrics == {"rows": rows}
        took.append(progress.least)
    assert traced == [(2, 4), (5, 4)]
    assert said == ["align  a batch of another shape, 2 of them now: compiling for it"]
    assert state == (2 + 2 + 5 + 2 + 5) * 4 * 3
    np.testing.assert_allclose(took, np.array([2, 2, 5, 2, 5]) * 2 * 4 * 3 / 100)  # of the shape that just ran
