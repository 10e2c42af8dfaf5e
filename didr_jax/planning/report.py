"""A plan as a table, with what to change if it does not fit."""

from collections.abc import Callable

from didr_jax.planning.plan import Plan
from didr_jax.training.chips import GIB

# What to try when a plan does not fit, mildest first: (applies to (config, plan)?, flags, what it does).
REMEDIES: tuple[tuple[Callable, str, str], ...] = (
    (
        lambda c, p: p.mesh["fsdp"] * p.mesh["tensor"] < p.machine.size,
        "mesh.data=1 mesh.fsdp=-1",
        "splits parameters and optimisers over all devices",
    ),
    (
        lambda c, p: p.batch_size // p.micro_batches > p.mesh["data"] * p.mesh["fsdp"],
        "align.micro_batches={most}",
        "one sample per device at a time",
    ),
    (
        lambda c, p: {c.network.remat, c.network.vae_remat, c.rewards.remat} != {"blocks"},
        "{network.remat,network.vae_remat,rewards.remat}=blocks",
        "recomputes blocks instead of keeping what they compute",
    ),
    (
        lambda c, p: c.network.attention == "xla",
        "network.attention={attention}",
        "never holds the matrix of attention weights",
    ),
    (lambda c, p: c.network.vae_dtype == "float32", "network.vae_dtype=bfloat16", "halves the decoder's activations"),
    (
        lambda c, p: c.align.ta_optimizer.moment_dtype == "float32" and c.network.ta == "full",
        "align.{ta,generator}_optimizer.moment_dtype=bfloat16",
        "first moments in half the bytes",
    ),
    (lambda c, p: c.network.ta == "full", "network.ta=lora", "trains adapters of the frozen base as TA"),
    (lambda c, p: c.network.generator == "full", "network.generator=lora", "trains adapters of the generator"),
    (
        lambda c, p: "full" in (c.network.ta, c.network.generator) and c.align.ta_optimizer.name == "adamw",
        "align.{ta,generator}_optimizer.name=adafactor …b1=0",
        "almost no optimiser state",
    ),
    (
        lambda c, p: "full" in (c.network.ta, c.network.generator) and c.network.param_dtype == "float32",
        "network.param_dtype=bfloat16",
        "half the parameters; loses updates smaller than 1/256 of a weight",
    ),
    (lambda c, p: True, "a larger machine", "every part but the temporaries shrinks with mesh.fsdp"),
)


ROOMY = 0.7  # share of a device's memory below which a plan could trade memory for fewer operations


def report(plan: Plan, config) -> str:
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
    known = plan.temporaries is not None
    lines.append(_row("activations and other temporaries", plan.temporaries) if known else _unknown(plan))
    if plan.program:
        lines.append(_row("the compiled step itself", plan.program))
    needed = plan.needed if known else sum(plan.parts.values())
    lines.append(_row("sum" if known else "sum of what is known", needed))
    if chip:
        verdict = {True: "fits", False: "does NOT fit", None: "fits without activations"}[plan.fits]
        lines.append(f"{_row('a device has', chip.memory)}   {verdict}")
    if plan.refused:
        lines.append(f"the compiler refused the program: {plan.refused}")
    if plan.fits is False:
        lines += ["", "to make it fit, in this order (--config.…)", *remedies(plan, config)]
    elif plan.fits and plan.needed < ROOMY * chip.memory and "blocks" in (config.network.remat, config.rewards.remat):
        lines += ["", "there is room: --config.network.remat=products --config.rewards.remat=products recomputes less"]
    lines += ["", f"operations per image  {plan.flops / plan.batch_size / 1e12:.4g} TFLOP, recomputation included"]
    seconds = plan.step_seconds(config.compile.utilisation)
    if seconds:
        rate = f"{plan.batch_size / seconds:.3g} images/s"
        share = f"{config.compile.utilisation:.0%} of {chip.peak / 1e12:.0f} TFLOP/s per device"
        lines.append(f"step                  {seconds:.3g} s, {rate}, at {share}")
    if plan.seconds:
        lines.append(f"compiled in           {plan.seconds:.0f} s")
    return "\n".join(lines)


def remedies(plan: Plan, config) -> list[str]:
    """What to change, mildest first; lines for the terminal."""
    ways = plan.mesh["data"] * plan.mesh["fsdp"]
    values = {"{most}": str(plan.batch_size // ways), "{attention}": _attention(plan)}
    lines = []
    for applies, flags, effect in REMEDIES:
        if applies(config, plan):
            for name, value in values.items():
                flags = flags.replace(name, value)
            lines.append(f"  {flags:<52} {effect}")
    return lines


def _attention(plan: Plan) -> str:
    chip = plan.machine.chip
    return "splash" if chip and chip.kind.startswith("TPU") else "cudnn" if chip else "chunked"


def _row(name: str, size: float) -> str:
    return f"  {name:<36}{size / GIB:>8.3f}"


def _unknown(plan: Plan) -> str:
    why = "the compiler did not say" if plan.refused else "not compiled"
    return f"  {'activations and other temporaries':<36}{'?':>8}   {why}"
