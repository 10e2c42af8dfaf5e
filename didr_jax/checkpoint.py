"""Saving and restoring the whole state of a stage, so that nothing trained is lost.

Saves are asynchronous and atomic (orbax writes beside and renames): a process killed at any moment
leaves the previous save intact.
"""

import os

import jax
import orbax.checkpoint as ocp


class Checkpoints:
    """The saves of one stage, under `directory`, numbered by step.

    Args:
      directory: made if missing.
      keep: how many of the newest saves to keep.
    """

    def __init__(self, directory: str, keep: int = 2):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(os.path.abspath(directory), options=options)

    def latest(self) -> int | None:
        """The step of the newest complete save, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state) -> None:
        """Begins to save the state; returns as soon as it has left the devices."""
        self._manager.save(step, args=ocp.args.StandardSave(vars(state)))

    def restore(self, step: int, like):
        """The state saved at `step`, with the structure, dtypes and shardings of the abstract state `like`."""
        return type(like)(**self._manager.restore(step, args=ocp.args.StandardRestore(vars(like))))

    def wait(self) -> None:
        """Blocks until every save that was begun is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self.wait()
        self._manager.close()


def abstract(init, sharding=None):
    """Shapes and dtypes of what `init()` makes, without making it, placed by `sharding`."""
    place = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.eval_shape(init)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), shapes)
