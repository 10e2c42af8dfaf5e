"""A Gaussian mixture in the plane with a quadratic reward: everything is known in closed form.

    pretrain  a small network learns the mixture's denoiser; it is where the TA starts
    distill   the one-step generator learns the reference (no reward)
    align     the generator learns the reward-tilted law p*

The reference of `distill` and `align` is the exact posterior mean, so what the run measures is the
objective and its estimator alone: the energy distance to p*, the reward, KL(p_θ ‖ p_ref), and the error
of the diffused reward score against its exact value.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np

from didr_jax import closed_form
from didr_jax.builders import make_schedule
from didr_jax.diffused_reward import diffused_reward_score
from didr_jax.diffusion import add_noise, signal_and_noise, to_x0
from didr_jax.distances import energy_distance, knn_entropy
from didr_jax.models.dit import PointNet
from didr_jax.objectives import Objective, denoising_loss
from didr_jax.training.loop import Recipe
from didr_jax.training.metrics import RunLog
from didr_jax.training.reports import curves, scatter, write_summary
from didr_jax.training.stages import fit_stage, game_stage
from didr_jax.training.step import Networks


def mixture(config) -> Recipe:
    """The recipe of `configs/mixture.py`; the law and the reward are `config.law` and `config.reward`."""
    schedule = make_schedule(config)
    reference = closed_form.GaussianMixture.of(config.law.means, config.law.std)
    reward = closed_form.QuadraticReward(
        jnp.asarray(config.reward.slope), config.reward.curvature, jnp.asarray(config.reward.center)
    )
    targets = {beta: reference.tilt(reward, beta) for beta in config.eval.target_betas}
    network = PointNet(config.network.width, config.network.depth)
    exact = reference.denoiser(schedule)

    def denoise(params, x_t, t, c):
        return to_x0("v", network.apply({"params": params}, x_t, t), x_t, t, schedule)

    def generate(params, z, c, i):
        return config.network.spread * z + network.apply({"params": params}, z, jnp.ones(z.shape[0]))

    def init_network(salt: int):
        key = jax.random.fold_in(jax.random.key(config.seed), salt)
        return network.init(key, jnp.zeros((1, 2)), jnp.zeros(1))["params"]

    def roles(with_reward: bool) -> Networks:
        return Networks(
            schedule=schedule,
            event_shape=(2,),
            reference=lambda frozen, x_t, t, c: exact(x_t, t),
            ta=denoise,
            generator=generate,
            reward=(lambda frozen, x0, c: reward(x0)) if with_reward else None,
        )

    def pretrain_noise(key, n):
        noise_key, time_key = jax.random.split(key)
        t = jax.random.uniform(time_key, (n,), minval=0.001, maxval=0.999)
        return {"eps": jax.random.normal(noise_key, (n, 2)), "t": t}

    def pretrain_loss(params, frozen, batch, noise):
        denoiser = lambda x_t, t: denoise(params, x_t, t, None)
        return denoising_loss(denoiser, schedule, batch["x0"], noise["eps"], noise["t"], "v"), {}

    def points(rng, n):
        means = np.asarray(config.law.means, np.float32)
        x0 = means[rng.integers(len(means), size=n)] + config.law.std * rng.standard_normal((n, 2))
        return {"x0": x0.astype(np.float32)}

    def no_conditions(rng, n):
        return {"none": np.zeros(n, np.float32)}

    def samples(products, stage: str, n: int) -> np.ndarray:
        z = jax.random.normal(jax.random.key(config.eval.seed), (n, 2))
        return np.asarray(jax.jit(generate)(products[stage]["generator"], z, None, None))

    def figures_of(cloud: np.ndarray) -> dict[str, float]:
        """Mean reward, KL(p_θ ‖ p_ref) in nats from a nearest-neighbour entropy, energy distance to each p*."""
        row = {
            "reward": float(jnp.mean(reward(cloud))),
            "kl_to_reference": -knn_entropy(cloud) - float(jnp.mean(reference.log_prob(cloud))),
        }
        truths = {beta: law.sample(jax.random.key(config.eval.seed + 1), len(cloud)) for beta, law in targets.items()}
        return row | {f"energy_to_beta_{beta:g}": energy_distance(cloud, np.asarray(x)) for beta, x in truths.items()}

    def figures(products) -> dict[str, float]:
        return figures_of(samples(products, "align", config.eval.samples))

    def evaluate(products, workdir: str, log: RunLog) -> None:
        n = config.eval.samples
        fresh = jax.random.key(config.eval.seed + 2)
        clouds = {"reference": reference.sample(fresh, n), "one-step initial": samples(products, "distill", n)}
        clouds[config.align.objective] = samples(products, "align", n)
        clouds |= {f"tilted law, beta {beta:g}": law.sample(fresh, n) for beta, law in targets.items()}
        clouds = {name: np.asarray(cloud) for name, cloud in clouds.items()}
        write_summary(workdir, {name: figures_of(cloud) for name, cloud in clouds.items()}, log)
        scatter(os.path.join(workdir, "samples.png"), clouds)
        curves(workdir)

    def sample(products, workdir: str, log: RunLog) -> None:
        path = os.path.join(workdir, "samples.npy")
        np.save(path, samples(products, "align", config.sample.num))
        log.say(f"wrote {path}")

    def game(name: str, with_reward: bool):
        def build(products):
            before = products["distill"] if name == "align" else {"ta": products["pretrain"]}
            watched = _watch_tilt(reference, reward, schedule) if with_reward else lambda f: f
            return game_stage(
                name,
                config,
                roles=roles(with_reward),
                init_generator=lambda: before.get("generator", init_network(1)),
                init_ta=lambda: before["ta"],
                conditions=no_conditions,
                frozen=None,
                wrap=watched,
            )

        return build

    return Recipe(
        stages={
            "pretrain": lambda products: fit_stage(
                "pretrain",
                config,
                init_params=lambda: init_network(0),
                loss=pretrain_loss,
                data=points,
                draw=pretrain_noise,
            ),
            "distill": game("distill", with_reward=False),
            "align": game("align", with_reward=True),
        },
        figures=figures,
        evaluate=evaluate,
        sample=sample,
    )


def _watch_tilt(reference, reward, schedule):
    """Wraps an objective so that it also logs how far the estimated tilt is from the exact one.

    Adds `tilt_exact` = ‖(σ²/α)·DRS‖ and `tilt_error` = ‖(σ²/α)(DRS − estimate)‖, in x0 units, at the
    generator's own x_t, whatever the objective does with the reward.
    """
    denoiser = reference.denoiser(schedule)

    def wrap(objective: Objective) -> Objective:
        def watched(x0, noise, t, key, nets, settings):
            gradient, aux = objective(x0, noise, t, key, nets, settings)
            x_t = add_noise(schedule, x0, noise, t)
            exact = closed_form.exact_diffused_reward_score(reference, reward, schedule, x_t, t, beta=settings.beta)
            estimate = diffused_reward_score(
                reward, denoiser, schedule, x_t, t,
                beta=settings.beta, estimate=settings.estimate, key=key,
            )  # fmt: skip
            α, σ = signal_and_noise(schedule, t, x_t)
            norm = lambda drs: jnp.linalg.norm(σ**2 / α * drs, axis=-1)
            return gradient, aux | {"tilt_exact": norm(exact), "tilt_error": norm(exact - estimate)}

        return watched

    return wrap
