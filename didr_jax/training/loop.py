"""The training loop: one for every stage of every recipe.

A stage is a jitted step, where its state begins, and where its batches come from.  A recipe chains
stages; each leaves products (the parameters that later stages use).  A stage whose last step is
saved is finished and never redone; an interrupted one goes on from its newest save, exactly, on
whatever mesh and number of processes it then has.
"""

import contextlib
import functools
import math
import os
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from didr_jax.exits import Hacked, NotFinite, Preempted, StopRequest
from didr_jax.training import known, origin
from didr_jax.training.checkpoint import Checkpoints
from didr_jax.training.chips import pace_here
from didr_jax.training.evaluation import PREFIX, Evaluators, Verdict
from didr_jax.training.hacking import HackingWatch, in_words
from didr_jax.training.host_memory import near
from didr_jax.training.introduction import heartbeat, introduction
from didr_jax.training.metrics import Progress, RunLog, read_metrics
from didr_jax.training.parallel import check_batches, held, put_rows
from didr_jax.training.profiling import ProfileWindow
from didr_jax.training.programs import Programs
from didr_jax.training.recipe import Recipe
from didr_jax.training.run import Finished, Products, Run
from didr_jax.training.stages import Stage
from didr_jax.training.startup import is_first_process
from didr_jax.training.watch import Dropped, diagnosis, write_stopped
from didr_jax.types import PyTree, Weights


def run_stage(stage: Stage, label: str, run: Run, stop: StopRequest) -> dict[str, Weights]:
    """Runs a stage to its end, from its newest whole save if there is one, and returns its products.

    Raises:
      NotFinite, Hacked, Preempted, CannotSave: see `exits`; all but the last leave the newest state saved.
    """
    saves = run.saves(stage.name)
    try:
        with stop.at_once(f"{label} was opened"):
            shapes = run.placed(stage.shapes)
            products = _finished(stage, saves, shapes, run)
        if products is None:
            products = near(stage.made_of(_trained(stage, label, shapes, saves, run, stop)))
        else:
            run.log.say(f"{label}  finished at step {stage.steps}")
        return {name: held(arrays) for name, arrays in products.items()}
    finally:
        saves.close()


def _finished(stage: Stage, saves: Checkpoints, shapes, run: Run) -> dict[str, PyTree] | None:
    """The products of a stage whose last step is saved and whole; nothing else is read.

    Raises:
      NotFinite: it stopped at its very last step.
    """
    if saves.latest() != stage.steps:
        return None
    if why := saves.note(stage.steps):
        where = os.path.join(run.workdir, "checkpoints", stage.name, str(stage.steps))
        raise NotFinite(f"{why}; mend that and remove {where}: the same command then goes on from the save before")
    step, products = saves.restore_newest(stage.made_of(shapes), whole=False) or (None, None)
    return products if step == stage.steps else None


def _trained(stage: Stage, label: str, shapes, saves: Checkpoints, run: Run, stop: StopRequest):
    places = jax.tree.map(lambda a: a.sharding, shapes)
    with heartbeat(run.log.say, f"{label}  no step is done yet: preparing its data or compiling") as compiling:
        with stop.at_once(f"{label} began"):
            first, state = _begun(stage, label, shapes, places, saves, run)
            if first == stage.steps:
                return state
            frozen = run.load(stage.frozen)
            stage.batch(first, slice(1))  # here, since it may have to embed all prompts
        return _loop(stage, label, state, places, frozen, first, saves, run, stop, compiling.set)


def _begun(stage: Stage, label: str, shapes, places, saves: Checkpoints, run: Run):
    """(steps done, state)."""
    restored = saves.restore_newest(stage.split(shapes))
    if restored is None:
        saves.require_room(shapes)
        state = origin.begun(stage, shapes, places, run)
        return 0, stage.init(places) if state is None else state
    first, items = restored
    run.log.say(f"{label}  goes on from at step {first}")
    return first, stage.join(items)


def _loop(
    stage: Stage,
    label: str,
    state,
    places,
    frozen,
    first: int,
    saves: Checkpoints,
    run: Run,
    stop: StopRequest,
    begun: Callable[[], None],
):
    """`begun`: called when the first step is done."""
    config = run.config
    evaluators = Evaluators(stage.evals, stage.steps, frozen, run.load)
    alarm, stops = _alarm(evaluators, stage.name, first, run), config.watch.hacking == "stop"
    progress = Progress(run.log, label, stage.name, first, stage.steps, stage.batch_size, config.log.quiet)
    step_fn = Programs(stage.compiled(places, run.mesh), pace_here(config.log.peak_tflops), progress, run.log.say, label)
    for line in introduction(stage, state, frozen, run.mesh):
        run.log.say(f"{label}  {line}")
    window = ProfileWindow(config.profile, stage.name, run.workdir)
    dropped = Dropped(config.watch.dropped, stage.batch_size)

    def look(done: int, metrics: dict) -> str | None:
        """Logs the figures of a step if it is their turn; says why to stop, if it is time to."""
        streak = int(metrics["streak"])
        dropped.count(known.of_this_step(metrics))
        if done % config.log.every == 0 or done in (first + 1, stage.steps):
            progress.report(done, _floats(metrics), {name: rate(done - 1) for name, rate in stage.rates.items()})
            for line in dropped.warnings(_floats(metrics)):
                run.log.say(f"{label}  warning: {line}")
        none_good = done == stage.steps and streak == stage.steps  # patience would outlast the stage
        if streak < config.watch.patience and not none_good:
            return None
        message = diagnosis(label, done, _floats(metrics), streak)
        write_stopped(run.workdir, stage.name, done, _floats(metrics), message)
        return message

    def judge(done: int) -> tuple[dict[str, float], str | None]:
        """What evaluators find after `done` steps, logged; and why to stop, if the reward is hacked and that stops a run."""
        names = evaluators.due(done)
        if not names:
            return {}, None
        with progress.paused(), heartbeat(run.log.say, f"{label}  still judging step {done}"):
            with stop.at_once(f"{label} was judged at step {done}"):
                verdict = evaluators.run(names, near(stage.made_of(state)))
            marks, raised = alarm.look(done, {name.removeprefix(PREFIX): value for name, value in verdict.figures.items()})
            _log_verdict(verdict, marks, label, stage.name, done, run.log)
            message = f"{label}  {done:>5}  {in_words(raised)}" if raised else None
            if message:
                run.log.say(message)
            if run.redraw:
                run.redraw(False)
        return verdict.figures | marks, message if stops else None

    if not _judged(run, stage.name, first):
        judge(first)
    previous = None  # metrics are read one step late, so that the devices never wait for the host
    for step in range(first, stage.steps):
        window.before(step - first, state)
        batch = put_rows(functools.partial(stage.batch, step), stage.batch_size, run.mesh, stage.batch_axis)
        state, metrics = step_fn(state, frozen, batch)
        done, last = step + 1, step + 1 == stage.steps
        trouble = look(*previous) if previous else None
        if step == first:
            jax.block_until_ready(metrics)
            progress.started(done)
            begun()
            _claim(run, stage.name, first)
        if last and not trouble:
            trouble = look(done, metrics)
        try:
            found, hacked = ({}, None) if trouble else judge(done)
        except Preempted:  # as the poll will say; it is judged when the run goes on
            found, hacked = {}, None
        if step == first:
            _check_best(config.checkpoint.best, known.of_this_step(metrics), stage, label, run.log)
        asked = stop.poll()
        if done % config.checkpoint.every == 0 or last or asked or trouble or (stops and found):
            figures = _floats(metrics) | found if config.checkpoint.best or stops else None
            saves.save(done, stage.split(state), figures, note=trouble or "")
        if trouble or hacked or (asked and not last):
            window.close(state)
            saves.wait()
            if hacked:
                message = f"{hacked}; {_kept(alarm.best_step, saves)}"
                write_stopped(run.workdir, stage.name, done, _floats(metrics) | found, message)
            if run.redraw and (hacked or trouble):
                run.redraw(True)
            if hacked:
                raise Hacked(message)
            raise NotFinite(f"{trouble}; saved at step {done}") if trouble else Preempted(_asked(label, done))
        previous = (done, metrics)
    if told := progress.pauses():
        run.log.say(told)
    window.close(state)
    return state


def _claim(run: Run, stage: str, step: int) -> None:
    for line in run.claim(stage, step):
        run.log.say(line)
    origin.keep(run)


def _floats(metrics: dict) -> dict[str, float]:
    """The figures that were measured."""
    return {name: float(value) for name, value in known.of_this_step(metrics).items() if name != "streak"}


def _asked(label: str, done: int) -> str:
    return f"{label} was asked to stop and is saved at step {done}; the same command goes on"


def _alarm(evaluators: Evaluators, stage: str, first: int, run: Run) -> HackingWatch:
    """The alarm for reward hacking, with the evaluations that a run had before it goes on from `first`."""
    if run.config.watch.hacking == "off":
        return HackingWatch(())
    watched, past = evaluators.watched(), {}
    for record in read_metrics(run.workdir) if watched and first else ():
        if record["stage"] == stage and record["step"] <= first:
            past[record["step"]] = {k.removeprefix(PREFIX): v for k, v in record.items() if k.startswith(PREFIX)}
    return HackingWatch(watched, {step: figures for step, figures in past.items() if figures})


def _judged(run: Run, stage: str, step: int) -> bool:
    """Whether the log has figures of evaluators at a step; the same answer in every process."""
    found = (
        is_first_process()
        and step > 0
        and any(
            (record["stage"], record["step"]) == (stage, step) and any(name.startswith(PREFIX) for name in record)
            for record in read_metrics(run.workdir)
        )
    )
    return bool(multihost_utils.broadcast_one_to_all(np.bool_(found))) if jax.process_count() > 1 else found


def _kept(step: int | None, saves: Checkpoints) -> str:
    """Where the best state is that was saved before the reward was hacked."""
    where = f"the best state before is the save of step {step}" if step in saves.steps() else "no state before it was saved"
    return f"{where} ({saves.directory}). Raise align.beta, or go on with --config.watch.hacking=warn"


def _log_verdict(verdict: Verdict, marks: dict[str, float], label: str, stage: str, done: int, log: RunLog) -> None:
    told = {name: value for name, value in verdict.figures.items() if math.isfinite(value)}
    log.say(f"{label}  {done:>5}  " + "  ".join(f"{name} {value:.4g}" for name, value in told.items()))
    log.write(stage, done, verdict.figures | marks)
    log.show(stage, done, verdict.pictures)


def _check_best(name: str, metrics: dict, stage: Stage, label: str, log: RunLog) -> None:
    if name and name not in metrics and not (name.startswith("eval/") and stage.evals):
        log.say(f"{label}  logs no {name!r}, so checkpoint.best keeps nothing here; it logs {', '.join(metrics)}")


def train(recipe: Recipe, run: Run, stop: StopRequest | None = None) -> Products:
    """Runs all stages of the config in order and returns their products; `stop`: open; None: one of its own.

    Raises:
      InputError: a batch that the mesh cannot divide, or a stage before the one that it begins with (StageMissing).
      NotFinite, Hacked, Preempted, CannotSave: see `exits`.
    """
    check_batches(run.config, run.mesh)
    products = Finished()
    names = run.config.stages
    with jax.set_mesh(run.mesh), StopRequest() if stop is None else contextlib.nullcontext(stop) as stop:
        for i, name in enumerate(names):
            label = f"{name} ({i + 1}/{len(names)})"
            products[name] = origin.taken(name, run) or run_stage(recipe.stages[name](products), label, run, stop)
        _claim(run, names[-1], run.config[names[-1]].steps)
    return products
