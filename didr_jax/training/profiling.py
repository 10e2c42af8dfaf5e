"""A window of steps traced by JAX's profiler, for TensorBoard or Perfetto."""

import os

import jax


class ProfileWindow:
    """Traces `config.profile.steps` steps of one stage into `workdir/profile`.

    Args:
      section: `config.profile`.
      stage: the stage that is running.
      workdir: where the trace goes.
    """

    def __init__(self, section, stage: str, workdir: str):
        wanted = section.stage == stage
        self._start: int = section.first if wanted else -1
        self._stop: int = section.first + section.steps if wanted else -1
        self._directory, self._open = os.path.join(workdir, "profile"), False

    def before(self, nth: int, state) -> None:
        """To be called before the nth step since the (re)start, with the state that it will read."""
        if nth == self._start:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._directory)
            self._open = True
        if nth == self._stop:
            self.close(state)

    def close(self, state) -> None:
        """Ends the trace, once all that was dispatched is done."""
        if self._open:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self._open = False
