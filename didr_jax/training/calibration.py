"""Which β gives the reward the wanted part in the generator's gradient: `--mode=calibrate`.

The ratio that is tuned is the logged `pull_to_divergence`, Σ pull / Σ divergence over samples.  Before it is measured the
TA takes a few steps with the generator at rest: a TA that has seen nothing yet does not know how far it is from the
reference.  The divergence does not depend on β.  The pull goes like 1/β for some objectives and estimators and stays
below a bound for others, so β is searched for, not computed.  Nothing is written anywhere.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from scipy import optimize

from didr_jax.training import origin
from didr_jax.training.introduction import heartbeat
from didr_jax.training.parallel import put_rows, settle, to_host
from didr_jax.training.pull import ALL, Measure
from didr_jax.training.recipe import Recipe
from didr_jax.training.run import Finished, Run, chosen_step, left_by
from didr_jax.training.stages import Stage
from didr_jax.training.state import GameState
from didr_jax.training.step import step_key
from didr_jax.types import InputError, PyTree

AT_REST = ("generator", "ema", "opt_generator", "skipped", "streak")  # of the state, while the TA takes its steps
CLOSE = 0.01  # relative error of a ratio that will do
FACTOR, TRIES = 4.0, 10  # of β while a bracket is sought
MOST = math.log(1000.0)  # of the first stride of log β


class Level(NamedTuple):
    """Means over the samples with times in [low, high]."""

    low: float
    high: float
    pull: float
    divergence: float


class Answer(NamedTuple):
    """Of one reward: its `ratio` at the config's β, and the `beta` that gives the wanted one.

    None: no β does; `largest` is the largest ratio that was met.
    """

    ratio: float
    beta: float | None
    largest: float


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What `calibrate` found: of the whole reward, and by name of each of its parts alone."""

    stage: str
    step: int
    samples: int
    levels: Sequence[Level]
    whole: Answer
    parts: dict[str, Answer]


def calibrate(recipe: Recipe, run: Run, step: str = "") -> Calibration:
    """Measures the last stage at its beginning, or at a save of it.

    Args:
      recipe: of the run.
      run: its workdir is only read: what earlier stages left, and the save.
      step: of that save, "latest", "best", or empty: the beginning.

    Raises:
      InputError: a stage in which no reward pulls against a divergence, an earlier one that is not finished, no such
        save, or figures that are not finite.
    """
    name = run.config.stages[-1]
    remedy = f"train the stages before {name!r} first, for example with --config.{name}.steps=1: more steps are free afterwards"
    products = Finished()
    for earlier in run.config.stages[:-1]:
        products[earlier] = origin.taken(earlier, run) or left_by(run.saves(earlier, read_only=True), earlier, run, remedy)
    stage = recipe.stages[name](products)
    if not stage.measures:
        raise InputError(f"--mode=calibrate: in stage {name!r} no reward pulls, so that there is no beta to find")
    if why := stage.settled().why:  # before anything of it is traced: processes agree on it
        run.log.say(f"{name}  {why}")
    _require_divergence(stage)
    state, first = state_at(stage, run, step)
    frozen, section = run.load(stage.frozen), run.config.calibrate
    with heartbeat(run.log.say, f"{name}  still measuring"):
        state = _with_settled_ta(stage, state, frozen, first, section.steps, run)
        batches = list(_batches(stage, first + section.steps, run))
        beta, wanted = run.config[name].beta, section.ratio
        sampler = {part: _Samples(measure, state, frozen, batches, run.config.seed) for part, measure in stage.measures.items()}
        found = {part: _answer(samples, beta, wanted) for part, samples in sampler.items()}
        levels = _levels(sampler[ALL].at(beta), section.levels)
    samples = len(sampler[ALL].at(beta)["t"])
    return Calibration(name, first, samples, levels, found.pop(ALL), found)


def _require_divergence(stage: Stage) -> None:
    rows = jax.tree.map(lambda c: c[-1], stage.batch(0))
    frozen = {name: weights.shapes for name, weights in stage.frozen.items()}
    found = jax.eval_shape(stage.measures[ALL], stage.shapes, frozen, rows, jax.random.key(0), jnp.float32(1))
    if "divergence" not in found:
        raise InputError("--mode=calibrate: this objective is its reward alone: there is no divergence to compare it with")


def state_at(stage: Stage, run: Run, step: str) -> tuple[GameState, int]:
    """The state of a save, as `chosen_step` finds it, and its step; with an empty `step` what training begins with, and 0.

    Raises:
      InputError: there is no such save.
    """
    shapes = run.placed(stage.shapes)
    places = jax.tree.map(lambda a: a.sharding, shapes)
    if step:
        saves = run.saves(stage.name, read_only=True)
        if saves.latest() is None:
            raise InputError(f"--step={step}: {run.workdir} has no save of stage {stage.name!r}; leave --step out")
        chosen = chosen_step(saves, step, stage.name, run)
        return stage.join(saves.restore(chosen, stage.split(shapes))), chosen
    state = origin.begun(stage, shapes, places, run)
    return (stage.init(places) if state is None else state), 0


def _with_settled_ta(stage: Stage, state: GameState, frozen: PyTree, first: int, steps: int, run: Run) -> GameState:
    places = jax.tree.map(lambda a: a.sharding, run.placed(stage.shapes))

    def ta_only(state, frozen, batch):
        """The compiler leaves out what the generator's update would have been."""
        new, _ = stage.step(state, frozen, batch)
        return dataclasses.replace(new, **{name: getattr(state, name) for name in AT_REST})

    update = jax.jit(ta_only, donate_argnums=0, out_shardings=places)
    for i in range(first, first + steps):
        batch = put_rows(functools.partial(stage.batch, i), stage.batch_size, run.mesh, stage.batch_axis)
        state = settle(update(state, frozen, batch))
    return state


def _batches(stage: Stage, first: int, run: Run) -> Iterator[PyTree]:
    """Conditions of generator updates, a micro-batch at a time."""
    parts = run.config[stage.name].micro_batches
    for i in range(first, first + run.config.calibrate.batches):
        for part in range(parts):
            of_part = np.arange(stage.batch_size)[part::parts]
            read = lambda rows, i=i, of_part=of_part: jax.tree.map(lambda c: c[-1], stage.batch(i, of_part[rows]))
            yield put_rows(read, len(of_part), run.mesh, 0)


class _Samples:
    """The same samples at any β."""

    def __init__(self, measure: Measure, state: GameState, frozen: PyTree, batches: Sequence[PyTree], seed: int):
        whole = NamedSharding(jax.sharding.get_mesh(), PartitionSpec())
        # numbers enter as numpy's, which are the same in every process
        drawn = lambda state, frozen, c, i, beta: measure(state, frozen, c, step_key(seed, i), beta)
        self._run = jax.jit(drawn, out_shardings=whole)
        self._state, self._frozen, self._batches = state, frozen, batches
        self._known: dict[float, dict[str, np.ndarray]] = {}

    def at(self, beta: float) -> dict[str, np.ndarray]:
        """`{"t", "pull", "divergence"}`, each `[n]`."""
        if beta not in self._known:
            parts = []
            for i, c in enumerate(self._batches):
                found = settle(self._run(self._state, self._frozen, c, np.int32(i), np.float32(beta)))
                parts.append(to_host(found))
            self._known[beta] = {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]}
        return self._known[beta]

    def ratio(self, beta: float) -> float:
        """Σ pull / Σ divergence; raises InputError if there is none."""
        found = self.at(beta)
        pull, divergence = float(np.sum(found["pull"])), float(np.sum(found["divergence"]))
        if not (math.isfinite(pull) and math.isfinite(divergence) and divergence > 0):
            raise InputError(
                f"--mode=calibrate: at beta {beta:g} the reward's part sums to {pull:g} and the divergence's to {divergence:g}, which "
                "have no ratio; look at the reward, or give the TA some --config.calibrate.steps"
            )
        return pull / divergence


def _answer(samples: _Samples, beta: float, wanted: float) -> Answer:
    at_first = samples.ratio(beta)
    found, largest = solve(samples.ratio, beta, wanted)
    return Answer(at_first, found, largest)


def solve(ratio: Callable[[float], float], beta: float, wanted: float) -> tuple[float | None, float]:
    """The temperature with `ratio(β) = wanted`, to `CLOSE` of it, and the largest ratio that was met.

    Args:
      ratio: falls with β, like 1/β where it is far from its bound.
      beta: to begin with.
      wanted: positive.

    Returns:
      None as the temperature where none that was looked at, `FACTOR` apart, has that ratio or is on its other side.

    >>> bounded = lambda beta: 1 / (1 + beta)  # never above 1
    >>> found, _ = solve(bounded, 1.0, wanted=0.2)
    >>> print(f"{found:.1f}", solve(bounded, 1.0, wanted=2.0)[0])
    4.0 None
    """
    met: dict[float, float] = {}

    def error(log_beta: float) -> float:
        beta = math.exp(log_beta)
        met[beta] = ratio(beta)
        return math.log(max(met[beta], 1e-30) / wanted)

    here = math.log(beta)
    off = error(here)
    stride = max(-MOST, min(off, MOST))  # as 1/β would have it
    for _ in range(TRIES):
        if abs(off) < CLOSE:
            return math.exp(here), max(met.values())
        there = here + stride
        off_there = error(there)
        if off * off_there <= 0:
            root = optimize.brentq(error, *sorted((here, there)), xtol=CLOSE / 10)
            return math.exp(root), max(met.values())
        here, off = there, off_there
        stride = math.copysign(math.log(FACTOR), off)
    return None, max(met.values())


def _levels(found: dict[str, np.ndarray], rows: int) -> list[Level]:
    """Means over samples of neighbouring times, as many in each row."""
    order = np.argsort(found["t"], kind="stable")
    levels = []
    for at in np.array_split(order, min(rows, len(order))):
        t, pull, divergence = (found[name][at] for name in ("t", "pull", "divergence"))
        levels.append(Level(float(t.min()), float(t.max()), float(pull.mean()), float(divergence.mean())))
    return levels


def told(found: Calibration, config: Any) -> str:
    """The calibration as text for the screen."""
    beta, wanted = config[found.stage].beta, config.calibrate.ratio
    lines = [
        f"{found.stage} at step {found.step}, after {config.calibrate.steps} steps of its TA with the generator at rest; "
        f"{found.samples} samples, objective {config[found.stage].objective}, beta {beta:g}",
        "",
        f"{'noise level t':<17}{'pull':>11}{'divergence':>12}{'ratio':>9}",
    ]
    for low, high, pull, divergence in found.levels:
        ratio = pull / divergence if divergence else math.nan
        lines.append(f"{low:.3f} to {high:.3f}   {pull:>11.4g}{divergence:>12.4g}{ratio:>9.3g}")
    lines += ["", f"{'reward':<17}{f'ratio at beta {beta:g}':>23}{f'beta for ratio {wanted:g}':>23}"]
    for name, answer in {"all together": found.whole, **found.parts}.items():
        lines.append(f"{name:<17}{answer.ratio:>23.3g}{_beta(answer):>23}")
    lines.append("")
    key = f"config.{found.stage}.beta"
    if found.whole.beta is None:
        lines.append(f"No {key} gives the ratio {wanted:g}: the largest met was {found.whole.largest:.3g}")
    else:
        lines.append(f"For a ratio of {wanted:g}: --{key}={found.whole.beta:.3g}")
    return "\n".join(lines)


def _beta(answer: Answer) -> str:
    return f"none ({answer.largest:.3g} at most)" if answer.beta is None else f"{answer.beta:.3g}"
