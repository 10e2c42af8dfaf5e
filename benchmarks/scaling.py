"""How the cost of an image grows with chips, batch, K, TA updates and size: products and communication, planned.

    python benchmarks/scaling.py --config=zimage --train=lora --out=scaling                # 15 programs, half a minute each
    python benchmarks/scaling.py --config=zimage --train=lora --devices=8 --vary= --out=scaling     # one of them

Every point is one partition of the full-size step (benchmarks/partitioned.py, in a process of its own; nothing is computed,
no accelerator), kept in --out, so that the same command goes on where it was.  --budget ends the partitioning, and table
(scaling.md) and plot (scaling.png) are written after every point from what is there.  Parameters are split over an island
of the machine, and copied for each island.  A point is a bound from below on both sides: products at --utilisation of the
peak, collectives at the full rate of their links (planning/communication.py), none of them hidden or all.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time

from absl import app, flags
from checkout import ROOT

CONFIG = flags.DEFINE_string("config", "zimage", "a module of configs/")
TRAIN = flags.DEFINE_enum("train", "lora", ["lora", "full"], "what is trained of both networks")
MACHINES = flags.DEFINE_list("machines", ["v5e", "v5p", "v6e", "h100"], "rows of didr_jax.planning.targets.ISLANDS")
DEVICES = flags.DEFINE_list("devices", ["1", "8", "64", "256"], "numbers of chips")
ROWS = flags.DEFINE_integer("rows", 1, "samples of a device at a time")
VARY = flags.DEFINE_list(
    "vary", ["rows=2", "rows=4", "K=2", "K=4", "ta=1", "ta=10", "size=512", "size=1536"],
    "points besides, on --at devices: samples of a device at a time, K, TA updates, or the image's side",
)  # fmt: skip
AT = flags.DEFINE_integer("at", 8, "devices of the points of --vary")
UTILISATION = flags.DEFINE_float("utilisation", 0.4, "of the peak, in products")
BUDGET = flags.DEFINE_float("budget", float("inf"), "seconds after which no further program is begun")
OUT = flags.DEFINE_string("out", "scaling", "folder")

AXES = {
    "devices": "chips",
    "rows": "samples of a chip at a time",
    "K": "K of drp",
    "ta": "TA updates",
    "size": "side of the image",
}


@dataclasses.dataclass(frozen=True)
class Point:
    devices: int
    copies: int  # of the parameters
    rows: int
    K: int = 1
    ta: int = 5
    size: int = 1024
    estimator: str = "auto"

    def file(self) -> str:
        words = "-".join(f"{name}{value}" for name, value in vars(self).items())
        return os.path.join(os.path.abspath(OUT.value), f"{CONFIG.value}-{TRAIN.value}-{words}.json")

    def command(self) -> list[str]:
        return [
            sys.executable, os.path.join(ROOT, "benchmarks", "partitioned.py"), f"--config={CONFIG.value}",
            f"--train={TRAIN.value}", f"--devices={self.devices}", f"--data={self.copies}", f"--rows={self.rows}",
            "--micro_batches=1", f"--out={self.file()}", f"align.num_steps={self.K}", f"align.ta_updates={self.ta}",
            f"image.height={self.size}", f"image.width={self.size}", f"align.estimator={self.estimator}",
        ]  # fmt: skip


def points(island) -> dict[str, list[Point]]:
    """By what varies, the points on machines of such islands."""
    split = lambda n: max(n // island.size, 1)
    base = Point(AT.value, split(AT.value), ROWS.value)
    found = {"devices": [Point(int(n), split(int(n)), ROWS.value) for n in DEVICES.value]}
    for name, value in (each.split("=") for each in VARY.value):
        begin = dataclasses.replace(base, estimator="drp") if name == "K" else base  # K is its, `own` has none
        found.setdefault(name, [begin]).append(dataclasses.replace(begin, **{name: int(value)}))
    return {name: sorted(each, key=lambda p, name=name: getattr(p, name)) for name, each in found.items()}


def cost(point: Point, machine: str) -> dict[str, float] | None:
    """Of an image in seconds of one chip: products, communication, and what is sent; None: not counted yet."""
    from didr_jax.planning.communication import communication
    from didr_jax.planning.partitioned import Collective
    from didr_jax.planning.targets import ISLANDS
    from didr_jax.training.chips import CHIPS

    if not os.path.exists(point.file()):
        return None
    with open(point.file()) as file:
        counted = json.load(file)
    rows = (Collective(c["kind"], (), c["bytes"], c["times"], "", tuple(c["group"])) for c in counted["collectives"])
    found = communication(rows, ISLANDS[machine])
    each = counted["devices"] / counted["batch"]
    products = counted["products"] / CHIPS[machine].peak / UTILISATION.value
    most, least = found.step(products)
    return {
        "flops": counted["products"] * each, "ratio": counted["products"] * counted["devices"] / counted["whole"],
        "sent": (found.sent_inside + found.sent_outside) * each,
        "products": products * each, "communication": found.seconds * each, "most": most * each, "least": least * each,
    }  # fmt: skip


def table(wanted: dict[str, dict[str, list[Point]]]) -> str:
    head = "| machine | chips | copies | samples | estimator, K | TA | side | TFLOP/image | of its share | sent, GiB/image | products | communication | share | none hidden | all hidden |"
    lines = [head, "|---|" + "--:|" * (head.count("|") - 2)]
    for machine, groups in wanted.items():
        for point in dict.fromkeys(point for group in groups.values() for point in group):
            if (c := cost(point, machine)) is None:
                continue
            estimator = "`own`" if point.estimator == "auto" else f"`{point.estimator}`, {point.K}"
            where = f"{point.devices} | {point.copies} | {point.rows} | {estimator} | {point.ta} | {point.size}"
            share = c["communication"] / c["products"]
            seconds = f"{c['products']:.3g} | {c['communication']:.3g} | {share:.1%} | {c['most']:.3g} | {c['least']:.3g}"
            lines.append(
                f"| {machine} | {where} | {c['flops'] / 1e12:.4g} | {c['ratio']:.4f} | {c['sent'] / 2**30:.4g} | {seconds} |"
            )
    note = f"{CONFIG.value}, {TRAIN.value}; seconds of one chip for an image, products at {UTILISATION.value:.0%} of the peak; of its share: a chip's products × chips / the program's."
    return f"{note}\n\n" + "\n".join(lines) + "\n"


def plot(wanted: dict[str, dict[str, list[Point]]]) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(name for groups in wanted.values() for name in groups))
    figure, axes = pyplot.subplots(1, len(names), figsize=(3.6 * len(names), 3.4), squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], names, strict=True):
        for i, (machine, groups) in enumerate(wanted.items()):
            known = [(getattr(p, name), c) for p in groups.get(name, []) if (c := cost(p, machine)) is not None]
            if not known:
                continue
            x = [value for value, _ in known]
            axis.plot(x, [c["most"] for _, c in known], "o-", color=f"C{i}", label=f"{machine}: none hidden")
            axis.plot(x, [c["least"] for _, c in known], ".:", color=f"C{i}", label="all hidden")
        axis.set(xlabel=AXES[name])
        if axis.lines:
            axis.set(xscale="log", ylim=(0, 1.08 * max(max(line.get_ydata()) for line in axis.lines)))
            ticks = sorted({value for line in axis.lines for value in line.get_xdata()})
            axis.set_xticks(ticks, [str(value) for value in ticks])
            axis.minorticks_off()
        axis.grid(which="both", lw=0.3)
    axes[0][0].set_ylabel("seconds of one chip for an image")
    if axes[0][0].lines:
        axes[0][0].legend(fontsize=6)
    figure.savefig(os.path.join(OUT.value, "scaling.png"), dpi=110)
    pyplot.close(figure)


def main(_argv):
    from didr_jax.planning.targets import ISLANDS

    os.makedirs(OUT.value, exist_ok=True)
    wanted = {machine: points(ISLANDS[machine]) for machine in MACHINES.value}
    begun = time.monotonic()
    everything = dict.fromkeys(p for groups in wanted.values() for group in groups.values() for p in group)
    for i, point in enumerate(everything, 1):
        if not os.path.exists(point.file()):
            if time.monotonic() - begun > BUDGET.value:
                print(f"the budget is spent; {len(everything) - i + 1} programs are left", flush=True)
                break
            started = time.monotonic()
            done = subprocess.run(
                point.command(), cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
            )
            said = (done.stderr.strip().splitlines() or [""])[-1] if done.returncode else "counted"
            print(f"{i}/{len(everything)} {point}: {said} in {time.monotonic() - started:.0f} s", flush=True)
        with open(os.path.join(OUT.value, "scaling.md"), "w") as file:
            file.write(table(wanted))
        plot(wanted)
    print(table(wanted), flush=True)


if __name__ == "__main__":
    app.run(main)
