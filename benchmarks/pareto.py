"""Reward against fidelity: every objective over a sweep of reward strengths, from one initial generator.

    python benchmarks/pareto.py --config=configs/digits.py --workdir=runs/pareto [--sweep=didr:1,dipp:1/.5/.2]

The stages before `align` are trained once (or found finished in the workdir); then each (objective, β)
trains `align` in a workdir of its own and is measured against the same target law, that of
`config.eval.target_beta`.  Writes pareto.json, pareto.md and pareto.png.
"""

import json
import os
import shutil

import matplotlib.pyplot as plt
from absl import app, flags, logging
from ml_collections import config_flags

from didr_jax import recipes
from didr_jax.config import claim_workdir, validate
from didr_jax.metrics import RunLog
from didr_jax.train import train

_CONFIG = config_flags.DEFINE_config_file("config", "configs/digits.py")
_WORKDIR = flags.DEFINE_string("workdir", "runs/pareto", "Where everything goes.")
_SWEEP = flags.DEFINE_string(
    "sweep",
    "didr:2/1/.5,didr@drp:2/1/.5,dipp:2/1/.5/.25,distar:2/1/.5/.25,refl:1",
    "objective[@estimator]:beta/beta/… of each curve, separated by commas.",
)


def variants(sweep: str):
    """(label, objective, estimator or None, beta) of each run of a sweep."""
    for curve in sweep.split(","):
        label, betas = curve.split(":")
        objective, _, estimator = label.partition("@")
        for beta in betas.split("/"):
            yield label, objective, estimator or None, float(beta)


def run_variant(config, base: str, workdir: str, log: RunLog) -> dict[str, float]:
    """Trains `align` from the finished earlier stages of `base`; returns the recipe's figures."""
    for stage in config.stages[:-1]:
        target = os.path.join(workdir, "checkpoints", stage)
        if not os.path.exists(target):
            shutil.copytree(os.path.join(base, "checkpoints", stage), target)
    claim_workdir(config, workdir)
    recipe = recipes.build(config)
    return recipe.figures(train(recipe, config, workdir, log))


def write(workdir: str, rows: list[dict]) -> None:
    with open(os.path.join(workdir, "pareto.json"), "w") as file:
        json.dump(rows, file, indent=1)
    figures = [name for name in rows[0] if name not in ("label", "beta")]
    with open(os.path.join(workdir, "pareto.md"), "w") as file:
        file.write("| objective | β | " + " | ".join(figures) + " |\n|---" * 1 + "|---" * (len(figures) + 1) + "|\n")
        for row in rows:
            cells = " | ".join(f"{row[name]:.4g}" for name in figures)
            file.write(f"| {row['label']} | {row['beta']:g} | {cells} |\n")
    others = [name for name in figures if name != "reward"]
    plot, axes = plt.subplots(1, len(others), figsize=(4 * len(others), 3.4), squeeze=False)
    for axis, name in zip(axes[0], others):
        for label in dict.fromkeys(row["label"] for row in rows):
            curve = [(row["reward"], row[name]) for row in rows if row["label"] == label]
            axis.plot(*zip(*curve), "o-", ms=4, label=label)
        axis.set_xlabel("reward")
        axis.set_title(name)
    axes[0][0].legend(fontsize=7)
    plot.tight_layout()
    plot.savefig(os.path.join(workdir, "pareto.png"), dpi=100)
    plt.close(plot)


def main(_argv) -> None:
    logging.set_verbosity(logging.WARNING)
    config, workdir = _CONFIG.value.copy_and_resolve_references(), _WORKDIR.value
    with config.unlocked():
        config.eval.target_beta = config.eval.target_beta or config.align.beta
    validate(config)
    base = os.path.join(workdir, "base")
    claim_workdir(config, base)
    log = RunLog(base)
    early = config.copy_and_resolve_references()
    with early.unlocked():
        early.stages = config.stages[:-1]
    train(recipes.build(early), early, base, log)
    rows = []
    for label, objective, estimator, beta in variants(_SWEEP.value):
        variant = config.copy_and_resolve_references()
        with variant.unlocked():
            variant.align.objective, variant.align.beta = objective, beta
            if estimator:
                variant.align.estimator = estimator
        where = os.path.join(workdir, f"{label.replace('@', '-')}-{beta:g}")
        os.makedirs(where, exist_ok=True)
        rows.append({"label": label, "beta": beta} | run_variant(variant, base, where, RunLog(where)))
        log.say(json.dumps(rows[-1]))
        write(workdir, rows)


if __name__ == "__main__":
    app.run(main)
