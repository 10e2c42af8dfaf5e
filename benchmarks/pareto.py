"""Reward against fidelity: every objective over a sweep of reward strengths, from one initial generator.

    python benchmarks/pareto.py --config=configs/digits.py --workdir=runs/pareto [--sweep=didr:1,dipp:1/.5/.2] [--seeds=0,1,2]

The stages before `align` are trained once a seed (or found finished in the workdir); then each (objective, β, seed)
trains `align` in a workdir of its own and is measured against the same targets (`config.eval`).  Repeated after a stop it goes on.
Writes pareto.json (a row a run), pareto.md and pareto.png (means over the seeds, with their standard errors).
"""

import json
import os
import shutil
from collections.abc import Sequence

import jax
import matplotlib.pyplot as plt
import numpy as np
from absl import app, flags, logging
from checkout import ROOT
from matched_reward import right_edge
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
    "objective[+tilt][@estimator]:beta[#steps]/… of each curve, separated by commas; refl has no beta, its strength is "
    "the number of steps.",
)
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Of the runs: each is repeated with every one of them.")


def variants(sweep: str):
    """(label, changes to the config's `align` section) of each run of a sweep."""
    for curve in sweep.split(","):
        label, points = curve.split(":")
        head, _, estimator = label.partition("@")
        objective, _, tilt = head.partition("+")
        fixed = {"objective": objective} | ({"tilt": tilt} if tilt else {}) | ({"estimator": estimator} if estimator else {})
        for point in points.split("/"):
            beta, _, steps = point.partition("#")
            yield label, fixed | {"beta": float(beta)} | ({"steps": int(steps)} if steps else {})


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


POINT = ("label", "beta", "steps")  # of a curve


def over_seeds(rows: Sequence[dict]) -> list[dict]:
    """A row for each (label, β, steps): `runs`, and of every figure (mean, its standard error; nan of a single run)."""
    points: dict[tuple, list[dict]] = {}
    for row in rows:
        points.setdefault(tuple(row[name] for name in POINT), []).append(row)
    merged = []
    for point, runs in points.items():
        values = {name: np.array([run[name] for run in runs], float) for name in runs[0] if name not in (*POINT, "seed")}
        error = lambda x: float(np.std(x, ddof=1) / np.sqrt(len(x))) if len(x) > 1 else float("nan")
        figures = {name: (float(np.mean(x)), error(x)) for name, x in values.items()}
        merged.append(dict(zip(POINT, point, strict=True)) | {"runs": len(runs), "figures": figures})
    return merged


def write(workdir: str, rows: list[dict]) -> None:
    with open(os.path.join(workdir, "pareto.json"), "w") as file:
        json.dump(rows, file, indent=1)
    merged = over_seeds(rows)
    figures = list(merged[0]["figures"])
    cell = lambda mean, error: f"{mean:.4g}" if np.isnan(error) else f"{mean:.4g} ± {error:.2g}"
    with open(os.path.join(workdir, "pareto.md"), "w") as file:
        file.write("| objective | β | steps | runs | " + " | ".join(figures) + " |\n" + "|---" * (len(figures) + 4) + "|\n")
        for row in merged:
            cells = " | ".join(cell(*row["figures"][name]) for name in figures)
            file.write(f"| {row['label']} | {row['beta']:g} | {row['steps']} | {row['runs']} | {cells} |\n")
    others, of = [name for name in figures if name != "reward"], lambda row, name: row["figures"][name]
    plot, axes = plt.subplots(1, len(others), figsize=(4 * len(others), 3.4), squeeze=False)
    for axis, name in zip(axes[0], others, strict=False):
        for label in dict.fromkeys(row["label"] for row in merged):
            curve = [(*of(row, "reward"), *of(row, name)) for row in merged if row["label"] == label]
            x, x_error, y, y_error = np.nan_to_num(np.transpose(curve))
            axis.errorbar(x, y, y_error, x_error, "o-", ms=4, label=label)
        tilted = [of(row, "reward")[0] for row in merged if row["label"].startswith("didr")]
        rewards = [of(row, "reward")[0] for row in merged]
        right = right_edge(tilted or rewards, rewards)
        inside = [of(row, name)[0] for row in merged if of(row, "reward")[0] <= right]
        axis.set_xlim(min(rewards) - 0.1, right)
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
    rows = []
    for seed in map(int, _SEEDS.value):
        config.seed, base = seed, os.path.join(workdir, f"base-{seed}")
        make_workdir(base)
        log, early = RunLog(base), config.copy_and_resolve_references()
        with early.unlocked():
            early.stages = config.stages[:-1]
        if early.stages:  # a recipe that begins from a folder has none before `align`
            train(recipes.build(early), begin(early, base, log))
        for label, changes in variants(_SWEEP.value):
            variant = config.copy_and_resolve_references()
            with variant.unlocked():
                variant.align.update(changes)
            name = f"{label.replace('@', '-')}-{variant.align.beta:g}-{variant.align.steps}-{seed}"
            where = os.path.join(workdir, name)
            os.makedirs(where, exist_ok=True)
            row = {"label": label, "beta": variant.align.beta, "steps": variant.align.steps, "seed": seed}
            rows.append(row | run_variant(variant, base, where, RunLog(where)))
            log.say(json.dumps(rows[-1]))
            write(workdir, rows)


if __name__ == "__main__":
    app.run(main)
