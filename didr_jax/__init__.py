"""Diff-Instruct with Diffused Reward: preference alignment of one-step generators in JAX.

The names a notebook needs; everything else is one module away.
"""

from didr_jax import closed_form, diffusion, objectives, schedules
from didr_jax.diffused_reward import ESTIMATORS, diffused_reward_score
from didr_jax.estimators import Estimate
from didr_jax.objectives import OBJECTIVES, Bound, Settings
from didr_jax.sampling import denoise
from didr_jax.schedules import Schedule

__version__ = "0.2.0"  # the one place: pyproject.toml reads it here

__all__ = [
    "ESTIMATORS",
    "OBJECTIVES",
    "Bound",
    "Estimate",
    "Schedule",
    "Settings",
    "closed_form",
    "denoise",
    "diffused_reward_score",
    "diffusion",
    "objectives",
    "schedules",
]
