"""From config sections to what the mathematics takes: a schedule, a generator's steps, an objective's settings."""

from didr_jax.checks import require, require_choice
from didr_jax.diffused_reward import resolve
from didr_jax.estimators import Estimate
from didr_jax.few_step import SOLVERS, FewStep
from didr_jax.objectives import OBJECTIVES, Settings
from didr_jax.schedules import SCHEDULES, Schedule
from didr_jax.tilts import Tilt
from didr_jax.types import InputError


def make_schedule(config) -> Schedule:
    """The schedule of a config; its further knobs are the schedule's own arguments."""
    require_choice("schedule.name", config.schedule.name, SCHEDULES)
    arguments = {k: v for k, v in config.schedule.items() if k != "name"}
    try:
        return SCHEDULES[config.schedule.name](**arguments)
    except (TypeError, ValueError) as error:
        raise InputError(f"config.schedule: {error}") from None


def make_few_step(config, schedule: Schedule) -> FewStep:
    """The steps of a config's generator: `network.generator_timesteps` of a discrete schedule as they are listed,
    or `network.generator_steps` times from `network.generator_time` on (without that knob: from the noisiest).

    Raises:
      InputError: impossible steps, or a stage whose range of noise levels leaves one of them none to be compared at.
    """
    knobs = config.network
    require_choice("network.generator_solver", knobs.generator_solver, SOLVERS)
    try:
        if "generator_timesteps" in knobs:
            times = tuple(t / schedule.num_timesteps for t in knobs.generator_timesteps)
            steps = FewStep(schedule, times, knobs.generator_solver)
        else:
            first = knobs.get("generator_time", schedule.t_max)
            steps = FewStep.even(schedule, first, knobs.generator_steps, knobs.generator_solver)
    except ValueError as error:
        raise InputError(f"config.network: {error}") from None
    for name in config.stages:
        for who in ("generator", "ta") if "objective" in config[name] else ():
            low, high = config[name][f"{who}_t_min"], config[name][f"{who}_t_max"]
            rule = f"the generator's steps at {steps.times} are compared at the levels between them; leave each some"
            require(all(low < t < high for t in steps.times[1:]), f"{name}.{who}_t_min, {who}_t_max", (low, high), rule)
    return steps


def estimate_of(section) -> Estimate:
    """The estimator of a config section, with its knobs."""
    return Estimate(
        resolve(section.estimator),
        num_steps=section.num_steps,
        num_samples=section.num_samples,
        stochasticity=section.stochasticity,
        trust_radius=section.trust_radius,
        max_shift=section.max_shift or None,
        guard=section.guard,
    )


def tilt_of(section) -> Tilt:
    """The target of a config section, with its knobs."""
    return Tilt(section.tilt, section.tilt_t0, section.tilt_anchor)


def settings_of(section) -> Settings:
    """The objectives' knobs of a config section; `weighting="auto"` is the objective's own."""
    return Settings(
        weighting=OBJECTIVES[section.objective].weighting if section.weighting == "auto" else section.weighting,
        beta=section.beta,
        estimate=estimate_of(section),
        huber=section.huber,
        tilt=tilt_of(section),
    )
