"""The command line: flags, modes, and one clear line for anything that cannot be used."""

import contextlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from didr_jax import recipes
from didr_jax.checks import nearest
from didr_jax.config import flatten
from didr_jax.named_configs import named_configs, with_paths
from didr_jax.planning.plan import make_plan
from didr_jax.planning.report import report
from didr_jax.planning.targets import target
from didr_jax.training.exits import RunStopped
from didr_jax.training.loop import load_products, train
from didr_jax.training.metrics import RunLog
from didr_jax.training.parallel import to_host
from didr_jax.training.startup import is_first_process, leave, on_first, start
from didr_jax.training.validate import validate
from didr_jax.training.workdir import claim_workdir, lock
from didr_jax.types import InputError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, f"The recipe: {', '.join(named_configs())}, or a file of your own.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, logs, tables and pictures go.")
_MODE = flags.DEFINE_string("mode", "train", "train | sample | eval | export | score | compile")


def _train(recipe, config, workdir: str, log: RunLog) -> None:
    _report(recipe.evaluate, train(recipe, config, workdir, log), workdir, log)


def _sample(recipe, config, workdir: str, log: RunLog) -> None:
    _report(recipe.sample, load_products(recipe, config, workdir), workdir, log)


def _evaluate(recipe, config, workdir: str, log: RunLog) -> None:
    _report(recipe.evaluate, load_products(recipe, config, workdir), workdir, log)


def _report(write, products: dict, workdir: str, log: RunLog) -> None:
    """Process 0 reports, on its own, from whole copies of the parameters."""
    products = to_host(products)
    if is_first_process():
        write(products, workdir, log)


def _export(recipe, config, workdir: str, log: RunLog) -> None:
    _report(recipe.export, load_products(recipe, config, workdir), workdir, log)


def _score(recipe, config, workdir: str, log: RunLog) -> None:
    if is_first_process():
        recipe.score(workdir, log)


MODES = {"train": _train, "sample": _sample, "eval": _evaluate, "export": _export, "score": _score}
OPTIONAL = {"export": "export", "score": "score", "compile": "outline"}  # mode -> what a recipe may not have


def _compile(config) -> None:
    """Plans a step of the recipe on a machine that need not be here; touches no workdir."""
    machine = target(config.compile.topology, config.compile.effort)
    recipe = recipes.build(config)
    _check(recipe, config, "compile")
    print(report(make_plan(recipe.outline(), config, machine), config))


def _parse(argv: list[str]) -> list[str]:
    """absl's flag parsing, with an unknown config key reported beside the nearest valid ones."""
    argv = with_paths(argv)
    for flag in (_CONFIG, _WORKDIR, _MODE):  # what --help lists, whichever file was started
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
    if _MODE.value not in (*MODES, "compile"):
        raise InputError(f"--mode={_MODE.value} is not known; {nearest(_MODE.value, [*MODES, 'compile'])}")
    if not _WORKDIR.value and _MODE.value != "compile":
        raise InputError("--workdir is missing; name a directory for checkpoints, logs and pictures")
    return rest


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
    spec = {}
    with open(path) as file:
        exec(compile(file.read(), path, "exec"), spec)
    return spec["get_config"]()


def _run(_argv: list[str]) -> None:
    config, workdir = _CONFIG.value, _WORKDIR.value
    logging.set_verbosity(logging.WARNING)  # orbax narrates every save
    try:
        start(config, alone=_MODE.value == "compile")
        validate(config)
        if _MODE.value == "compile":
            return _compile(config)
        recipe = recipes.build(config)
        _check(recipe, config, _MODE.value)
        with contextlib.ExitStack() as held:
            on_first(lambda: _claim(config, workdir, held))
            log = RunLog(workdir, config.log)
            held.callback(log.close)
            MODES[_MODE.value](recipe, config, workdir, log)
        leave()
    except InputError as error:
        _refuse(error)
    except RunStopped as stopped:
        if is_first_process() or not stopped.everywhere:
            print(f"didr_jax: {stopped}", file=sys.stderr)
        if stopped.everywhere:
            leave()
        sys.exit(stopped.code)


def _claim(config, workdir: str, held: contextlib.ExitStack) -> None:
    """Makes the workdir ours: for good where its config says so, and alone while we train."""
    claim_workdir(config, workdir)
    if _MODE.value == "train":
        held.enter_context(lock(workdir))


def _check(recipe, config, mode: str) -> None:
    if mode in OPTIONAL and getattr(recipe, OPTIONAL[mode]) is None:
        raise InputError(f"--mode={mode}: the recipe {config.recipe!r} has no such mode")
    recipe.check(mode)


def _refuse(error: InputError) -> None:
    print(f"didr_jax: {error}", file=sys.stderr)
    sys.exit(2)


def main() -> None:
    """Entry point of run.py, of the command `didr-jax` and of `python -m didr_jax`."""

    def parse(argv):
        try:
            return _parse(argv)
        except InputError as error:
            _refuse(error)

    app.run(_run, flags_parser=parse)
