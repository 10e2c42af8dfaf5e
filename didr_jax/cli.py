"""The command line: flags, modes, and one clear line for anything that cannot be used."""

import contextlib
import functools
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from didr_jax import recipes, saved_config
from didr_jax.agreement import told_by_first
from didr_jax.checks import nearest
from didr_jax.command_help import asked_for_help, help_text
from didr_jax.config import flatten
from didr_jax.exits import CannotSave, RunStopped, StopRequest, mute_echoes
from didr_jax.named_configs import SAVED, named_configs, with_paths
from didr_jax.planning.plan import main_stage, make_plan
from didr_jax.planning.report import report
from didr_jax.planning.targets import Target, target
from didr_jax.reporting.compare import main as compare_runs
from didr_jax.reporting.page import Rewriting
from didr_jax.training import origin
from didr_jax.training.calibration import calibrate, told
from didr_jax.training.claims import RUN, Claim, compare
from didr_jax.training.fetch import fetched
from didr_jax.training.introduction import heartbeat
from didr_jax.training.loop import train
from didr_jax.training.metrics import RunLog
from didr_jax.training.parallel import make_mesh
from didr_jax.training.recipe import Recipe
from didr_jax.training.redact import redacted
from didr_jax.training.run import Run, StageMissing, check_step, saved_products
from didr_jax.training.startup import is_first_process, leave, on_first, start
from didr_jax.training.validate import validate
from didr_jax.training.workdir import begin_anew, has_saves, lock, make_workdir
from didr_jax.types import InputError
from didr_jax.whole_files import of_the_disk

MODES = {
    "train": "trains all stages, or goes on where it was, and evaluates",
    "eval": "evaluates what was trained: tables, pictures, report.html",
    "sample": "writes samples of the trained generator",
    "benchmark": "draws the pictures of a benchmark, in its layout, and scores them",
    "export": "writes the trained generator for other programs",
    "score": "scores a folder of images by the configured rewards",
    "tac": "holds the configured rewards against people's rankings",
    "calibrate": "proposes a beta: how hard the reward pulls against the divergence, over noise levels; writes nothing",
    "compile": "plans a step on a machine that need not be here: memory, operations; touches no workdir",
}
MODES_OF = {  # flags of some modes only
    "step": ("sample", "eval", "benchmark", "export", "calibrate"),
    "allow_change": ("train",),
    "fit": ("tac",),
}
HOMELESS = ("calibrate", "compile")  # modes that need no workdir
STEPPING = ("train", "calibrate")  # modes in which a stage makes steps

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    f"The recipe: {', '.join(named_configs())}, a file of your own, or the config.json of a workdir, which "
    "--mode=sample, eval, benchmark, export and score find by themselves.",
    lock_config=True,
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, logs, tables and pictures go.")
_MODE = flags.DEFINE_string("mode", "train", " | ".join(MODES))
_STEP = flags.DEFINE_string(
    "step", "", "Which save of the last stage is sampled, evaluated, benchmarked, exported or calibrated: its step, latest or best "
    "(by checkpoint.best), of an unfinished run too; empty: the last of a finished one (calibrate: the stage's beginning)."
)  # fmt: skip
_ALLOW = flags.DEFINE_list(
    "allow_change", [], "Keys or sections of the config that a run may change on purpose when it goes on, e.g. "
    "align.beta,rewards; recorded in config.json."
)  # fmt: skip
_FIT = flags.DEFINE_bool("fit", False, "Of --mode=tac: also fit the weights of the mix to people's rankings (config.tac.fit).")

_VERBOSE = flags.DEFINE_bool("verbose", False, "Say all of what a refusal names only the first five of.")
_FLAGS = (_CONFIG, _WORKDIR, _STEP, _ALLOW, _FIT, _VERBOSE)  # what --help tells besides the modes


def _work(recipe: Recipe, run: Run, mode: str) -> None:
    """Trains and then evaluates, or does one of the recipe's other modes, in every process."""
    with StopRequest() as stop:
        if trained := mode == "train":
            products, mode = train(recipe, run, stop), "eval"
        alive = heartbeat(run.log.say, f"--mode={mode} is at work")
        with jax.set_mesh(run.mesh), alive, stop.at_once(f"doing --mode={mode}"):
            if not trained:
                products = {} if mode in recipe.alone else saved_products(run, _STEP.value)
            try:
                recipe.modes[mode](products, run)
            except StageMissing as missing:
                if not trained:
                    raise
                run.log.say(f"trained as asked, and nothing is reported: {missing}")


def _compile(config, machine: Target) -> None:
    """Plans a step of the recipe on a machine that need not be here; touches no workdir."""
    recipe = _build(config, "", "compile").planned()
    recipe.check("compile")
    with heartbeat(functools.partial(print, flush=True), "compiling"):
        plan = make_plan(main_stage(recipe, config), config, machine)
    print(report(plan, config, recipe))


def _calibrate(config, workdir: str) -> None:
    """Prints which β to take; reads the workdir, if there is one, and writes nothing."""
    recipe = _build(config, workdir, "calibrate")
    check(recipe, config, "calibrate")
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as held:
        origin.pin(config, workdir or scratch)
        log = RunLog(scratch)
        held.callback(log.close)
        run = Run(config, workdir or scratch, make_mesh(config.mesh), log)
        with jax.set_mesh(run.mesh):
            found = calibrate(recipe, run, _STEP.value)
    if is_first_process():
        print(told(found, config))


def _help(argv: list[str]) -> None:
    """Prints the flags, the modes, and the keys of the config if one is named; ends the process."""
    path = next((a.split("=", 1)[1] for a in with_paths(argv) if a.startswith("--config=")), "")
    said = {flag.name: flags.FLAGS[flag.name].help for flag in _FLAGS}
    try:
        config = _load(path) if path else None
    except OSError as error:
        raise InputError(f"--config={path} cannot be read ({error.strerror})") from None
    print(help_text(said, MODES, config, path.split(":", 1)[0]))
    sys.exit(0)


def _parse(argv: list[str]) -> list[str]:
    """absl's flag parsing, with an unknown config key reported beside the nearest valid ones."""
    if asked_for_help(argv):
        _help(argv)
    argv = with_paths(saved_config.with_saved(argv))
    for argument in argv:
        if argument.startswith(f"--config={SAVED}:"):  # here, as ml_collections would wrap what is wrong with it
            saved_config.get_config(argument.split(":", 1)[1])
    for flag in (_MODE, *_FLAGS):  # ours, whichever file was started
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[flag.name])
    try:
        rest = flags.FLAGS(argv)
    except (AttributeError, KeyError, TypeError, ValueError, flags.Error) as error:
        raise InputError(_explain(argv, error)) from None
    if len(rest) > 1:
        raise InputError(f"unexpected argument {rest[1]!r}; flags are written --name=value")
    try:
        missing = _CONFIG.value is None or _CONFIG.value.recipe is None
    except OSError as error:  # ml_collections keeps a failed import until the config is first read
        raise InputError(f"--config: {' '.join(str(error.__cause__ or error).split())}") from None
    if missing:
        raise InputError("--config is missing; for example --config=digits")
    if _MODE.value not in MODES:
        raise InputError(f"--mode={_MODE.value} is not known; {nearest(_MODE.value, MODES)}")
    check_step(_STEP.value)
    check_words(_MODE.value, {flag.name: flag.value for flag in (_STEP, _ALLOW, _FIT)})
    if not _WORKDIR.value and _MODE.value not in HOMELESS:
        raise InputError("--workdir is missing; name a directory for checkpoints, logs and pictures")
    return rest


def check_words(mode: str, words: Mapping[str, Any]) -> None:
    """Raises InputError for a flag, `{name: value}`, that is given and is not of this mode."""
    for name, modes in MODES_OF.items():
        if words.get(name) and mode not in modes:
            raise InputError(f"--{name} is for --mode={'|'.join(modes)}, not {mode}")


def _explain(argv: list[str], error: Exception) -> str:
    """One line for what absl or ml_collections could not parse."""
    prefix = "--config."
    try:
        path = next(a.split("=", 1)[1] for a in argv if a.startswith("--config="))
        known = flatten(_load(path))
    except Exception:
        known = {}
    for argument in argv[1:]:
        key = argument.split("=", 1)[0]
        if known and key.startswith(prefix) and key[len(prefix) :] not in known:
            return f"{key} is not a config key; {nearest(key[len(prefix) :], known)}"
    return " ".join(str(error).split()) or type(error).__name__


def _load(path: str):
    spec: dict = {}
    path, *argument = str(path).split(":", 1)
    with open(path) as file:
        exec(compile(file.read(), path, "exec"), spec)
    return spec["get_config"](*argument)


def _run(_argv: list[str]) -> None:
    config, workdir, mode = _CONFIG.value, _WORKDIR.value or "", _MODE.value
    logging.set_verbosity(logging.FATAL)  # orbax narrates every save, and what it raises as well
    mute_echoes()
    with _ending():
        kept = start(config, planning=mode == "compile")
        if mode == "compile":
            machine = target(config.compile.topology, config.compile.effort)  # the checks compute, and so ask for a device
            validate(config)
            return _compile(config, machine)
        validate(config)
        if mode == "calibrate":
            _calibrate(config, workdir)
            return leave()
        if _FIT.value and "tac" in config:
            config.tac.fit = True
        recipe = _build(config, workdir, mode)
        check(recipe, config, mode)
        if _STEP.value and mode in recipe.alone:
            raise InputError(f"--step picks a save of this workdir, and --mode={mode} as it is configured reads none")
        mesh = make_mesh(config.mesh)
        with contextlib.ExitStack() as held:
            if mode == "train":
                origin.pin(config, workdir)
            claims: list[Claim] = []
            on_first(lambda: claims.extend(_compare(recipe, config, workdir, mode, held)))
            told_of = redacted(config.to_dict())
            log = RunLog(workdir, config.log if mode == "train" else None, told_of)  # what only reads opens no tracker
            held.callback(log.close)
            for line in claims[0].news() if claims else ():
                log.say(line)
            if kept and mode == "train":
                log.say(kept)
            record = claims[0].record if claims else _nothing
            name = told_by_first(claims[0].about[RUN] if claims else "")
            redraw = Rewriting(workdir, log.say) if is_first_process() else None
            _work(recipe, Run(config, workdir, mesh, log, record, redraw, name), mode)
        leave()


@contextlib.contextmanager
def _ending() -> Iterator[None]:
    """Every way to end before the work is done, as one line and its code; what nobody expects keeps its traceback."""
    try:
        yield
    except InputError as error:
        _refuse(error)
    except RunStopped as stopped:
        if is_first_process() or not stopped.everywhere:
            _tell(stopped)
        if stopped.everywhere:
            leave()
        sys.exit(stopped.code)
    except Exception as error:
        if not of_the_disk(error):
            raise
        _tell(f"could not write ({' '.join(str(error).split())[:300]}); make room and start again")
        sys.exit(CannotSave.code)
    finally:
        _let_go_of_screen()


def _compare(recipe: Recipe, config, workdir: str, mode: str, held: contextlib.ExitStack) -> list[Claim]:
    """Holds the workdir while we train; what may be written to its config.json then, if anything.

    Raises:
      InputError: in use, or of another config.
    """
    make_workdir(workdir)
    if mode == "train":
        held.enter_context(lock(workdir))
    if mode in recipe.alone:
        return []
    reading, defaults = mode != "train", saved_config.defaults
    claim = compare(config, workdir, recipe.free, allowed=_ALLOW.value, defaults=defaults, reading=reading)
    claim.start = _start(recipe)
    if mode == "train" and not has_saves(workdir):
        claim.aside = begin_anew(workdir)
    return [claim]


def _start(recipe: Recipe) -> dict:
    """How this run was begun, for the commands in its report."""
    name = os.path.basename(sys.argv[0])
    program = {"run.py": "python run.py", "__main__.py": "python -m didr_jax"}.get(name, "didr-jax")
    flags = [argument for argument in sys.argv[1:] if not argument.startswith("--mode")]
    return {"program": program, "flags": flags, "modes": sorted(recipe.modes)}


def _build(config, workdir: str, mode: str) -> Recipe:
    """The recipe, whose paths are those of this host; names on the hub get their commits in `config`."""
    recipe = recipes.build(config)
    for _ in range(2):  # what a single file has decides what else is read
        if not (wanted := recipe.files(mode)):
            break
        recipe = recipes.build(fetched(config, workdir, wanted))
    return recipe


def _nothing(stage: str, step: int) -> list[str]:
    return []


def check(recipe: Recipe, config, mode: str) -> None:
    """Raises InputError for a mode that the recipe does not have, or that cannot work; writes nothing."""
    if mode not in (*STEPPING, *recipe.modes):
        raise InputError(f"--mode={mode}: the recipe {config.recipe!r} has no such mode")
    recipe.check("train" if mode in STEPPING else mode)
    if mode in STEPPING:
        main_stage(recipe, config)  # every stage is put together once, of shapes: what would not work says so now


def _refuse(error: InputError) -> None:
    _tell(error)
    if flags.FLAGS.is_parsed() and _VERBOSE.value:
        with contextlib.suppress(OSError):
            print(*(f"  {detail}" for detail in error.details), sep="\n", file=sys.stderr)
    sys.exit(2)


def _tell(message: object) -> None:
    with contextlib.suppress(OSError):  # the code tells as well
        print(f"didr_jax: {message}", file=sys.stderr)


def _let_go_of_screen() -> None:
    """Forgets what a closed pipe or a full disk has not taken: Python would end with code 120 for it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def main() -> None:
    """Entry point of run.py, of the command `didr-jax` and of `python -m didr_jax`; `compare RUN…` draws several runs."""
    if sys.argv[1:2] == ["compare"]:
        sys.exit(compare_runs(sys.argv[2:]))

    def parse(argv):
        try:
            return _parse(argv)
        except InputError as error:
            _refuse(error)

    app.run(_run, flags_parser=parse)
