"""Handwritten digits on a laptop: the whole of DIDR, on real images, in minutes.

    pretrain  the class-conditional reference diffusion
    reward    a preference model fitted to comparisons by an annotator who likes legible, bold digits
    judge     a classifier, used only to evaluate
    distill   the generator of one or a few steps, from the reference (no reward)
    align     the same generator, towards the reward-tilted reference

Conditions are `{"label": int [n]}`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from didr_jax.builders import make_few_step, make_schedule
from didr_jax.diffusion import to_x0
from didr_jax.models.dit import MLP, DiT
from didr_jax.objectives import denoising_loss
from didr_jax.recipes.digits import data
from didr_jax.recipes.digits.data import NUM_CLASSES
from didr_jax.recipes.digits.report import Models, evaluate, figures, sample
from didr_jax.training.loop import Recipe
from didr_jax.training.stages import fit_stage, game_stage
from didr_jax.training.step import Networks

IMAGE = (8, 8, 1)


def digits(config) -> Recipe:
    """The recipe of `configs/digits.py`."""
    schedule = make_schedule(config)
    train, held_out = data.load()
    annotator = data.Annotator(train)

    few_step = make_few_step(config, schedule)

    network = DiT(NUM_CLASSES, width=config.network.width, depth=config.network.depth)
    preference = MLP(out=1, width=config.reward.width)
    classifier = MLP(out=NUM_CLASSES, width=config.judge.width, features=config.judge.features)

    def init(module, salt: int, *inputs):
        return module.init(jax.random.fold_in(jax.random.key(config.seed), salt), *inputs)["params"]

    blank, one_hot = jnp.zeros((1, *IMAGE)), jnp.zeros((1, NUM_CLASSES))

    def denoise(params, x_t, t, c):
        return to_x0("v", network.apply({"params": params}, x_t, t, c["label"]), x_t, t, schedule)

    def generate(params, z, c):
        return few_step.sample(lambda params, x_t, t: denoise(params, x_t, t, c), params, z)

    def generate_to_train(params, z, c, i):
        return few_step.train(lambda params, x_t, t: denoise(params, x_t, t, c), params, z, i)

    def prefer(params, x0, c):
        score, _ = preference.apply({"params": params}, x0, jax.nn.one_hot(c["label"], NUM_CLASSES))
        return score[:, 0]

    def classify(params, x0):
        return classifier.apply({"params": params}, x0)

    def pretrain_noise(key, n):
        time_key, noise_key, drop_key = jax.random.split(key, 3)
        return {
            "t": jax.random.uniform(time_key, (n,), minval=0.001, maxval=0.999),
            "eps": jax.random.normal(noise_key, (n, *IMAGE)),
            "drop": jax.random.bernoulli(drop_key, config.pretrain.condition_dropout, (n,)),
        }

    def pretrain_loss(params, frozen, batch, noise):
        c = {"label": jnp.where(noise["drop"], NUM_CLASSES, batch["label"])}
        denoiser = lambda x_t, t: denoise(params, x_t, t, c)
        return denoising_loss(denoiser, schedule, batch["x0"], noise["eps"], noise["t"], "v"), {}

    def reward_loss(params, frozen, batch, noise):
        margin = prefer(params, batch["better"], batch) - prefer(params, batch["worse"], batch)
        return -jax.nn.log_sigmoid(margin), {"agreement": margin > 0}

    def judge_loss(params, frozen, batch, noise):
        logits, _ = classify(params, batch["x0"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return loss, {"accuracy": jnp.argmax(logits, -1) == batch["label"]}

    def labelled(rng, n):
        images, labels = train.draw(rng, n)
        return {"x0": images, "label": labels}

    def any_digit(rng, n):
        return {"label": rng.integers(NUM_CLASSES, size=n).astype(np.int32)}

    def roles(with_reward: bool) -> Networks:
        return Networks(
            schedule=schedule,
            event_shape=IMAGE,
            reference=lambda frozen, x_t, t, c: denoise(frozen["reference"], x_t, t, c),
            ta=denoise,
            generator=generate_to_train,
            few_step=few_step,
            reward=(lambda frozen, x0, c: prefer(frozen["reward"], x0, c)) if with_reward else None,
            unconditional=lambda c: {"label": jnp.full_like(c["label"], NUM_CLASSES)},
        )

    def distill(products):
        reference = products["pretrain"]
        return game_stage(
            "distill", config, roles=roles(with_reward=False), conditions=any_digit,
            init_generator=lambda: reference, init_ta=lambda: reference, frozen={"reference": reference},
        )  # fmt: skip

    def align(products):
        before = products["distill"]
        return game_stage(
            "align", config, roles=roles(with_reward=True), conditions=any_digit,
            init_generator=lambda: before["generator"], init_ta=lambda: before["ta"],
            frozen={"reference": products["pretrain"], "reward": products["reward"]},
        )  # fmt: skip

    models = Models(schedule, few_step, denoise, generate, prefer, classify, train, held_out)
    return Recipe(
        stages={
            "pretrain": lambda products: fit_stage(
                "pretrain", config, init_params=lambda: init(network, 0, blank, jnp.zeros(1), jnp.zeros(1, int)),
                loss=pretrain_loss, data=labelled, draw=pretrain_noise,
            ),
            "reward": lambda products: fit_stage(
                "reward", config, init_params=lambda: init(preference, 1, blank, one_hot),
                loss=reward_loss, data=annotator.compare,
            ),
            "judge": lambda products: fit_stage(
                "judge", config, init_params=lambda: init(classifier, 2, blank),
                loss=judge_loss, data=lambda rng, n: data.shaken(rng, train, n),
            ),
            "distill": distill,
            "align": align,
        },
        figures=lambda products: figures(models, products, config),
        evaluate=lambda products, workdir, log: evaluate(models, products, config, workdir, log),
        sample=lambda products, workdir, log: sample(models, products, config, workdir, log),
    )  # fmt: skip
