"""Handwritten digits (8×8, shipped with scikit-learn): the whole of DIDR on a laptop, offline.

    python run.py --config=configs/digits.py --workdir=runs/digits

Other methods: --config.align.objective=dipp; stronger reward: --config.align.beta=0.5
"""

import ml_collections
from ml_collections import config_dict

from didr_jax.config import base, fit, game


def get_config() -> ml_collections.ConfigDict:
    config = base()
    config.recipe = "digits"
    config.stages = ("pretrain", "reward", "judge", "distill", "align")

    config.network = ml_collections.ConfigDict()  # of reference, TA and generator
    config.network.width = 64  # of the transformer
    config.network.depth = 2  # blocks
    config.network.generator_time = 0.9  # time at which the generator is evaluated on unit noise
    config.network.generator_steps = 1  # evaluations per sample, 1 to 8, their times evenly spaced
    config.network.generator_solver = "renoise"  # between them: renoise (fresh noise) | ode (didr_jax.few_step)

    config.pretrain = fit(steps=1200, lr=5e-3)
    config.pretrain.optimizer.update(name="muon", muon_rms=1.0, b1=0.95, decay=True)  # adamw needs twice the steps for less
    config.pretrain.condition_dropout = 0.1  # share of samples trained without their label, for guidance

    config.reward = fit(steps=1500, lr=1e-3, batch_size=256)
    config.reward.optimizer.decay = True
    config.reward.width = 128  # of the preference model's hidden layers

    config.judge = fit(steps=1500, lr=1e-3)
    config.judge.optimizer.decay = True
    config.judge.width = 128  # of the classifier's hidden layers
    config.judge.features = 32  # width of the layer whose activations the Fréchet distance compares

    config.distill = game(steps=500, lr=3e-4)
    config.distill.objective = "dmd2"
    config.align = game(steps=400, lr=2e-4)
    # Above t = .8 the reward sees nothing but blur; any range of t has the same minimiser.
    config.align.generator_t_max = 0.8
    for stage in (config.distill, config.align):
        stage.ta_updates = 3
        stage.ta_optimizer.lr = 1e-3

    config.eval = ml_collections.ConfigDict()
    config.eval.samples = 2000  # images per model
    config.eval.every = 100  # steps of align between evaluations while it trains; 0: none, only the report at the end
    config.eval.target_beta = config_dict.placeholder(float)  # beta of the target law p*; None: align.beta
    config.eval.seed = 1234  # of the evaluation's noise
    config.eval.reference_steps = 30  # solver steps of the multi-step reference
    config.eval.grid_rows = 10  # rows of ten digits in the pictures

    config.sample = ml_collections.ConfigDict()
    config.sample.rows = 10  # rows of ten digits in --mode=sample
    return config
