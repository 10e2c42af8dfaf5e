"""What is checked of every config before anything starts: values that would fail or mislead later."""

from didr_jax.builders import estimate_of, make_schedule, tilt_of
from didr_jax.checks import require, require_choice
from didr_jax.diffused_reward import ESTIMATORS
from didr_jax.diffusion import PREDICTIONS
from didr_jax.objectives import OBJECTIVES, WEIGHTINGS
from didr_jax.schedules import Schedule
from didr_jax.tilts import TILTS, check_estimate
from didr_jax.training.hacking import HACKING
from didr_jax.training.optim import MOMENT_DECAY, OPTIMIZERS, WITH_SECOND
from didr_jax.training.parallel import parse_host, parse_rules
from didr_jax.training.trackers import SERVICES
from didr_jax.training.values import check_values, spell_out
from didr_jax.types import InputError


def validate(config) -> None:
    """Raises InputError, naming the key, for any value that would fail or mislead later; spells out types (`fp16`) in place."""
    spell_out(config)
    check_values(config)
    schedule = make_schedule(config)
    require(len(config.stages) > 0, "stages", config.stages, "name at least one stage")
    require_choice("checkpoint.best_mode", config.checkpoint.best_mode, ("max", "min"))
    require_choice("log.service", config.log.service, ("", *SERVICES))
    require_choice("watch.hacking", config.watch.hacking, HACKING)
    require_choice("profile.stage", config.profile.stage, ("", *config.stages))
    parse_rules(config.mesh.rules)
    parse_host(config.mesh.host)
    for name in config.stages:
        require(name in config, "stages", config.stages, f"config has no section {name!r}")
        stage = config[name]
        if "objective" in stage:
            _validate_game(name, stage, schedule)
            rule = f"stage {config.stages[-1]!r} would begin with parameters of that type; set it there"
            require(not stage.ema_dtype or name == config.stages[-1], f"{name}.ema_dtype", stage.ema_dtype, rule)
        for part in ("optimizer", "generator_optimizer", "ta_optimizer"):
            if part in stage:
                _validate_optimizer(f"{name}.{part}", stage[part])


def _validate_optimizer(where: str, section) -> None:
    require_choice(f"{where}.name", section.name, OPTIMIZERS)
    if section.moment_dtype == "bfloat16":
        knob = MOMENT_DECAY[section.name]
        rule = (
            f"a moment in bfloat16 never forgets above 255/256; lower {knob} (lion's authors: b2=0.99), or moment_dtype=float32"
        )
        require(section[knob] < 255 / 256, f"{where}.{knob}", section[knob], rule)

    rule = f"{section.name} has no second moment of each parameter; {' and '.join(WITH_SECOND)} have"
    kept = section.second_moment_dtype == "float32" or section.name in WITH_SECOND
    require(kept, f"{where}.second_moment_dtype", section.second_moment_dtype, rule)


def _validate_game(name: str, stage, schedule: Schedule) -> None:
    require_choice(f"{name}.objective", stage.objective, OBJECTIVES)
    require_choice(f"{name}.estimator", stage.estimator, ("auto", *ESTIMATORS))
    require_choice(f"{name}.weighting", stage.weighting, ("auto", *WEIGHTINGS))
    require_choice(f"{name}.ta_weighting", stage.ta_weighting, PREDICTIONS)
    require_choice(f"{name}.tilt", stage.tilt, TILTS)
    tilting = [objective for objective, row in OBJECTIVES.items() if row.estimates]
    unused = f"the objective {stage.objective!r} has no tilt; those that have: {', '.join(tilting)}"
    require(stage.tilt == "global" or stage.objective in tilting, f"{name}.tilt", stage.tilt, unused)
    before = stage.ta_updates - stage.ta_after
    rule = f"the {before} TA updates before the generator's (ta_updates, without the one of ta_after) must be a multiple of it"
    require(before % stage.ta_reuse == 0, f"{name}.ta_reuse", stage.ta_reuse, rule)
    try:
        check_estimate(tilt_of(stage), estimate_of(stage))
    except ValueError as error:  # which begins with the knob's name
        raise InputError(f"config.{name}.{error}") from None
    for who in ("generator", "ta"):
        low, high = stage[f"{who}_t_min"], stage[f"{who}_t_max"]
        inside = schedule.t_min <= low < high <= schedule.t_max
        rule = f"need {schedule.t_min} <= t_min < t_max <= {schedule.t_max}, the times of the {schedule.name} schedule"
        require(inside, f"{name}.{who}_t_min, {name}.{who}_t_max", (low, high), rule)
        clean = float(schedule.sigma(low)) <= 0
        require(not clean, f"{name}.{who}_t_min", low, "the schedule has no noise there, so scores are undefined")
