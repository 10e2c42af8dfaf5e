"""Fidelity at matched reward on digits: what `benchmarks/pareto.py` trained, image by image, with bootstrap intervals.

    python benchmarks/pareto.py --config=configs/digits.py --workdir=runs/pareto --sweep=dmd2:1,didr+anchored:.5/.25,dipp:1/.6,distar:1,didr:1/.6 --seeds=0,1,2
    python benchmarks/digits_frontier.py --runs=runs/pareto

Every run's last generator, its initial one and the reference draw `config.eval.samples` images with the same noise; the seed's own
judge reads them (what was drawn is kept beside the runs).  The columns: `benchmarks/digits_measures.py`.
Intervals are bootstraps over images and seeds.  Writes frontier.json, frontier.md and frontier.png (`benchmarks/matched_reward.py`).
"""

import functools
import json
import os

import jax
import numpy as np
from absl import app, flags, logging
from checkout import ROOT
from digits_measures import STUDY, Measures, Seen
from finished import kept, label_of, saves
from matched_reward import Trained, report, resampled
from ml_collections import config_flags

from didr_jax import recipes
from didr_jax.recipes.digits import report as digits
from didr_jax.training.metrics import RunLog
from didr_jax.training.parallel import make_mesh
from didr_jax.training.run import Run, saved_products

_CONFIG = config_flags.DEFINE_config_file("config", str(ROOT / "configs" / "digits.py"), "The config that the runs began from.")
_RUNS = flags.DEFINE_string("runs", "runs/pareto", "Folder of finished workdirs, at any depth.")
_SAMPLES = flags.DEFINE_integer("bootstrap", 200, "Bootstrap samples of an interval.")


class Painter:
    """Draws and judges for a run, by the networks that it has kept; reads them when they are first needed."""

    def __init__(self, config, workdir: str, step: int):
        self.recipe, self._step = recipes.build(config), step
        self._run = Run(config, workdir, make_mesh(config.mesh), RunLog(workdir))

    @functools.cached_property
    def _products(self):
        return saved_products(self._run, str(self._step))

    def _seen(self, images: np.ndarray, label: np.ndarray) -> dict[str, np.ndarray]:
        judge, reward = (self._run.load(self._products[stage])["params"] for stage in ("judge", "reward"))
        logits, features = jax.jit(self.recipe.classify)(judge, images)
        preferred = jax.jit(self.recipe.prefer)(reward, images, {"label": label})
        seen = Seen(np.asarray(features, np.float64), np.argmax(logits, -1) == label, np.asarray(preferred, np.float64), label)
        return seen._asdict()

    def real(self) -> dict[str, np.ndarray]:
        return self._seen(self.recipe.splits[1].images, self.recipe.splits[1].labels)

    def reference(self) -> dict[str, np.ndarray]:
        n, params = self.recipe.config.eval.samples, self._run.load(self._products["pretrain"])["params"]
        return self._seen(digits.many_steps(self.recipe, params, n), digits.in_turn(n))

    def generator(self, stage: str) -> dict[str, np.ndarray]:
        n = self.recipe.config.eval.samples
        images = digits.generated(self.recipe, digits.generator_of(self._products, self._run, stage), n)
        return self._seen(images, digits.in_turn(n))


def main(_argv) -> None:
    logging.set_verbosity(logging.WARNING)
    out, runs, starts, references = _RUNS.value, [], {}, []
    measures: dict[int, Measures] = {}
    for config, workdir, step in saves(out):
        painter, seed = Painter(config, workdir, step), config.seed
        initial, aligned = (functools.partial(painter.generator, stage) for stage in ("distill", "align"))
        if seed not in measures:
            draws = {"real": painter.real, "reference": painter.reference, "initial": initial}
            seen = {name: Seen(**kept(os.path.join(out, f"{name}-{seed}.npz"), draw)) for name, draw in draws.items()}
            measures[seed] = Measures(seen["real"], seen["reference"])
            references.append(measures[seed](seen["reference"]))
            starts[seed] = functools.partial(measures[seed], seen["initial"])
        figures = functools.partial(measures[seed], Seen(**kept(os.path.join(workdir, f"drawn-{step}.npz"), aligned)))
        label = label_of(config, _CONFIG.value, decoded=False)
        runs.append(Trained(label, config.align.beta, step, seed, figures))
        print(workdir, step, json.dumps(figures()), flush=True)
    rng, rows = np.random.default_rng(0), len(seen["initial"].label)
    samples = [resampled(runs, starts, rows, None)] + [resampled(runs, starts, rows, rng) for _ in range(_SAMPLES.value)]
    reference = {name: float(np.mean([each[name] for each in references])) for name in references[0]}
    report(out, runs, reference, samples, STUDY)


if __name__ == "__main__":
    app.run(main)
