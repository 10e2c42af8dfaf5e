"""A Gaussian mixture in the plane, where the reward-tilted law p* is known in closed form.

    python run.py --config=configs/mixture.py --workdir=runs/mixture

Other methods and strengths: --config.align.objective=dipp --config.align.beta=4
"""

import ml_collections

from didr_jax.config import base, fit, game


def get_config() -> ml_collections.ConfigDict:
    config = base()
    config.recipe = "mixture"
    config.stages = ("pretrain", "distill", "align")

    config.law = ml_collections.ConfigDict()
    config.law.means = ((2.0, 2.0), (2.0, -2.0), (-2.0, 2.0), (-2.0, -2.0))  # of the equally weighted components
    config.law.std = 0.35  # of each component, isotropic

    config.reward = ml_collections.ConfigDict()
    config.reward.slope = (1.0, 0.5)  # of r(x) = slope·x − ½ curvature ‖x − center‖²
    config.reward.curvature = 0.18  # of the same
    config.reward.center = (1.5, 2.5)  # of the same

    config.network = ml_collections.ConfigDict()
    config.network.width = 128  # of the hidden layers
    config.network.depth = 3  # residual layers
    config.network.spread = 2.0  # the generator is spread·z plus the network, so that it starts wide

    config.pretrain = fit(steps=2000, lr=1e-3, batch_size=512)

    config.distill = game(steps=1500, lr=3e-4, batch_size=256)
    config.distill.objective = "dmd2"
    config.align = game(steps=1500, lr=2e-4, batch_size=256)
    config.align.max_shift = 0.0  # the reference is exact everywhere
    for stage in (config.distill, config.align):
        stage.ta_optimizer.lr = 1e-3
        stage.generator_optimizer.decay = True
        stage.generator_optimizer.b1 = 0.0  # the TA lags: momentum on top of it overshoots

    config.eval = ml_collections.ConfigDict()
    config.eval.samples = 4000  # drawn from each law for the distances
    config.eval.every = 500  # steps of align between evaluations while it trains; 0: none, only the report at the end
    config.eval.target_betas = (1.0, 4.0)  # of the tilted laws p* that distances are measured to
    config.eval.seed = 1234  # of the evaluation's noise

    config.sample = ml_collections.ConfigDict()
    config.sample.num = 1000  # samples written by --mode=sample
    return config
