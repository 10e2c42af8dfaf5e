"""Fidelity at matched reward on sprouts: what `benchmarks/pareto.py` trained, measured in pictures against the reference itself.

    python benchmarks/pareto.py --config=configs/sprouts.py --workdir=runs/pareto --sweep=didr:1/.5/.25,dipp:1/.5/.25 --seeds=0,1,2
    python benchmarks/sprouts_frontier.py --runs=runs/pareto [--draws=4] [--config=configs/sprouts.py]

Every run's last generator, the initial one and the reference (`--steps` solver steps) draw `--draws` pictures of each caption
of `config.eval.prompts`, all with the same noise; the shipped judge reads them.  What was drawn is kept beside the runs, so that a
repeated call goes on.  Beside `named`, `named_new`, `kl_others` and `kl_smiles` (`didr_jax/recipes/sprouts/judging.py`), of the judge's features:

    to_data      Fréchet distance to data with the same share of cheerful faces
    to_reference the same to the reference's pictures: 0 for its tilted law, whatever the strength
    odd          share of pictures further (Mahalanobis, from the nearer of faces that are cheerful and that are not)
                 from the reference's than 99 % of its own: .01 for its tilted law
    spread       mean squared distance of two pictures of a caption, of the reference's: 1 for its law

Intervals are bootstraps over captions and seeds.  "At the same reward": each objective's points, from that without a
reward on (`dmd2`, if it was trained as long; of `refl` the initial generator), in the order of their reward, are joined by lines; the lines of two objectives are compared at five rewards that both
reach, in each bootstrap sample.  The same at the same share of cheerful faces, which is what the reward is about.  Writes frontier.json, frontier.md and frontier.png.
"""

import functools
import glob
import json
import os
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from checkout import ROOT
from matched_reward import INITIAL, Drawn, Measures, Trained, report, resampled
from ml_collections import config_flags

from didr_jax import recipes
from didr_jax.diffused_reward import resolve
from didr_jax.objectives import OBJECTIVES
from didr_jax.recipes.sprouts import judging
from didr_jax.recipes.text_to_image.report import PromptJudge, initial, trained
from didr_jax.sampling import denoise
from didr_jax.saved_config import get_config
from didr_jax.text.prompts import read_prompts
from didr_jax.training.evaluation import over_rows
from didr_jax.training.metrics import RunLog
from didr_jax.training.parallel import make_mesh
from didr_jax.training.reports import to_bytes
from didr_jax.training.run import Run, saved_products
from didr_jax.training.step import bind
from didr_jax.training.workdir import CONFIG
from didr_jax.whole_files import whole_file

_CONFIG = config_flags.DEFINE_config_file("config", str(ROOT / "configs" / "sprouts.py"), "The config that the runs began from.")
_RUNS = flags.DEFINE_string("runs", "runs/pareto", "Folder of finished workdirs, at any depth.")
_DRAWS = flags.DEFINE_integer("draws", 4, "Pictures of a caption, at least 2.", lower_bound=2)
_STEPS = flags.DEFINE_integer("steps", 24, "Solver steps of the reference.")
_SAMPLES = flags.DEFINE_integer("bootstrap", 200, "Bootstrap samples of an interval.")

FIRST = 0.999  # time at which the reference's steps begin
REFERENCE = "reference"


class Painter:
    """Draws the evaluation captions, each several times, by any generator of the config's shape."""

    def __init__(self, config, workdir: str):
        self.task, self.config = recipes.build(config).task, config
        self.run = Run(config, workdir, make_mesh(config.mesh), RunLog(workdir))
        self._judges = [PromptJudge(self.task, config.eval.num, config.eval.seed + i) for i in range(_DRAWS.value)]
        self.frozen = self.run.load(self._judges[0].weights | self.task.frozen())
        self._seer = judging.read_judge(judging.SHIPPED / "judge")[0].cast(jnp.float32).load()

    def generator(self, generator) -> Drawn:
        """By (parameters, adapter)."""
        drawn = [judge.run(self.frozen, generator) for judge in self._judges]
        return self._seen([images for images, _ in drawn], [scores for _, scores in drawn])

    def reference(self) -> Drawn:
        networks, task, size = self.task.networks(), self.task, self.config.eval.batch_size

        @jax.jit
        def draw(frozen, rows):
            c = networks.prepared(frozen, rows["c"])
            denoiser = bind(networks, frozen, frozen["base"], c, 1.0).reference
            x0 = denoise(
                denoiser, networks.schedule, rows["z"], jnp.full(len(rows["z"]), FIRST), num_steps=_STEPS.value, remat=False
            )
            score = task.score(frozen, x0, rows["c"])
            return {"image": task.decode(frozen, x0), "reward": score.total, "clipscore": score.terms["clipscore"]}

        rng, n = np.random.default_rng(self.config.eval.seed), self.config.eval.num
        drawn = []
        for judge in self._judges:
            rows = {"z": rng.standard_normal((n, *networks.event_shape), np.float32), "c": judge.table.everything}
            drawn.append(over_rows(draw, self.frozen, rows, size))
        return self._seen([each["image"] for each in drawn], drawn)

    def _seen(self, images: Sequence[np.ndarray], scores: Sequence[Mapping[str, np.ndarray]]) -> Drawn:
        seen = [judging.seen(self._seer, to_bytes(each)) for each in images]
        columns = [(*pair, score["reward"], score["clipscore"]) for pair, score in zip(seen, scores, strict=True)]
        return Drawn(*(np.stack(column, 1) for column in zip(*columns, strict=True)))


def kept(path: str, draw: Callable[[], Drawn]) -> Drawn:
    """What `path` holds; drawn and written first if it is not there."""
    if not os.path.exists(path):
        with whole_file(path, binary=True) as file:
            np.savez(file, **draw()._asdict())
    with np.load(path) as file:
        return Drawn(**file)


def saves(folder: str):
    """(config, workdir, step) of each finished run there; of `refl`, whose strength is the number of its steps, all that it kept."""
    for path in sorted(glob.glob(os.path.join(folder, "**", CONFIG), recursive=True)):
        config, workdir = get_config(path), os.path.dirname(path)
        stage = config.stages[-1]
        kept_steps = sorted(
            int(os.path.basename(each)) for each in glob.glob(os.path.join(workdir, "checkpoints", stage, "[0-9]*"))
        )
        if config[stage].steps in kept_steps:
            for step in kept_steps if config.align.objective == "refl" else kept_steps[-1:]:
                yield config, workdir, step


def label_of(align, base) -> str:
    """The objective; of `didr` also its estimator, and its target and its range of times where they are not `base`'s."""
    label = align.objective
    if not OBJECTIVES[label].estimates:
        return label
    label += f"@{resolve(align.estimator, decoded=True)}"
    if align.tilt != base.tilt:
        label += f" {align.tilt}, t0={align.tilt_t0:g}"
    return label + (f" t<{align.generator_t_max:g}" if align.generator_t_max != base.generator_t_max else "")


def main(_argv) -> None:
    logging.set_verbosity(logging.WARNING)
    out = _RUNS.value
    painter = functools.cache(lambda: Painter(_CONFIG.value.copy_and_resolve_references(), out))
    path = lambda name: os.path.join(out, f"{name}-{_DRAWS.value}.npz")
    reference = kept(path(REFERENCE), lambda: painter().reference())
    start = kept(path(INITIAL), lambda: painter().generator(initial(painter().task, painter().frozen, painter().run)))
    config = _CONFIG.value
    measure = Measures(reference, read_prompts(config.eval.prompts, config.data.column, config.eval.num))
    runs = []
    for config, workdir, step in saves(out):

        def draw(config=config, workdir=workdir, step=step):
            run = Run(config, workdir, make_mesh(config.mesh), RunLog(workdir))
            products = saved_products(run, str(step))
            return painter().generator(trained(recipes.build(config).task, painter().frozen, products, run))

        drawn = kept(os.path.join(workdir, f"drawn-{_DRAWS.value}-{step}.npz"), draw)
        align, label = config.align, label_of(config.align, _CONFIG.value.align)
        runs.append(Trained(label, align.beta, step, config.seed, drawn))
        print(workdir, step, json.dumps(measure(drawn)), flush=True)
    rng = np.random.default_rng(0)
    samples = [resampled(runs, start, measure, None)]
    samples += [resampled(runs, start, measure, rng) for _ in range(_SAMPLES.value)]
    report(out, runs, measure(reference), samples)


if __name__ == "__main__":
    app.run(main)
