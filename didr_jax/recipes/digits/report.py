"""How the digits run is judged: rewards, Fréchet distances, accuracy, diversity, and pictures.

The Fréchet distance is taken in the feature space of the judge, a classifier that no training stage
uses, to three targets: the held-out real images; those images tilted by the reward, i.e. weighted within
each class by

    w_i = exp(r(x_i, c)/β) / Σ_{j in class c} exp(r(x_j, c)/β),   each class weighing the same     (1)

and the multi-step reference's samples tilted likewise.  The last is the law that DIDR converges to, whatever
the reference learned; between it and the tilted data lies the reference's own error.
"""

from collections.abc import Callable

import jax
import numpy as np

from didr_jax.distances import frechet_distance, moments
from didr_jax.recipes.digits.data import IMAGE, NUM_CLASSES, Annotator, Split
from didr_jax.reporting.curves import curves
from didr_jax.reporting.page import write_report
from didr_jax.reporting.pairs import write_pairs
from didr_jax.rewards.people import Ranked
from didr_jax.rewards.tac import Agreement, agreement
from didr_jax.training.evaluation import Verdict, over_rows
from didr_jax.training.hacking import Tolerance, Watched
from didr_jax.training.reports import picture_grid, save_picture, write_agreements, write_summary
from didr_jax.training.run import Products, Run
from didr_jax.training.startup import is_first_process
from didr_jax.types import PyTree

# How far the judge's figures may fall while the reward rises.  Over a healthy run accuracy wanders by .03 and diversity by 5 %.
WATCHED = Watched("reward", {"accuracy": Tolerance(fall=0.1), "diversity": Tolerance(share=0.1)})
# What a judge reads: its name here, and where the products have it.
READ = {"reference": ("pretrain", "params"), "reward": ("reward", "params"), "judge": ("judge", "params")}


def in_turn(n: int) -> np.ndarray:
    """Every digit equally often, in turn."""
    return np.arange(n, dtype=np.int32) % NUM_CLASSES


def _drawn(recipe, function: Callable, params: PyTree, n: int, shape: tuple[int, ...]) -> np.ndarray:
    """n images of `function(params, z, c)` from the evaluation's noise."""
    z = jax.random.normal(jax.random.key(recipe.config.eval.seed), (n, *shape))
    draw = jax.jit(lambda params, rows: function(params, rows["z"], {"label": rows["label"]}))
    return over_rows(draw, params, {"z": z, "label": in_turn(n)})


def generated(recipe, params: PyTree, n: int) -> np.ndarray:
    """n images `[n, 8, 8, 1]` of a generator."""
    return _drawn(recipe, recipe.generate, params, n, recipe.few_step.noise_shape(IMAGE))


def many_steps(recipe, params: PyTree, n: int) -> np.ndarray:
    """n images of the multi-step reference, from the same noise."""
    return _drawn(recipe, recipe.many_steps, params, n, IMAGE)


class DigitsJudge:
    """Figures of a set of labelled images, with the laws that they are compared to.

    `frozen`: the parameters named in `READ`, on the devices.
    """

    def __init__(self, recipe, frozen):
        self._prefer = jax.jit(lambda params, rows: recipe.prefer(params, rows["x0"], {"label": rows["label"]}))
        self._classify = jax.jit(lambda params, rows: recipe.classify(params, rows["x0"]))
        self._frozen, self._beta = frozen, recipe.config.eval.target_beta or recipe.config.align.beta
        n = recipe.config.eval.samples
        real = recipe.splits[1]
        self.reference = Split(many_steps(recipe, frozen["reference"], n), in_turn(n))
        self._targets = {
            "to_tilted_data": moments(self.features(real.images), self.tilt_weights(real)),
            "to_tilted_reference": moments(self.features(self.reference.images), self.tilt_weights(self.reference)),
            "to_data": moments(self.features(real.images), self.class_weights(real.labels, np.zeros(len(real.labels)))),
        }

    def reward(self, images, labels) -> np.ndarray:
        return over_rows(self._prefer, self._frozen["reward"], {"x0": images, "label": labels})

    def _judged(self, images) -> tuple[np.ndarray, np.ndarray]:
        """The classifier's logits and features."""
        logits, features = over_rows(self._classify, self._frozen["judge"], {"x0": images})
        return np.asarray(logits, np.float64), np.asarray(features, np.float64)

    def features(self, images) -> np.ndarray:
        return self._judged(images)[1]

    @staticmethod
    def class_weights(labels, exponents) -> np.ndarray:
        """softmax of `exponents` within each class, each class weighing 1/10."""
        top = np.full(NUM_CLASSES, -np.inf)
        np.maximum.at(top, labels, exponents)
        within = np.exp(exponents - top[labels])
        return within / np.bincount(labels, within)[labels] / NUM_CLASSES

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
        logits, features = self._judged(images)
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


def in_the_loop(recipe) -> Callable:
    """An evaluator's judge of `align`: the same figures as the table's, and a grid of the same noise every time."""
    made: list[DigitsJudge] = []  # once, with the parameters that the first call brings: they never change

    def judge(products, frozen) -> Verdict:
        if not made:
            made.append(DigitsJudge(recipe, frozen))
        images = generated(recipe, products["generator"], recipe.config.eval.samples)
        return Verdict(made[0].figures(images, in_turn(len(images))), {"digits": grid(images, recipe.config.eval.grid_rows)})

    return judge


def judge_of(recipe, products: Products, run: Run) -> DigitsJudge:
    return DigitsJudge(recipe, run.load({name: products[stage][product] for name, (stage, product) in READ.items()}))


def generator_of(products: Products, run: Run, stage: str) -> PyTree:
    return run.load({"generator": products[stage]["generator"]})["generator"]


def figures(recipe, products: Products, run: Run) -> dict[str, float]:
    """The aligned generator's row."""
    images = generated(recipe, generator_of(products, run, "align"), recipe.config.eval.samples)
    return judge_of(recipe, products, run).figures(images, in_turn(len(images)))


def on_paper(images: np.ndarray) -> np.ndarray:
    """Ink on paper, uint8 `[n, 8, 8]`, of images `[n, 8, 8, 1]` in [-1, 1]."""
    return np.round(255 * (1 - np.clip((images[..., 0] + 1) / 2, 0, 1))).astype(np.uint8)


def grid(images: np.ndarray, rows: int) -> np.ndarray:
    """A picture of the first rows, a column per digit."""
    return picture_grid(on_paper(images[: rows * NUM_CLASSES]), NUM_CLASSES, gap=1, scale=4)


def aligned(recipe, judge: DigitsJudge, prompts: int = 300, pictures: int = 6) -> Agreement:
    """Of the reward with the rule by which preferences were made, on images that it was not trained on."""
    train, real = recipe.splits
    labels, images, utility = Annotator(train, real).rank(np.random.default_rng(recipe.config.eval.seed), prompts, pictures)
    scores = judge.reward(images.reshape(-1, *IMAGE), np.repeat(labels, pictures)).reshape(prompts, pictures)
    rankings = [Ranked(f"digit {label}", ("",) * pictures, each) for label, each in zip(labels, utility, strict=True)]
    return agreement(rankings, list(scores))


def evaluate(recipe, products: Products, run: Run) -> None:
    """summary.json, tac.json, the grids and pairs before and after for the same noise, the curves, report.html.

    Two rows bound what alignment can reach: the training images tilted by (1), and the reference's own
    samples tilted by it, which is the law that DIDR converges to.
    """
    config, judge = recipe.config, judge_of(recipe, products, run)
    n = config.eval.samples
    labels, steps = in_turn(n), recipe.few_step.label
    made = {
        f"reference, {config.eval.reference_steps} steps": judge.reference.images,
        f"{steps}, initial": generated(recipe, generator_of(products, run, "distill"), n),
        f"{steps}, {config.align.objective}": generated(recipe, generator_of(products, run, "align"), n),
    }
    _, before, after = made.values()
    rewards = {
        name: judge.reward(images, labels)
        for name, images in {"reward_before": before, "reward_after": after, "target": judge.reference.images}.items()
    }
    goal = judge.tilt_weights(judge.reference)
    train, real = recipe.splits
    rows = {
        "real, held out": judge.figures(real.images, real.labels),
        "real, training, tilted": judge.figures(train.images, train.labels, judge.tilt_weights(train)),
    }
    rows |= {name: judge.figures(images, labels) for name, images in made.items()}
    rows["reference, tilted"] = judge.figures(judge.reference.images, labels, judge.tilt_weights(judge.reference))
    found = {"reward": aligned(recipe, judge)}
    if is_first_process():
        write_summary(run.workdir, rows, run.log)
        write_agreements(run.workdir, found)
        for file, images in zip(("reference", "before", "after"), made.values(), strict=True):
            save_picture(run.path(f"{file}.png"), grid(images, config.eval.grid_rows))
        captions = [f"digit {label}" for label in labels]
        write_pairs(run.workdir, on_paper(before), on_paper(after), captions, **rewards, target_weights=goal)
        curves(run.workdir)
        write_report(run.workdir)
    run.log.say(f"wrote summary.json, before.png, after.png, reference.png, curves_*.png and report.html to {run.workdir}")


def sample(recipe, products: Products, run: Run) -> None:
    """samples.png: a column per digit, drawn by the aligned generator."""
    n = recipe.config.sample.rows * NUM_CLASSES
    images = generated(recipe, generator_of(products, run, "align"), n)
    path = run.path("samples.png")
    if is_first_process():
        save_picture(path, grid(images, recipe.config.sample.rows))
    run.log.say(f"wrote {path}")
