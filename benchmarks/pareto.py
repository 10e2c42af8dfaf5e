"""Reward against fidelity: every objective over a sweep of reward strengths, from one initial generator.

    python benchmarks/pareto.py --config=configs/digits.py --workdir=runs/pareto [--sweep=didr:1,dipp:1/.5/.2]

The stages before `align` are trained once (or found finished in the workdir); then each (objective, β)
trains `align` in a workdir of its own and is measured against the same targets (`config.eval`).  Writes pareto.json, pareto.md and pareto.png.
"""

import json
import os
import shutil

import jax
import matplotlib.pyplot as plt
from absl import app, flags, logging
from checkout import ROOT
from ml_collections import config_flags

from didr_jax import recipes
from didr_jax.saved_config import defaults
from didr_jax.training.claims import compare
from didr_jax.training.loop import train
from didr_jax.training.metrics import RunLog
from didr_jax.training.parallel import make_mesh
from didr_jax.training.run import Run
from didr_jax.training.validate import validate
from didr_jax.training.workdir import make_workdir

_CONFIG = config_flags.DEFINE_config_file("config", str(ROOT / "configs" / "digits.py"), "A recipe file.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/pareto", "Where everything goes.")
_SWEEP = flags.DEFINE_string(
    "sweep",
    "didr:2/1/.5/.25,didr@drp:2/1/.5,dipp:2/1/.5/.25,distar:4/2/1/.5,refl:1#10/1#20/1#40/1#80",
    "objective[@estimator]:beta[#steps]/… of each curve, separated by commas; refl has no beta, its strength is "
    "the number of steps.",
)


def variants(sweep: str):
    """(label, changes to the config's `align` section) of each run of a sweep."""
    for curve in sweep.split(","):
        label, points = curve.split(":")
        objective, _, estimator = label.partition("@")
        for point in points.split("/"):
            beta, _, steps = point.partition("#")
            changes = {"objective": objective, "beta": float(beta)}
            changes |= {"estimator": estimator} if estimator else {}
            yield label, changes | ({"steps": int(steps)} if steps else {})


def run_variant(config, base: str, workdir: str, log: RunLog) -> dict[str, float]:
    """Trains `align` from the finished earlier stages of `base`; returns the recipe's figures."""
    for stage in config.stages[:-1]:
        target = os.path.join(workdir, "checkpoints", stage)
        if not os.path.exists(target):
            shutil.copytree(os.path.join(base, "checkpoints", stage), target)
    run, recipe = begin(config, workdir, log), recipes.build(config)
    products = train(recipe, run)
    with jax.set_mesh(run.mesh):
        return recipe.figures(products, run)


def begin(config, workdir: str, log: RunLog) -> Run:
    claim = compare(config, workdir, recipes.build(config).free, defaults=defaults)
    return Run(config, workdir, make_mesh(config.mesh), log, claim.record)


def write(workdir: str, rows: list[dict]) -> None:
    with open(os.path.join(workdir, "pareto.json"), "w") as file:
        json.dump(rows, file, indent=1)
    figures = [name for name in rows[0] if name not in ("label", "beta", "steps")]
    with open(os.path.join(workdir, "pareto.md"), "w") as file:
        file.write("| objective | β | steps | " + " | ".join(figures) + " |\n" + "|---" * (len(figures) + 3) + "|\n")
        for row in rows:
            cells = " | ".join(f"{row[name]:.4g}" for name in figures)
            file.write(f"| {row['label']} | {row['beta']:g} | {row['steps']} | {cells} |\n")
    others = [name for name in figures if name != "reward"]
    plot, axes = plt.subplots(1, len(others), figsize=(4 * len(others), 3.4), squeeze=False)
    for axis, name in zip(axes[0], others, strict=False):
        for label in dict.fromkeys(row["label"] for row in rows):
            curve = [(row["reward"], row[name]) for row in rows if row["label"] == label]
            axis.plot(*zip(*curve, strict=False), "o-", ms=4, label=label)
        tilted = [row["reward"] for row in rows if row["label"].startswith("didr")]
        top = max(tilted or [row["reward"] for row in rows])  # beside DIDR, collapsed runs leave the picture
        inside = [row[name] for row in rows if row["reward"] <= 1.3 * top]
        axis.set_xlim(min(row["reward"] for row in rows) - 0.1, 1.3 * top)
        axis.set_ylim(0.9 * min(inside), 1.1 * max(inside))
        axis.set_xlabel("reward")
        axis.set_title(name)
    axes[0][0].legend(fontsize=7)
    plot.tight_layout()
    plot.savefig(os.path.join(workdir, "pareto.png"), dpi=100)
    plt.close(plot)


def main(_argv) -> None:
    logging.set_verbosity(logging.WARNING)
    config, workdir = _CONFIG.value.copy_and_resolve_references(), _WORKDIR.value
    if "target_beta" in config.eval:
        config.eval.target_beta = config.eval.target_beta or config.align.beta
    validate(config)
    base = os.path.join(workdir, "base")
    make_workdir(base)
    log = RunLog(base)
    early = config.copy_and_resolve_references()
    with early.unlocked():
        early.stages = config.stages[:-1]
    train(recipes.build(early), begin(early, base, log))
    rows = []
    for label, changes in variants(_SWEEP.value):
        variant = config.copy_and_resolve_references()
        with variant.unlocked():
            variant.align.update(changes)
        name = f"{label.replace('@', '-')}-{variant.align.beta:g}-{variant.align.steps}"
        where = os.path.join(workdir, name)
        os.makedirs(where, exist_ok=True)
        row = {"label": label, "beta": variant.align.beta, "steps": variant.align.steps}
        rows.append(row | run_variant(variant, base, where, RunLog(where)))
        log.say(json.dumps(rows[-1]))
        write(workdir, rows)


if __name__ == "__main__":
    app.run(main)
