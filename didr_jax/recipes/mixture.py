"""A Gaussian mixture in the plane with a quadratic reward: everything is known in closed form.

    pretrain  a small network learns the mixture's denoiser; it is where the TA starts
    distill   the one-step generator learns the reference (no reward)
    align     the generator learns the reward-tilted law p*

The reference of `distill` and `align` is the exact posterior mean, so what the run measures is the
objective and its estimator alone: the energy distance to p*, the reward, KL(p_θ ‖ p_ref), and the error
of the diffused reward score against its exact value.
"""

import jax
import jax.numpy as jnp
import numpy as np

from didr_jax import closed_form
from didr_jax.builders import make_schedule
from didr_jax.diffused_reward import diffused_reward_score
from didr_jax.diffusion import add_noise, signal_and_noise, to_x0
from didr_jax.distances import energy_distance, knn_entropy
from didr_jax.models.dit import PointNet
from didr_jax.objectives import OBJECTIVES, Objective, denoising_loss
from didr_jax.reporting.curves import curves
from didr_jax.reporting.page import write_report
from didr_jax.reporting.pairs import write_pairs
from didr_jax.training.evaluation import Evaluator, Verdict, over_rows
from didr_jax.training.parallel import made
from didr_jax.training.recipe import Recipe
from didr_jax.training.reports import scatter, write_summary
from didr_jax.training.run import Products, Run
from didr_jax.training.stages import Stage, fit_stage, game_stage
from didr_jax.training.startup import is_first_process
from didr_jax.training.step import Networks
from didr_jax.types import Weights
from didr_jax.whole_files import whole_file


class Mixture(Recipe):
    """The recipe of `configs/mixture.py`; the law and the reward are `config.law` and `config.reward`."""

    free = ("eval", "sample")

    def __init__(self, config):
        self.config = config
        self.schedule = make_schedule(config)
        self.reference = closed_form.GaussianMixture.of(config.law.means, config.law.std)
        self.reward = closed_form.QuadraticReward(
            jnp.asarray(config.reward.slope), config.reward.curvature, jnp.asarray(config.reward.center)
        )
        self.targets = {beta: self.reference.tilt(self.reward, beta) for beta in config.eval.target_betas}
        self.network = PointNet(config.network.width, config.network.depth)
        self.stages = {"pretrain": self.pretrain, "distill": self.distill, "align": self.align}
        self.modes = {"eval": self.evaluate, "sample": self.sample}

    # -------------------------------------------------------------------------------- functions

    def denoise(self, params, x_t, t):
        return to_x0("v", self.network.apply({"params": params}, x_t, t), x_t, t, self.schedule)

    def generate(self, params, z):
        return self.config.network.spread * z + self.network.apply({"params": params}, z, jnp.ones(z.shape[0]))

    def networks(self, with_reward: bool) -> Networks:
        exact = self.reference.denoiser(self.schedule)
        return Networks(
            schedule=self.schedule,
            event_shape=(2,),
            reference=lambda frozen, x_t, t, c: exact(x_t, t),
            ta=lambda params, frozen, x_t, t, c: self.denoise(params, x_t, t),
            generator=lambda params, frozen, z, c, i: self.generate(params, z),
            reward=(lambda frozen, x0, c: self.reward(x0)) if with_reward else None,
        )

    # ----------------------------------------------------------------------------------- stages

    def fresh(self, salt: int) -> Weights:
        key = jax.random.fold_in(jax.random.key(self.config.seed), salt)
        return made(lambda: self.network.init(key, jnp.zeros((1, 2)), jnp.zeros(1))["params"])

    def pretrain(self, _products: Products) -> Stage:
        def noise(key, n):
            noise_key, time_key = jax.random.split(key)
            t = jax.random.uniform(time_key, (n,), minval=0.001, maxval=0.999)
            return {"eps": jax.random.normal(noise_key, (n, 2)), "t": t}

        def loss(params, frozen, batch, noise):
            denoiser = lambda x_t, t: self.denoise(params, x_t, t)
            return denoising_loss(denoiser, self.schedule, batch["x0"], noise["eps"], noise["t"], "v"), {}

        def points(rng, n):
            means = np.asarray(self.config.law.means, np.float32)
            x0 = means[rng.integers(len(means), size=n)] + self.config.law.std * rng.standard_normal((n, 2))
            return {"x0": x0.astype(np.float32)}

        return fit_stage("pretrain", self.config, start=self.fresh(0), loss=loss, data=points, draw=noise)

    def distill(self, products: Products) -> Stage:
        return self._game("distill", False, self.fresh(1), products["pretrain"]["params"])

    def align(self, products: Products) -> Stage:
        before = products["distill"]
        objective = watch_tilt(self, OBJECTIVES[self.config.align.objective])
        return self._game("align", True, before["generator"], before["ta"], objective)

    def _game(self, name: str, with_reward: bool, generator: Weights, ta: Weights, objective: Objective | None = None):
        judge = lambda products, frozen: Verdict(self.row(self.cloud(products["generator"])))
        evals = {"laws": Evaluator(self.config.eval.every, judge)} if with_reward else {}
        return game_stage(
            name,
            self.config,
            networks=self.networks(with_reward),
            generator=generator,
            ta=ta,
            conditions=lambda rng, n: {"none": np.zeros(n, np.float32)},
            objective=objective,
            evals=evals,
        )

    # -------------------------------------------------------------------------------- judgement

    def cloud(self, generator, n: int = 0) -> np.ndarray:
        """n samples of a generator's parameters, from the evaluation's noise; 0: as many as the distances compare."""
        z = jax.random.normal(jax.random.key(self.config.eval.seed), (n or self.config.eval.samples, 2))
        return over_rows(jax.jit(self.generate), generator, z)

    def row(self, cloud: np.ndarray) -> dict[str, float]:
        """Mean reward, KL(p_θ ‖ p_ref) in nats from a nearest-neighbour entropy, energy distance to each p*."""
        key = jax.random.key(self.config.eval.seed + 1)
        truths = {beta: np.asarray(law.sample(key, len(cloud))) for beta, law in self.targets.items()}
        figures = {
            "reward": float(jnp.mean(self.reward(cloud))),
            "kl_to_reference": -knn_entropy(cloud) - float(jnp.mean(self.reference.log_prob(cloud))),
        }
        return figures | {f"energy_to_beta_{beta:g}": energy_distance(cloud, x) for beta, x in truths.items()}

    def figures(self, products: Products, run: Run) -> dict[str, float]:
        return self.row(self.cloud(run.load({"generator": products["align"]["generator"]})["generator"]))

    def evaluate(self, products: Products, run: Run) -> None:
        """summary.json, a picture of the samples beside the exact laws, curves, report.html."""
        n, fresh = self.config.eval.samples, jax.random.key(self.config.eval.seed + 2)
        clouds = {"reference": self.reference.sample(fresh, n)}
        for label, stage in (("one-step initial", "distill"), (self.config.align.objective, "align")):
            clouds[label] = self.cloud(run.load({"generator": products[stage]["generator"]})["generator"])
        clouds |= {f"tilted law, beta {beta:g}": law.sample(fresh, n) for beta, law in self.targets.items()}
        clouds = {name: np.asarray(cloud) for name, cloud in clouds.items()}
        rows = {name: self.row(cloud) for name, cloud in clouds.items()}
        if is_first_process():
            write_summary(run.workdir, rows, run.log)
            scatter(run.path("samples.png"), clouds)
            self._leave_pairs(run, clouds["one-step initial"], clouds[self.config.align.objective])
            curves(run.workdir)
            write_report(run.workdir)
        run.log.say(f"wrote summary.json, samples.png, curves_*.png and report.html to {run.workdir}")

    def _leave_pairs(self, run: Run, before: np.ndarray, after: np.ndarray) -> None:
        """Rewards for the report; of the tilted law at the temperature of training as well."""
        target = self.reference.tilt(self.reward, self.config.align.beta)
        goal = target.sample(jax.random.key(self.config.eval.seed + 3), len(after))
        clouds = {"reward_before": before, "reward_after": after, "target": goal}
        rewards = {name: np.asarray(self.reward(cloud)) for name, cloud in clouds.items()}
        none = np.empty((len(after), 0, 0), np.uint8)
        write_pairs(run.workdir, none, none, [], **rewards, target_weights=np.ones(len(after)))

    def sample(self, products: Products, run: Run) -> None:
        generator = run.load({"generator": products["align"]["generator"]})["generator"]
        cloud, path = self.cloud(generator, self.config.sample.num), run.path("samples.npy")
        if is_first_process():
            with whole_file(path, binary=True) as file:
                np.save(file, cloud)
        run.log.say(f"wrote {path}")


def watch_tilt(recipe: Mixture, objective: Objective) -> Objective:
    """The objective, logging also how far the estimated tilt is from the exact one.

    Adds `tilt_exact` = ‖(σ²/α)·DRS‖ and `tilt_error` = ‖(σ²/α)(DRS − estimate)‖, in x0 units, at the
    generator's own x_t, whatever the objective does with the reward.
    """
    reference, reward, schedule = recipe.reference, recipe.reward, recipe.schedule

    def watched(x0, noise, t, key, bound, settings):
        gradient, aux = objective(x0, noise, t, key, bound, settings)
        x_t = add_noise(schedule, x0, noise, t)
        exact = closed_form.exact_diffused_reward_score(reference, reward, schedule, x_t, t, beta=settings.beta)
        found = diffused_reward_score(
            reward, bound.reference, schedule, x_t, t, beta=settings.beta, estimate=settings.estimate, key=key, x0=x0
        )  # fmt: skip
        α, σ = signal_and_noise(schedule, t, x_t)
        norm = lambda drs: jnp.linalg.norm(σ**2 / α * drs, axis=-1)
        return gradient, aux | {"tilt_exact": norm(exact), "tilt_error": norm(exact - found)}

    return objective._replace(gradient=watched)
