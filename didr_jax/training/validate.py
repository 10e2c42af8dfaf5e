"""What is checked of every config before anything starts: values that would fail or mislead later."""

from didr_jax.builders import estimate_of, make_schedule, tilt_of
from didr_jax.checks import require, require_choice
from didr_jax.diffused_reward import ESTIMATORS
from didr_jax.diffusion import PREDICTIONS
from didr_jax.objectives import OBJECTIVES, WEIGHTINGS
from didr_jax.schedules import Schedule
from didr_jax.tilts import TILTS, check_estimate
from didr_jax.training.hacking import HACKING
from didr_jax.training.optim import MOMENT_DECAY, OPTIMIZERS
from didr_jax.training.parallel import parse_rules
from didr_jax.types import InputError


def validate(config) -> None:
    """Raises InputError, naming the key, for any value that would fail or mislead later."""
    schedule = make_schedule(config)
    require(len(config.stages) > 0, "stages", config.stages, "name at least one stage")
    require(config.log.every >= 1, "log.every", config.log.every, "must be at least 1")
    require(config.checkpoint.every >= 1, "checkpoint.every", config.checkpoint.every, "must be at least 1")
    require(config.checkpoint.keep >= 1, "checkpoint.keep", config.checkpoint.keep, "must be at least 1")
    require(config.checkpoint.keep_every >= 0, "checkpoint.keep_every", config.checkpoint.keep_every, "must be 0 or more")
    require_choice("checkpoint.best_mode", config.checkpoint.best_mode, ("max", "min"))
    require(config.log.peak_tflops >= 0, "log.peak_tflops", config.log.peak_tflops, "must not be negative")
    require_choice("log.service", config.log.service, ("", "wandb", "trackio"))
    require(config.watch.patience >= 1, "watch.patience", config.watch.patience, "must be at least 1")
    require(0 <= config.watch.dropped <= 1, "watch.dropped", config.watch.dropped, "must lie in [0, 1]")
    require_choice("watch.hacking", config.watch.hacking, HACKING)
    require_choice("profile.stage", config.profile.stage, ("", *config.stages))
    parse_rules(config.mesh.rules)
    require(0 < config.compile.utilisation <= 1, "compile.utilisation", config.compile.utilisation, "must lie in (0, 1]")
    require(-1 <= config.compile.effort <= 1, "compile.effort", config.compile.effort, "must lie in [-1, 1]")
    for name in config.stages:
        require(name in config, "stages", config.stages, f"config has no section {name!r}")
        stage = config[name]
        require(stage.steps >= 1, f"{name}.steps", stage.steps, "must be at least 1")
        require(stage.batch_size >= 1, f"{name}.batch_size", stage.batch_size, "must be at least 1")
        require(stage.micro_batches >= 1, f"{name}.micro_batches", stage.micro_batches, "must be at least 1")
        if "objective" in stage:
            _validate_game(name, stage, schedule)
        require(0 <= stage.ema < 1, f"{name}.ema", stage.ema, "must lie in [0, 1)")
        for part in ("optimizer", "generator_optimizer", "ta_optimizer"):
            if part in stage:
                _validate_optimizer(f"{name}.{part}", stage[part])


def _validate_optimizer(where: str, section) -> None:
    require_choice(f"{where}.name", section.name, OPTIMIZERS)
    require_choice(f"{where}.moment_dtype", section.moment_dtype, ("float32", "bfloat16"))
    for knob in ("lr", "clip", "eps"):
        require(section[knob] > 0, f"{where}.{knob}", section[knob], "must be positive")
    for knob in ("warmup", "weight_decay"):
        require(section[knob] >= 0, f"{where}.{knob}", section[knob], "must not be negative")
    for knob in ("b1", "b2"):
        require(0 <= section[knob] < 1, f"{where}.{knob}", section[knob], "must lie in [0, 1)")
    if section.moment_dtype == "bfloat16":
        knob = MOMENT_DECAY[section.name]
        rule = (
            f"a moment in bfloat16 never forgets above 255/256; lower {knob} (lion's authors: b2=0.99), or moment_dtype=float32"
        )
        require(section[knob] < 255 / 256, f"{where}.{knob}", section[knob], rule)


def _validate_game(name: str, stage, schedule: Schedule) -> None:
    require_choice(f"{name}.objective", stage.objective, OBJECTIVES)
    require_choice(f"{name}.estimator", stage.estimator, ("auto", *ESTIMATORS))
    require_choice(f"{name}.weighting", stage.weighting, ("auto", *WEIGHTINGS))
    require_choice(f"{name}.ta_weighting", stage.ta_weighting, PREDICTIONS)
    require(stage.beta > 0, f"{name}.beta", stage.beta, "the temperature of the tilt must be positive")
    require(stage.max_shift >= 0, f"{name}.max_shift", stage.max_shift, "must not be negative; 0 means no limit")
    require_choice(f"{name}.tilt", stage.tilt, TILTS)
    tilting = [objective for objective, row in OBJECTIVES.items() if row.estimates]
    unused = f"the objective {stage.objective!r} has no tilt; those that have: {', '.join(tilting)}"
    require(stage.tilt == "global" or stage.objective in tilting, f"{name}.tilt", stage.tilt, unused)
    try:
        check_estimate(tilt_of(stage), estimate_of(stage))
    except ValueError as error:  # which begins with the knob's name
        raise InputError(f"config.{name}.{error}") from None
    require(stage.ta_updates >= 1, f"{name}.ta_updates", stage.ta_updates, "must be at least 1")
    for who in ("generator", "ta"):
        low, high = stage[f"{who}_t_min"], stage[f"{who}_t_max"]
        inside = schedule.t_min <= low < high <= schedule.t_max
        rule = f"need {schedule.t_min} <= t_min < t_max <= {schedule.t_max}, the times of the {schedule.name} schedule"
        require(inside, f"{name}.{who}_t_min, {name}.{who}_t_max", (low, high), rule)
        clean = float(schedule.sigma(low)) <= 0
        require(not clean, f"{name}.{who}_t_min", low, "the schedule has no noise there, so scores are undefined")
