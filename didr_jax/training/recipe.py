"""What a config trains: the recipe, as the engine and the command line see it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from didr_jax.training.run import Products, Run
from didr_jax.training.stages import Stage
from didr_jax.weights.hub import Files

Mode = Callable[[Products, Run], None]


class Advice(NamedTuple):
    """Something to do about a plan.

    `applies(config, plan)`: whether it would change anything; `flags`: what to set, where `{stage}` stands for the stage,
    `{most}` for the largest number of micro-batches, `{fewest}` for the smallest that fits, `{islands}` for the machine's
    number of them, and `{attention}` for its memory-saving attention; `effect`: what it does.
    """

    applies: Callable[[Any, Any], bool]
    flags: str
    effect: str


class Recipe:
    """Base of all recipes.

    Attributes:
      stages: name -> builder `(products of earlier stages) -> Stage`, which reads nothing.
      modes: what else than training can be asked for, name -> `(products, run) -> None`.  Runs in every process,
        under the run's mesh.  `eval` is also how training ends.
      alone: modes that need no trained products, and get none.
      free: sections and keys of the config that do not define what is trained: they may change when a run goes on.
      remedies, luxuries: what can be done about a plan that does not fit, or has room to spare (`planning.report`).
    """

    stages: Mapping[str, Callable[[Products], Stage]]
    modes: Mapping[str, Mode]
    alone: Sequence[str] = ()
    free: Sequence[str] = ()
    remedies: Sequence[Advice] = ()
    luxuries: Sequence[Advice] = ()

    def check(self, mode: str) -> None:
        """Raises InputError for anything that the mode would stumble over later; writes nothing."""

    def files(self, mode: str) -> Mapping[str, Files]:
        """What the mode reads of paths that may be names on the hub, by the config's key; opens nothing."""
        return {}

    def figures(self, products: Products, run: Run) -> dict[str, float]:
        """Of the generator that the last stage left, for sweeps over configs."""
        raise NotImplementedError

    def planned(self) -> "Recipe":
        """The recipe whose stages can be planned without the files that they would read."""
        return self
