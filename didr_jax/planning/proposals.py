"""What would make a step that fits cheaper: larger micro-batches, whole copies of the parameters, gathers that stay near.

Parameters that are split over `fsdp` are gathered whole for every pass of every micro-batch, whatever the number of samples
in it.  So the largest micro-batch that fits is the cheapest, and where a device can hold all parameters (adapters of a
frozen base, say) none need be gathered.  Beyond an island each gather would run over the slow links: copies of the
parameters, one for each island, leave only gradients to cross them, once for each micro-batch.
"""

from didr_jax.planning.plan import Plan
from didr_jax.training.recipe import Advice

MARGIN = 0.95  # share of a device's memory that a proposal may fill


def _room(plan: Plan) -> float:
    return MARGIN * plan.machine.chip.memory if plan.machine.chip else 0.0


def _held(plan: Plan, times: float) -> float:
    """Bytes that a device holds between steps if its share of all but the batch were so many times as large."""
    return plan.padding + sum(size * (1 if name == "batch" else times) for name, size in plan.parts.items())


def fewest_micro_batches(plan: Plan) -> int:
    """So many that the largest micro-batches fit; the plan's own number where none larger does, or where it is not known.

    Temporaries are taken to grow with the samples of a device at a time, as activations do; gathered parameters, which do
    not, are among them, so that the answer is on the safe side.
    """
    ways, now = plan.mesh["data"] * plan.mesh["fsdp"], plan.micro_batches
    if not plan.fits or plan.temporaries is None:
        return now
    fits = lambda parts: _held(plan, 1) + plan.temporaries * now / parts + plan.program <= _room(plan)
    divides = lambda parts: plan.batch_size % (parts * ways) == 0
    return next((parts for parts in range(1, now) if divides(parts) and fits(parts)), now)


def copies_fit(plan: Plan) -> bool:
    """Whether every device could hold all that is split over `fsdp` now, beside the temporaries and the program."""
    if not plan.fits or plan.temporaries is None or plan.mesh["fsdp"] == 1:
        return False
    return _held(plan, plan.mesh["fsdp"]) + plan.temporaries + plan.program <= _room(plan)


def islands(plan: Plan) -> int:
    """Of the machine; 1 where it is not known."""
    island = plan.machine.island
    return max(-(-plan.machine.size // island.size), 1) if island else 1


def gathers_leave_islands(plan: Plan) -> bool:
    """Whether parameters are split over more than an island, and one could hold them all by what is known."""
    ways, each = plan.mesh["fsdp"] * plan.mesh["tensor"], plan.machine.size // islands(plan)
    near = _held(plan, ways / each) + (plan.temporaries or 0) + plan.program <= _room(plan)
    return islands(plan) > 1 and ways > each and near


# When a plan fits, or may: the first that applies is the most worth.
PROPOSALS = (
    Advice(
        lambda c, p: copies_fit(p),
        "mesh.data=-1 mesh.fsdp=1",
        "a copy of the parameters on each device: none are gathered, only gradients are summed, once for each micro-batch",
    ),
    Advice(
        lambda c, p: not copies_fit(p) and gathers_leave_islands(p),
        "mesh.data={islands} mesh.fsdp=-1",
        "a copy of the parameters for each island: they are gathered over its own links alone",
    ),
    Advice(
        lambda c, p: fewest_micro_batches(p) < p.micro_batches,
        "{stage}.micro_batches={fewest}",
        "the largest micro-batches that fit, by this plan: parameters are read, and gathered, once for each",
    ),
)
