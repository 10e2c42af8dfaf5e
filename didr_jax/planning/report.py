"""A plan as a table, with what to change if it does not fit."""

from collections.abc import Sequence

from didr_jax.planning.plan import Plan
from didr_jax.planning.proposals import PROPOSALS, fewest_micro_batches, islands
from didr_jax.training.chips import GIB, Chip
from didr_jax.training.recipe import Advice, Recipe

# What to try when a plan does not fit, whatever the recipe: before its own remedies, and after them.
FIRST = (
    Advice(
        lambda c, p: p.mesh["fsdp"] * p.mesh["tensor"] < p.machine.size,
        "mesh.data=1 mesh.fsdp=-1",
        "splits parameters and optimisers over all devices",
    ),
    Advice(
        lambda c, p: p.batch_size // p.micro_batches > p.mesh["data"] * p.mesh["fsdp"],
        "{stage}.micro_batches={most}",
        "one sample per device at a time",
    ),
    Advice(
        lambda c, p: p.machine.chip is not None and not c.mesh.host,
        'mesh.host=\'("^ema/","/(mu|nu)/")\'',
        "the average and the optimisers' moments wait in the host's memory",
    ),
)
LAST = (Advice(lambda c, p: True, "a larger machine", "every part but the temporaries shrinks with mesh.fsdp"),)

ROOMY = 0.7  # share of a device's memory below which a plan could trade memory for fewer operations


def report(plan: Plan, config, recipe: Recipe) -> str:
    """The text that --mode=compile prints."""
    machine, chip = plan.machine, plan.machine.chip
    lines = [
        f"{machine.name}: {machine.size} × {chip.name if chip else 'device of unknown peak and memory'}, mesh "
        + " ".join(f"{axis}={size}" for axis, size in plan.mesh.items())
        + f", batch {plan.batch_size}, micro_batches {plan.micro_batches}",
        "",
        "memory per device                         GiB",
    ]
    lines += [_row(name, size) for name, size in plan.parts.items() if size]
    if plan.padding:
        lines.append(_row("padding of the compiler's layouts", plan.padding))
    lines.append(_unknown(plan) if plan.temporaries is None else _row("activations and other temporaries", plan.temporaries))
    if plan.program:
        lines.append(_row("the compiled step itself", plan.program))
    if plan.temporaries is None or plan.needed is None:
        lines.append(_row("sum of what is known", sum(plan.parts.values())))
    else:
        lines.append(_row("sum", plan.needed))
    if chip:
        verdict = {True: "fits", False: "does NOT fit", None: "fits without activations"}[plan.fits]
        lines.append(f"{_row('a device has', chip.memory)}   {verdict}")
    if plan.on_host:
        lines.append(_row("of the host's memory besides", plan.on_host))
    if plan.refused:
        lines.append(f"the compiler refused the program: {plan.refused}")
    if plan.fits is False:
        lines += ["", "to make it fit, in this order (--config.…)", *advice((*FIRST, *recipe.remedies, *LAST), plan, config)]
    else:
        if found := advice(PROPOSALS, plan, config):
            lines += ["", "cheaper, one at a time (--config.…)", *found]
        if plan.fits and chip and plan.needed is not None and plan.needed < ROOMY * chip.memory:
            if found := advice(recipe.luxuries, plan, config):
                lines += ["", "there is room (--config.…)", *found]
    lines += ["", *plan.warnings] if plan.warnings else []
    lines += ["", plan.why] if plan.why else []
    lines += ["", f"operations per image  {plan.flops / plan.batch_size / 1e12:.4g} TFLOP, recomputation included"]
    kinds = sorted(plan.operations.items(), key=lambda item: -item[1])
    lines += [f"  {kind:<20}{n / plan.batch_size / 1e12:.4g} TFLOP{_slower(chip, kind)}" for kind, n in kinds if n]
    seconds = plan.step_seconds(config.compile.utilisation)
    if chip and seconds:
        rate = f"{plan.batch_size / seconds:.3g} images/s"
        share = f"{config.compile.utilisation:.0%} of {chip.peak / 1e12:.0f} TFLOP/s per device"
        lines.append(f"step                  {seconds:.3g} s, {rate}, at {share}")
    lines += _communication(plan, seconds)
    if plan.seconds:
        lines.append(f"compiled in           {plan.seconds:.0f} s")
    return "\n".join(lines)


def _communication(plan: Plan, products: float | None) -> list[str]:
    """What devices send to each other, and how long that takes beside `products` seconds of products."""
    if plan.machine.size == 1 or not plan.seconds or plan.refused:
        return []
    if plan.collectives is None:
        return ["communication         not known: the compiler's program is of a form that is not understood"]
    if (found := plan.communication) is None or not products:
        size = sum(c.bytes * c.times for c in plan.collectives)
        return [f"communication         {size / GIB:.3g} GiB pass through a device's collectives"]
    beyond = f", {found.sent_outside / GIB:.3g} GiB beyond its island" if found.sent_outside else ""
    most, least = found.step(products)
    return [
        f"communication         {(found.sent_inside + found.sent_outside) / GIB:.3g} GiB sent by a device{beyond}: "
        f"{found.seconds:.3g} s, {found.seconds / products:.0%} of the products'; a step then takes {least:.3g} s (all of it hidden) to "
        f"{most:.3g} s (none)"
    ]


def advice(rows: Sequence[Advice], plan: Plan, config) -> list[str]:
    """The rows that apply, in their order; lines for the terminal."""
    ways = plan.mesh["data"] * plan.mesh["fsdp"]
    values = {"{stage}": plan.stage, "{most}": str(plan.batch_size // ways), "{attention}": _attention(plan)}
    values |= {"{fewest}": str(fewest_micro_batches(plan)), "{islands}": str(islands(plan))}
    lines = []
    for row in rows:
        if row.applies(config, plan):
            flags = row.flags
            for name, value in values.items():
                flags = flags.replace(name, value)
            lines.append(f"  {flags:<52} {row.effect}")
    return lines


def _attention(plan: Plan) -> str:
    chip = plan.machine.chip
    return "splash" if chip and chip.kind.startswith("TPU") else "cudnn" if chip else "chunked"


def _row(name: str, size: float) -> str:
    return f"  {name:<36}{size / GIB:>8.3f}"


def _slower(chip: Chip | None, kind: str) -> str:
    times = chip.slow.get(kind, 1.0) if chip else 1.0
    return f", at 1/{times:.3g} of the peak" if times != 1 else ""


def _unknown(plan: Plan) -> str:
    why = "the compiler did not say" if plan.refused else "not compiled"
    return f"  {'activations and other temporaries':<36}{'?':>8}   {why}"
