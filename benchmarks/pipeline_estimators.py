"""The estimators on a whole text-to-image pipeline, reward behind the VAE and all, at every noise level.

    python benchmarks/pipeline_estimators.py --config=configs/sprouts.py [--rows=8] [--samples=64] [--levels=.3,.5,.7,.9]

Truth is that of the reference itself: its posterior at x_t, by `--samples` ancestral samples of `--steps` evaluations,
weighted by exp(r/β).  It is drawn twice, so that inner products of one half with the other, and of an estimate with
either, hold no noise of their own.  x_t is made of the initial generator's samples.  Of each estimator, per t,

    slope    ⟨estimate, truth⟩ / ⟨truth, truth'⟩     1: as long as it should be, along the truth
    cosine   ⟨estimate, truth⟩ / (‖estimate‖ ‖truth‖)
    rms      √(‖estimate − truth‖² / ‖truth‖²)        returning zero is 1

summed over the rows before they are divided.  Reported too: what a posterior's weights leave of its samples.
"""

import dataclasses
import functools
import json
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from checkout import ROOT
from ml_collections import config_flags

from didr_jax import recipes
from didr_jax.diffused_reward import diffused_reward_score
from didr_jax.diffusion import add_noise, signal_and_noise
from didr_jax.estimators import Estimate
from didr_jax.sampling import denoise
from didr_jax.training.metrics import RunLog
from didr_jax.training.parallel import make_mesh
from didr_jax.training.run import Run
from didr_jax.training.step import bind

_CONFIG = config_flags.DEFINE_config_file("config", str(ROOT / "configs" / "sprouts.py"), "A text-to-image recipe.")
_ROWS = flags.DEFINE_integer("rows", 8, "x_t at each noise level.")
_SAMPLES = flags.DEFINE_integer("samples", 64, "Of each half of the truth, at each x_t.")
_STEPS = flags.DEFINE_integer("steps", 12, "Denoiser evaluations of a sample.")
_CHUNK = flags.DEFINE_integer("chunk", 8, "Samples that are drawn at a time, at every x_t.")
_LEVELS = flags.DEFINE_list("levels", ["0.2", "0.35", "0.5", "0.65", "0.8", "0.9", "0.96"], "Times t.")
_OUT = flags.DEFINE_string("out", "", "A file for the rows as JSON, beside the table.")

SETTINGS = {
    "`drp`": Estimate("drp"),
    "`drp` K=4": Estimate("drp", 4),
    "`shifted`": Estimate("shifted"),
    "`own`": Estimate("own"),
    "`own`, guard off": Estimate("own", guard=False),
    "`conjugate`": Estimate("conjugate"),
    "`conjugate`, guard off": Estimate("conjugate", guard=False),
    "`conjugate`, guard off, any shift": Estimate("conjugate", guard=False, max_shift=None),
    "`conjugate` K=4 N=4": Estimate("conjugate", 4, 4),
    "`covariance` K=4 N=4": Estimate("covariance", 4, 4),
    "`covariance` K=8 N=16": Estimate("covariance", 8, 16),
}


def truth(reward, denoiser, schedule, x_t, t, beta, keys):
    """Two independent estimates `[2, b, ...]` of DRS, and the effective share `[b]` of their samples; `keys [2, m]`."""

    def half(keys):
        def some(_, key):
            draws = jax.random.split(key, _CHUNK.value)
            sample = lambda k: denoise(denoiser, schedule, x_t, t, num_steps=_STEPS.value, key=k, stochasticity=1.0, remat=False)
            x0 = jax.lax.map(sample, draws)
            return None, (x0, jax.lax.map(reward, x0))

        _, (x0, r) = jax.lax.scan(some, None, keys)
        x0, r = x0.reshape(-1, *x0.shape[2:]), r.reshape(-1, r.shape[-1])
        weights = jax.nn.softmax(r / beta, axis=0)
        α, σ = signal_and_noise(schedule, t, x_t)
        drs = α / σ**2 * jnp.einsum("nb,nb...->b...", weights - 1 / len(weights), x0)
        return drs, 1 / (len(weights) * jnp.sum(weights**2, 0)), jnp.std(r, axis=0)

    drs, share, spread = jax.lax.map(half, keys)
    return drs, share.mean(0), spread.mean(0)


def total(a, b):
    return float(jnp.sum(a * b))


def compared(estimates: dict[str, jax.Array], drs: jax.Array) -> dict[str, dict[str, float]]:
    """Slope, cosine and rms of each estimate; `drs [2, ...]`."""
    square, found = total(drs[0], drs[1]), {}
    for name, estimate in estimates.items():
        along, own = total(estimate, drs.mean(0)), total(estimate, estimate)
        found[name] = {
            "slope": along / square,
            "cosine": along / np.sqrt(own * square),
            "rms": np.sqrt(max(own - 2 * along + square, 0) / square),
        }
    return found


def main(_argv) -> None:
    logging.set_verbosity(logging.WARNING)
    config = _CONFIG.value.copy_and_resolve_references()
    task = recipes.build(config).task
    networks, beta = task.networks(), config.align.beta
    with tempfile.TemporaryDirectory() as workdir:
        run = Run(config, workdir, make_mesh(config.mesh), RunLog(workdir))
        weights = task.frozen() | {"start": task.start("generator")}
        frozen = run.load(weights)
    generator = frozen.pop("start")
    rng, key = np.random.default_rng(config.seed), jax.random.key(config.seed)
    c = task.conditions.rows(rng.integers(len(task.prompts), size=_ROWS.value))
    c = networks.prepared(frozen, jax.tree.map(jnp.asarray, c))

    def bound(frozen):
        nets = bind(networks, frozen, frozen["base"], c, 1.0)
        return nets.reward, nets.reference

    @jax.jit
    def made(generator, frozen, key):
        z = jax.random.normal(key, (_ROWS.value, *networks.event_shape))
        return networks.generator(generator, frozen, z, c, jnp.zeros((), int))

    @jax.jit
    def true_drs(frozen, x_t, t, key):
        keys = jax.random.split(key, (2, _SAMPLES.value // _CHUNK.value))
        return truth(*bound(frozen), networks.schedule, x_t, t, beta, keys)

    @functools.partial(jax.jit, static_argnames="how")
    def estimated(frozen, x_t, t, x0, key, how):
        reward, denoiser = bound(frozen)
        how = dataclasses.replace(how, remat=False)
        return diffused_reward_score(reward, denoiser, networks.schedule, x_t, t, beta=beta, estimate=how, key=key, x0=x0)

    x0 = made(generator, frozen, key)
    rows = []
    for level in map(float, _LEVELS.value):
        noise_key, truth_key, key = jax.random.split(jax.random.fold_in(key, 1), 3)
        t = jnp.full(_ROWS.value, level)
        x_t = add_noise(networks.schedule, x0, jax.random.normal(noise_key, x0.shape), t)
        drs, share, spread = true_drs(frozen, x_t, t, truth_key)
        estimates = {name: estimated(frozen, x_t, t, x0, key, how) for name, how in SETTINGS.items()}
        found = compared(estimates, drs)
        about = {"t": level, "kept": float(share.mean()), "reward_std": float(spread.mean())}
        rows.append(about | {"estimators": found})
        tilt = networks.schedule.sigma(t) ** 2 / networks.schedule.alpha(t)
        length = float(tilt[0]) * np.sqrt(max(total(drs[0], drs[1]), 0) / _ROWS.value)
        kept = f"weights keep {about['kept']:.2f} of the samples"
        print(f"\n### t = {level:g}: {kept}, r varies by {about['reward_std']:.2f}, ‖tilt‖ {length:.2f}\n")
        print("| estimator | slope | cosine | rms |\n|---|--:|--:|--:|")
        for name, figures in found.items():
            print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in figures.values()) + " |", flush=True)
        if _OUT.value:
            with open(_OUT.value, "w") as file:
                json.dump(rows, file, indent=1)


if __name__ == "__main__":
    app.run(main)
