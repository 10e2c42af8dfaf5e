"""How the digits run is judged: rewards, Fréchet distances, accuracy, diversity, and pictures.

The Fréchet distance is taken in the feature space of the judge, a classifier that no training stage
uses, to three targets: the held-out real images; those images tilted by the reward, i.e. weighted within
each class by

    w_i = exp(r(x_i, c)/β) / Σ_{j in class c} exp(r(x_j, c)/β),   each class weighing the same     (1)

and the multi-step reference's samples tilted likewise.  The last is the law that DIDR converges to, whatever
the reference learned; between it and the tilted data lies the reference's own error.
"""

import dataclasses
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from didr_jax.distances import frechet_distance, moments
from didr_jax.few_step import FewStep
from didr_jax.recipes.digits.data import NUM_CLASSES, Split
from didr_jax.sampling import denoise
from didr_jax.schedules import Schedule
from didr_jax.training.metrics import RunLog
from didr_jax.training.reports import curves, image_grid, write_summary


@dataclasses.dataclass(frozen=True)
class Models:
    """The recipe's networks as functions of (parameters, inputs), and its two splits."""

    schedule: Schedule
    few_step: FewStep
    denoise: Callable
    generate: Callable
    prefer: Callable
    classify: Callable
    train: Split
    held_out: Split


def _conditions(n: int) -> dict:
    """Every digit equally often, in turn."""
    return {"label": jnp.arange(n, dtype=jnp.int32) % NUM_CLASSES}


def _noise(config, n: int, shape=(8, 8, 1)):
    return jax.random.normal(jax.random.key(config.eval.seed), (n, *shape))


def generated(models: Models, params, config, n: int) -> np.ndarray:
    """n images `[n, 8, 8, 1]` of a generator, from the evaluation's noise."""
    z = _noise(config, n, models.few_step.noise_shape((8, 8, 1)))
    return np.asarray(jax.jit(models.generate)(params, z, _conditions(n)))


def many_steps(models: Models, params, config, n: int) -> np.ndarray:
    """n images of the reference by `config.eval.reference_steps` deterministic steps, from the same noise."""
    c, t = _conditions(n), jnp.full(n, 0.999)

    def run(params, z):
        denoiser = lambda x_t, t: models.denoise(params, x_t, t, c)
        return denoise(denoiser, models.schedule, z, t, num_steps=config.eval.reference_steps, remat=False)

    return np.asarray(jax.jit(run)(params, _noise(config, n)))


class Judge:
    """Figures of a set of labelled images, with the laws that they are compared to."""

    def __init__(self, models: Models, products: dict, config):
        self._prefer = jax.jit(lambda x, label: models.prefer(products["reward"], x, {"label": label}))
        self._classify = jax.jit(lambda x: models.classify(products["judge"], x))
        self._beta = config.eval.target_beta or config.align.beta
        n = config.eval.samples
        real = models.held_out
        self.reference = Split(many_steps(models, products["pretrain"], config, n), np.asarray(_conditions(n)["label"]))
        self._targets = {
            "to_tilted_data": moments(self.features(real.images), self.tilt_weights(real)),
            "to_tilted_reference": moments(self.features(self.reference.images), self.tilt_weights(self.reference)),
            "to_data": moments(self.features(real.images), self.class_weights(real.labels, np.zeros(len(real.labels)))),
        }

    def reward(self, images, labels) -> np.ndarray:
        return np.asarray(self._prefer(images, labels))

    def features(self, images) -> np.ndarray:
        return np.asarray(self._classify(images)[1], np.float64)

    @staticmethod
    def class_weights(labels, exponents) -> np.ndarray:
        """softmax of `exponents` within each class, each class weighing 1/10."""
        weights = np.zeros(len(labels))
        for c in range(NUM_CLASSES):
            rows = labels == c
            within = np.exp(exponents[rows] - exponents[rows].max())
            weights[rows] = within / within.sum() / NUM_CLASSES
        return weights

    def tilt_weights(self, split: Split) -> np.ndarray:
        """Equation (1)."""
        return self.class_weights(split.labels, self.reward(split.images, split.labels) / self._beta)

    def figures(self, images, labels, weights=None) -> dict[str, float]:
        """The row of a table: all means are weighted by `weights [n]` if they are given.

        reward: mean, in log-odds of preference; to_…: Fréchet distances to the tilted held-out images, the
        tilted reference and the plain held-out images; accuracy: of the judge on the requested digit;
        diversity: mean distance in feature space between two images of one class.
        """
        weights = np.full(len(labels), 1 / len(labels)) if weights is None else weights
        labels = np.asarray(labels)
        logits, features = (np.asarray(output, np.float64) for output in self._classify(images))
        own = moments(features, weights)
        right = np.argmax(logits, -1) == labels
        return {
            "reward": float(weights @ self.reward(images, labels)),
            **{name: frechet_distance(own, target) for name, target in self._targets.items()},
            "accuracy": float(weights @ right),
            "diversity": float(np.mean([_spread(features[labels == c], weights[labels == c]) for c in range(NUM_CLASSES)])),
        }


def _spread(features: np.ndarray, weights: np.ndarray) -> float:
    """Weighted mean distance between two different samples."""
    weights = weights / weights.sum()
    distance = np.linalg.norm(features[:, None] - features[None], axis=-1)
    return float(weights @ distance @ weights / (1 - np.sum(weights**2)))


def figures(models: Models, products: dict, config) -> dict[str, float]:
    """The aligned generator's row."""
    judge = Judge(models, products, config)
    images = generated(models, products["align"]["generator"], config, config.eval.samples)
    return judge.figures(images, _conditions(len(images))["label"])


def evaluate(models: Models, products: dict, config, workdir: str, log: RunLog) -> None:
    """summary.json, the grids before and after for the same noise, and the curves.

    Two rows bound what alignment can reach: the training images tilted by (1), and the reference's own
    samples tilted by it, which is the law that DIDR converges to.
    """
    judge = Judge(models, products, config)
    n = config.eval.samples
    labels = np.asarray(_conditions(n)["label"])
    steps = models.few_step.label
    made = {
        f"reference, {config.eval.reference_steps} steps": judge.reference.images,
        f"{steps}, initial": generated(models, products["distill"]["generator"], config, n),
        f"{steps}, {config.align.objective}": generated(models, products["align"]["generator"], config, n),
    }
    real, train = models.held_out, models.train
    rows = {
        "real, held out": judge.figures(real.images, real.labels),
        "real, training, tilted": judge.figures(train.images, train.labels, judge.tilt_weights(train)),
    }
    rows |= {name: judge.figures(images, labels) for name, images in made.items()}
    rows["reference, tilted"] = judge.figures(judge.reference.images, labels, judge.tilt_weights(judge.reference))
    write_summary(workdir, rows, log)
    show = config.eval.grid_rows * NUM_CLASSES
    for file, images in zip(("reference", "before", "after"), made.values()):
        image_grid(os.path.join(workdir, f"{file}.png"), (images[:show, ..., 0] + 1) / 2, NUM_CLASSES)
    curves(workdir)
    log.say(f"wrote summary.json, before.png, after.png, reference.png and curves_*.png to {workdir}")


def sample(models: Models, products: dict, config, workdir: str, log: RunLog) -> None:
    """samples.png: a column per digit, drawn by the aligned generator."""
    n = config.sample.rows * NUM_CLASSES
    images = generated(models, products["align"]["generator"], config, n)
    path = os.path.join(workdir, "samples.png")
    image_grid(path, (images[..., 0] + 1) / 2, NUM_CLASSES)
    log.say(f"wrote {path}")
