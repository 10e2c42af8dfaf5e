"""Handwritten digits on a laptop: the whole of DIDR, on real images, in minutes.

    pretrain  the class-conditional reference diffusion
    reward    a preference model fitted to comparisons by an annotator who likes legible, bold digits
    judge     a classifier, used only to evaluate
    distill   the generator of one or a few steps, from the reference (no reward)
    align     the same generator, towards the reward-tilted reference

Conditions are `{"label": int [n]}`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from didr_jax.builders import make_few_step, make_schedule
from didr_jax.diffusion import to_x0
from didr_jax.models.dit import MLP, DiT
from didr_jax.objectives import denoising_loss
from didr_jax.recipes.digits import report
from didr_jax.recipes.digits.data import IMAGE, NUM_CLASSES, Annotator, load, shaken
from didr_jax.sampling import denoise
from didr_jax.training.evaluation import Evaluator
from didr_jax.training.parallel import made
from didr_jax.training.recipe import Recipe
from didr_jax.training.run import Products, Run
from didr_jax.training.stages import Stage, fit_stage, game_stage
from didr_jax.training.step import Networks
from didr_jax.types import Weights


class Digits(Recipe):
    """The recipe of `configs/digits.py`."""

    free = ("eval", "sample")

    def __init__(self, config):
        self.config = config
        self.schedule = make_schedule(config)
        self.few_step = make_few_step(config, self.schedule)
        self.network = DiT(NUM_CLASSES, width=config.network.width, depth=config.network.depth)
        self.preference = MLP(out=1, width=config.reward.width)
        self.classifier = MLP(out=NUM_CLASSES, width=config.judge.width, features=config.judge.features)
        self.stages = {
            "pretrain": self.pretrain,
            "reward": self.reward,
            "judge": self.judge,
            "distill": self.distill,
            "align": self.align,
        }
        self.modes = {
            "eval": functools.partial(report.evaluate, self),
            "sample": functools.partial(report.sample, self),
        }

    @functools.cached_property
    def splits(self):
        """(training, held-out) images."""
        return load()

    # -------------------------------------------------------------------------------- functions

    def denoise(self, params, x_t, t, c):
        """x̂0 of the diffusion transformer: reference, TA and generator alike."""
        return to_x0("v", self.network.apply({"params": params}, x_t, t, c["label"]), x_t, t, self.schedule)

    def _at(self, c):
        return lambda params, x_t, t: self.denoise(params, x_t, t, c)

    def generate(self, params, z, c):
        """Images of all steps of a generator."""
        return self.few_step.sample(self._at(c), params, z)

    def many_steps(self, params, z, c):
        """Images of the reference by `config.eval.reference_steps` deterministic steps."""
        denoiser = lambda x_t, t: self.denoise(params, x_t, t, c)
        t = jnp.full(z.shape[0], 0.999)
        return denoise(denoiser, self.schedule, z, t, num_steps=self.config.eval.reference_steps, remat=False)

    def prefer(self, params, x0, c):
        """The reward `[b]`: log-odds of preference."""
        score, _ = self.preference.apply({"params": params}, x0, jax.nn.one_hot(c["label"], NUM_CLASSES))
        return score[:, 0]

    def classify(self, params, x0):
        """The judge's (logits, features)."""
        return self.classifier.apply({"params": params}, x0)

    def networks(self, with_reward: bool) -> Networks:
        return Networks(
            schedule=self.schedule,
            event_shape=IMAGE,
            reference=lambda frozen, x_t, t, c: self.denoise(frozen["reference"], x_t, t, c),
            ta=lambda params, frozen, x_t, t, c: self.denoise(params, x_t, t, c),
            generator=lambda params, frozen, z, c, i: self.few_step.train(self._at(c), params, z, i),
            few_step=self.few_step,
            reward=(lambda frozen, x0, c: self.prefer(frozen["reward"], x0, c)) if with_reward else None,
            unconditional=lambda frozen, c: {"label": jnp.full_like(c["label"], NUM_CLASSES)},
        )

    # ----------------------------------------------------------------------------------- stages

    def fresh(self, module, salt: int, *inputs) -> Weights:
        key = jax.random.fold_in(jax.random.key(self.config.seed), salt)
        return made(lambda: module.init(key, *inputs)["params"])

    def pretrain(self, _products: Products) -> Stage:
        dropout = self.config.pretrain.condition_dropout

        def noise(key, n):
            time_key, noise_key, drop_key = jax.random.split(key, 3)
            return {
                "t": jax.random.uniform(time_key, (n,), minval=0.001, maxval=0.999),
                "eps": jax.random.normal(noise_key, (n, *IMAGE)),
                "drop": jax.random.bernoulli(drop_key, dropout, (n,)),
            }

        def loss(params, frozen, batch, noise):
            c = {"label": jnp.where(noise["drop"], NUM_CLASSES, batch["label"])}
            denoiser = lambda x_t, t: self.denoise(params, x_t, t, c)
            return denoising_loss(denoiser, self.schedule, batch["x0"], noise["eps"], noise["t"], "v"), {}

        def labelled(rng, n):
            images, labels = self.splits[0].draw(rng, n)
            return {"x0": images, "label": labels}

        start = self.fresh(self.network, 0, jnp.zeros((1, *IMAGE)), jnp.zeros(1), jnp.zeros(1, int))
        return fit_stage("pretrain", self.config, start=start, loss=loss, data=labelled, draw=noise)

    def reward(self, _products: Products) -> Stage:
        def loss(params, frozen, batch, noise):
            margin = self.prefer(params, batch["better"], batch) - self.prefer(params, batch["worse"], batch)
            return -jax.nn.log_sigmoid(margin), {"agreement": margin > 0}

        start = self.fresh(self.preference, 1, jnp.zeros((1, *IMAGE)), jnp.zeros((1, NUM_CLASSES)))
        return fit_stage("reward", self.config, start=start, loss=loss, data=Annotator(self.splits[0]).compare)

    def judge(self, _products: Products) -> Stage:
        def loss(params, frozen, batch, noise):
            logits, _ = self.classify(params, batch["x0"])
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
            return loss, {"accuracy": jnp.argmax(logits, -1) == batch["label"]}

        start = self.fresh(self.classifier, 2, jnp.zeros((1, *IMAGE)))
        data = lambda rng, n: shaken(rng, self.splits[0], n)
        return fit_stage("judge", self.config, start=start, loss=loss, data=data)

    def distill(self, products: Products) -> Stage:
        reference = products["pretrain"]["params"]
        return self._game("distill", reference, reference, {"reference": reference})

    def align(self, products: Products) -> Stage:
        before = products["distill"]
        frozen = {"reference": products["pretrain"]["params"], "reward": products["reward"]["params"]}
        judge = {"judge": products["judge"]["params"]} if "judge" in products else {}
        evals = {"digits": Evaluator(self.config.eval.every, report.in_the_loop(self), judge, report.WATCHED)} if judge else {}
        return self._game("align", before["generator"], before["ta"], frozen, evals)

    def _game(self, name: str, generator: Weights, ta: Weights, frozen: dict, evals: dict | None = None) -> Stage:
        return game_stage(
            name,
            self.config,
            networks=self.networks(with_reward="reward" in frozen),
            generator=generator,
            ta=ta,
            conditions=lambda rng, n: {"label": rng.integers(NUM_CLASSES, size=n).astype(np.int32)},
            frozen=frozen,
            evals=evals,
        )

    # -------------------------------------------------------------------------------- judgement

    def figures(self, products: Products, run: Run) -> dict[str, float]:
        return report.figures(self, products, run)
