"""Plans: what a training step needs of a machine that need not be here (`--mode=compile`).

The step is the one that training runs, on shapes: parameters, optimisers, towers and batch are
`jax.ShapeDtypeStruct`s, spread over the machine's mesh by the same rules.

    parts         bytes that a device holds between steps: arithmetic on shapes and shardings
    temporaries   what the step needs besides (activations, gradients, gathered parameters): XLA's memory
                  analysis of the compiled step
    program       the compiled step itself, which a device keeps in the same memory
    operations    of matrix products and convolutions, counted in the jaxpr by dtype (`flops`), each at the
                  chip's rate for it (`chips`)
    collectives   what devices send to each other: read off the compiled step's text (`partitioned`, `communication`)

A program that is too large is refused by the TPU's compiler, which then says how much it would have taken.
"""

import dataclasses
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from didr_jax.planning.communication import Communication, communication
from didr_jax.planning.compiler_log import caught
from didr_jax.planning.partitioned import Collective, read
from didr_jax.planning.targets import Target
from didr_jax.training import flops
from didr_jax.training.flops import Operations
from didr_jax.training.host_memory import HOST
from didr_jax.training.parallel import (
    AXES,
    ROWS,
    bytes_per_device,
    check_batches,
    make_mesh,
    mesh_sizes,
    shardings,
    state_shardings,
    with_places,
)
from didr_jax.training.recipe import Recipe
from didr_jax.training.run import Finished
from didr_jax.training.stages import Stage
from didr_jax.types import PyTree, Weights


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one step of a stage takes on a machine.

    Attributes:
      stage: its name.
      machine: the target.
      mesh: {axis: size}.
      batch_size, micro_batches: of the stage.
      parts: {name: bytes per device} of all that lives on it between steps.
      on_host: bytes for each device that lie in its host's memory meanwhile (`config.mesh.host`).
      operations: per step, over all devices, of each dtype (`flops.Operations`); recomputation included.
      padding: bytes per device by which the compiler's layouts enlarge the parts.
      temporaries: bytes per device beside the parts; None: not known.
      program: bytes of the compiled step.
      needed: bytes per device in all; None: not known.
      refused: what the compiler said if the program is too large for it; empty: it did not.
      seconds: that the compiler took.
      words, why: what was chosen for the machine, as of `stages.Settled`.
      warnings: lines about what it could not keep in its place (`compiler_log`).
      collectives: of a device in a step; None: not known.
    """

    stage: str
    machine: Target
    mesh: dict[str, int]
    batch_size: int
    micro_batches: int
    parts: dict[str, int]
    operations: Operations
    on_host: int = 0
    padding: int = 0
    temporaries: int | None = None
    program: int = 0
    needed: int | None = None
    refused: str = ""
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    words: Mapping[str, str] = dataclasses.field(default_factory=dict)
    why: str = ""
    collectives: tuple[Collective, ...] | None = None

    @property
    def flops(self) -> float:
        """Operations per step, whatever their dtype."""
        return sum(self.operations.values())

    @property
    def communication(self) -> Communication | None:
        """Of a device in a step; None: not known."""
        collectives, island = self.collectives, self.machine.island
        return None if collectives is None or island is None else communication(collectives, island)

    @property
    def fits(self) -> bool | None:
        """None: not known."""
        room = self.machine.chip.memory if self.machine.chip else None
        if self.refused:
            return False
        if room is None or (self.needed is None and sum(self.parts.values()) < room):
            return None
        return self.needed is not None and self.needed <= room

    def step_seconds(self, utilisation: float) -> float | None:
        """At a given share of the chips' peak for each dtype; None on a machine whose peak is not known."""
        chip = self.machine.chip
        return chip.least_seconds(self.operations) / (self.machine.size * utilisation) if chip else None


def main_stage(recipe: Recipe, config) -> Stage:
    """The last stage of a recipe, made of shapes: of what earlier stages leave it knows no more."""

    def absent(shapes, shardings):
        raise LookupError("a plan loads nothing")

    products = Finished()
    for name in config.stages:
        stage = recipe.stages[name](products)
        products[name] = {key: Weights(shapes, absent) for key, shapes in stage.made_of(stage.shapes).items()}
    return stage


def make_plan(stage: Stage, config, machine: Target, operations: Operations | None = None) -> Plan:
    """Plans a stage.

    Args:
      stage: of `main_stage`; only its shapes and its step are looked at.
      config: for `mesh`, the stage's section and `compile`.
      machine: where it is to run.
      operations: per step, if they are known already.

    Raises:
      InputError: the mesh does not fit the machine, the batch does not fit the mesh, or the machine's compiler is
        not installed.
    """
    only_shapes = config.compile.only_shapes
    # of devices that may not be here
    mesh: Any = _abstract_mesh(config, machine) if only_shapes else make_mesh(config.mesh, machine.devices())
    check_batches(config, mesh)
    arguments: Any = _placed(stage, config, mesh)
    parts = _bytes_of(arguments)
    fields: dict[str, Any] = dict(
        stage=stage.name, machine=machine, mesh=dict(mesh.shape), batch_size=stage.batch_size,
        micro_batches=config[stage.name].micro_batches, parts=parts, on_host=bytes_per_device(arguments, on_host=True),
    )  # fmt: skip
    if operations is None or not only_shapes:
        fields |= stage.settled()._asdict()  # here: among devices that are not here nothing can be computed, not even shapes
    if only_shapes:
        nowhere = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arguments)
        return Plan(**fields, operations=operations or flops.by_dtype(stage.step, *nowhere))

    with jax.set_mesh(mesh):
        traced = stage.compiled(state_shardings(stage.shapes, config, mesh), mesh).trace(*arguments)
        fields["operations"] = flops.count_jaxpr(traced.jaxpr.jaxpr)
        held, start = sum(parts.values()), time.perf_counter()
        try:
            with caught() as log:
                compiled = traced.lower().compile(compiler_options=dict(machine.options))
        except jax.errors.JaxRuntimeError as error:
            refused, needed = refusal(str(error), held)
            if not refused:
                raise
            fields |= dict(refused=refused, needed=needed, temporaries=needed and needed - held)
        else:
            memory = compiled.memory_analysis()
            fields["collectives"] = _collectives(compiled)
            there = memory.argument_size_in_bytes
            temporaries = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
            program = memory.generated_code_size_in_bytes
            fields |= dict(padding=max(there - held, 0), temporaries=temporaries, program=program)
            fields["needed"] = there + temporaries + program
    return Plan(**fields, seconds=time.perf_counter() - start, warnings=tuple(log.lines()))


def held_parts(stage: Stage, config, machine: Target) -> dict[str, int]:
    """{name: bytes per device} of all that lives between steps, by shapes alone."""
    return _bytes_of(_placed(stage, config, _abstract_mesh(config, machine)))


def _abstract_mesh(config, machine: Target) -> AbstractMesh:
    return AbstractMesh(tuple(mesh_sizes(config.mesh, machine.size)), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _bytes_of(placed: tuple[PyTree, PyTree, PyTree]) -> dict[str, int]:
    trees = dict(zip(("state", "frozen", "batch"), placed, strict=True))
    return {name: bytes_per_device(tree) for name, tree in _named(trees).items()}


def _collectives(compiled: jax.stages.Compiled) -> tuple[Collective, ...] | None:
    """Of a device; None: the program's text is not there, or of a form that is not known."""
    try:
        return read(compiled.as_text() or "").collectives
    except (ValueError, KeyError, IndexError, StopIteration, RuntimeError):
        return None


def _placed(stage: Stage, config, mesh) -> tuple[PyTree, PyTree, PyTree]:
    """(state, frozen, batch), abstract, where training would put them."""
    place = lambda tree: with_places(tree, shardings(tree, config, mesh))
    batch = jax.eval_shape(lambda: stage.batch(0)) if stage.batch_shapes is None else stage.batch_shapes
    frozen = {name: weights.shapes for name, weights in stage.frozen.items()}
    rows = NamedSharding(mesh, PartitionSpec(*[None] * stage.batch_axis, ROWS))
    # Devices of a GPU that is only described have no memories, and JAX drops the word without one; a mesh without devices keeps it.
    kept = lambda here, told: told if told.memory_kind == HOST else here
    places = (state_shardings(stage.shapes, config, each) for each in (mesh, mesh.abstract_mesh))
    state = with_places(stage.shapes, jax.tree.map(kept, *places))
    return state, place(frozen), with_places(batch, jax.tree.map(lambda _: rows, batch))


def _named(trees: dict[str, PyTree]) -> dict[str, PyTree]:
    """{name: tree} one level below state and frozen; counters are gathered under one name."""
    named: dict[str, Any] = {"counters": []}
    for kind, tree in trees.items():
        if kind == "batch":
            named[kind] = tree
            continue
        children = tree.items() if isinstance(tree, dict) else vars(tree).items()
        for name, child in children:
            if isinstance(child, jax.ShapeDtypeStruct) and not child.shape:
                named["counters"].append(child)
            else:
                named[f"{kind} {name}"] = child
    return named


def refusal(message: str, held: int = 0) -> tuple[str, int | None]:
    """(the compiler's sentence, bytes it wanted) if it refused a program that holds `held` bytes for its size."""
    if "RESOURCE_EXHAUSTED" not in message:
        return "", None
    line = " ".join(message.split())
    in_bytes = lambda found: int(float(found[1]) * 2 ** (10 * (1 + "KMGT".index(found[2]))))
    size: int | None
    if temporaries := re.search(r"HLO temporaries \(([\d.]+)([KMGT])\)", line):
        size = held + in_bytes(temporaries)
    else:
        used = re.search(r"Used ([\d.]+)([KMGT]) of", line)
        size = in_bytes(used) if used else None
    sentence = re.search(r"(Ran out of memory[^.]*\.(?:[^.]*\d\.\d[^.]*)*)", line)
    return (sentence[1] if sentence else line)[:300], size
