"""Fidelity at matched reward on sprouts: what `benchmarks/pareto.py` trained, measured in pictures against the reference itself.

    python benchmarks/pareto.py --config=configs/sprouts.py --workdir=runs/pareto --sweep=didr:1/.5/.25,dipp:1/.5/.25 --seeds=0,1,2
    python benchmarks/sprouts_frontier.py --runs=runs/pareto [--draws=4] [--config=configs/sprouts.py]

Every run's last generator, the initial one and the reference (`--steps` solver steps) draw `--draws` pictures of each caption
of `config.eval.prompts`, all with the same noise; the shipped judge reads them.  What was drawn is kept beside the runs, so that a
repeated call goes on.  The columns: `benchmarks/sprouts_measures.py`.

Intervals are bootstraps over captions and seeds.  "At the same reward": each objective's points, from that without a
reward on (`dmd2`, if it was trained as long; of `refl` the initial generator), in the order of their reward, are joined by lines; the lines of two objectives are compared at five rewards that both
reach, in each bootstrap sample.  The same at the same share of cheerful faces, which is what the reward is about.  Writes frontier.json, frontier.md and frontier.png.
"""

import functools
import json
import os
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from checkout import ROOT
from finished import kept, label_of, saves
from matched_reward import Trained, report, resampled
from ml_collections import config_flags
from sprouts_measures import STUDY, Drawn, Measures

from didr_jax import recipes
from didr_jax.recipes.sprouts import judging
from didr_jax.recipes.text_to_image.benchmark_models import multi_step
from didr_jax.recipes.text_to_image.report import PromptJudge, initial, trained
from didr_jax.text.prompts import read_prompts
from didr_jax.training.evaluation import over_rows
from didr_jax.training.metrics import RunLog
from didr_jax.training.parallel import make_mesh
from didr_jax.training.reports import to_bytes
from didr_jax.training.run import Run, saved_products

_CONFIG = config_flags.DEFINE_config_file("config", str(ROOT / "configs" / "sprouts.py"), "The config that the runs began from.")
_RUNS = flags.DEFINE_string("runs", "runs/pareto", "Folder of finished workdirs, at any depth.")
_DRAWS = flags.DEFINE_integer("draws", 4, "Pictures of a caption, at least 2.", lower_bound=2)
_STEPS = flags.DEFINE_integer("steps", 24, "Solver steps of the reference.")
_SAMPLES = flags.DEFINE_integer("bootstrap", 200, "Bootstrap samples of an interval.")


class Painter:
    """Draws the evaluation captions, each several times, by any generator of the config's number of steps."""

    def __init__(self, config, workdir: str):
        config.unroll = False  # the reference's steps are many, and no convolution is among them
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
        task, size = self.task, self.config.eval.batch_size

        @jax.jit
        def draw(frozen, rows):
            c = task.networks().prepared(frozen, rows["c"])
            x0 = multi_step(task, frozen, rows["z"], c, _STEPS.value, scale=1.0)
            score = task.score(frozen, x0, rows["c"])
            return {"image": task.decode(frozen, x0), "reward": score.total, "clipscore": score.terms["clipscore"]}

        rng, shape = np.random.default_rng(self.config.eval.seed), (self.config.eval.num, *task.networks().event_shape)
        drawn = []
        for judge in self._judges:
            rows = {"z": rng.standard_normal(shape, np.float32), "c": judge.table.everything}
            drawn.append(over_rows(draw, self.frozen, rows, size))
        return self._seen([each["image"] for each in drawn], drawn)

    def _seen(self, images: Sequence[np.ndarray], scores: Sequence[Mapping[str, np.ndarray]]) -> Drawn:
        seen = [judging.seen(self._seer, to_bytes(each)) for each in images]
        columns = [(*pair, score["reward"], score["clipscore"]) for pair, score in zip(seen, scores, strict=True)]
        return Drawn(*(np.stack(column, 1) for column in zip(*columns, strict=True)))


def main(_argv) -> None:
    logging.set_verbosity(logging.WARNING)
    out, base = _RUNS.value, _CONFIG.value

    @functools.cache
    def painter(steps: int) -> Painter:
        config = base.copy_and_resolve_references()
        config.network.generator_steps = steps
        return Painter(config, out)

    def drawn(path: str, draw) -> Drawn:
        return Drawn(**kept(path, lambda: draw()._asdict()))

    path = lambda name: os.path.join(out, f"{name}-{_DRAWS.value}.npz")
    usual = functools.partial(painter, base.network.generator_steps)
    reference = drawn(path("reference"), lambda: usual().reference())
    start = drawn(path("initial"), lambda: usual().generator(initial(usual().task, usual().frozen, usual().run)))
    measure = Measures(reference, read_prompts(base.eval.prompts, base.data.column, base.eval.num))
    runs = []
    for config, workdir, step in saves(out):

        def draw(config=config, workdir=workdir, step=step):
            run = Run(config, workdir, make_mesh(config.mesh), RunLog(workdir))
            products = saved_products(run, str(step))
            brush = painter(config.network.generator_steps)
            return brush.generator(trained(recipes.build(config).task, brush.frozen, products, run))

        pictures = drawn(os.path.join(workdir, f"drawn-{_DRAWS.value}-{step}.npz"), draw)
        label = label_of(config, base, decoded=True)
        runs.append(Trained(label, config.align.beta, step, config.seed, functools.partial(measure, pictures)))
        print(workdir, step, json.dumps(measure(pictures)), flush=True)
    rng, starts = np.random.default_rng(0), dict.fromkeys([run.seed for run in runs], functools.partial(measure, start))
    samples = [resampled(runs, starts, base.eval.num, None)]
    samples += [resampled(runs, starts, base.eval.num, rng) for _ in range(_SAMPLES.value)]
    report(out, runs, measure(reference), samples, STUDY)


if __name__ == "__main__":
    app.run(main)
