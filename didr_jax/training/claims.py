"""Whose a workdir is: the config that its run was trained with, what of it may change, and the record of what did.

    free                log, devices, evaluation, memory, caches: they do not define what is trained
    STAGE.steps         as well, as long as no learning rate depends on the stage's end and no later stage has begun
    --allow_change=KEY  everything else, on purpose: with the step, the old and the new value in config.json's history

A start only compares.  The workdir is written to (`Claim.record`) once the first step is done, and what is written there
binds once something is saved: a run that is refused or killed before leaves nothing that blocks the mended one.
"""

import dataclasses
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from didr_jax.checks import listed, nearest
from didr_jax.config import flatten
from didr_jax.training.contents import digest_at, digests_of
from didr_jax.training.optim import learning_rate
from didr_jax.training.redact import redacted
from didr_jax.training.workdir import has_saves, newest_step, read_config, write_config
from didr_jax.types import InputError

# Sections and keys that do not define what is trained.  Recipes add their own.
FREE = ("log", "checkpoint", "watch", "profile", "mesh", "distributed", "calibrate", "compile", "compiler", "unroll")
# The optimisers of a stage's section, and how many updates of each there are in a step.
UPDATES: dict[str, Callable[[Any], int]] = {
    "optimizer": lambda stage: 1,
    "generator_optimizer": lambda stage: 1,
    "ta_optimizer": lambda stage: stage.ta_updates,
}


RUN = "run"  # in what config.json says of itself: a name that no other run has, which is in its saves too


class Change(NamedTuple):
    """A key of the config with its value when the workdir was last written to, and now."""

    key: str
    then: Any
    now: Any


@dataclasses.dataclass
class Claim:
    """A workdir that the config may go on with.

    Attributes:
      config: of the run.
      workdir: its path.
      changes: what will be recorded.
      lacking: keys that the workdir's config.json does not have, as an older version wrote it.
      about: what config.json says of itself; its `history` has the earlier changes, `RUN` the run's name.
      aside: the folder into which was put what an earlier start logged and did not save; empty: there was nothing.
      changed: keys whose path is the same and what is there is not.
      free: sections and keys, besides `FREE`, that do not define what is trained.
      start: how this run was begun, as `report.html` tells it: its `program`, its `flags`, the `modes` that it has; None: what
        an earlier start said stays.
    """

    config: Any
    workdir: str
    changes: Sequence[Change] = ()
    lacking: Sequence[str] = ()
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    aside: str = ""
    start: Mapping[str, Any] | None = None
    changed: Sequence[str] = ()
    free: Sequence[str] = ()
    _written: bool = False

    def record(self, stage: str, step: int) -> list[str]:
        """Writes config.json, the first time that it is called; raises CannotSave.

        Args:
          stage, step: where the run goes on with this config.

        Returns:
          A line for the log about each change.
        """
        if self._written:
            return []
        changes = [{"stage": stage, "step": step, **change._asdict()} for change in self.changes]
        history = [*self.about.get("history", []), *changes]
        about = {**self.about, **(self.start or {})} | ({"history": history} if history else {})
        defining = {k: v for k, v in flatten(self.config.to_dict()).items() if not _within(k, (*FREE, *self.free))}
        about = {key: value for key, value in about.items() if key != "digests"}
        about |= {"digests": digests} if (digests := digests_of(defining)) else {}
        write_config(self.workdir, self.config, about)
        self._written = True
        return [f"config.{c.key} = {c.now!r} from step {step} of {stage} on ({c.then!r} before)" for c in self.changes]

    def news(self) -> list[str]:
        """Lines for the log: an earlier start that saved nothing, files that have changed, keys that have since come."""
        lines = [f"begins anew: what an earlier start logged and did not save is in {self.aside}"] if self.aside else []
        lines += [
            f"warning: config.{key} is not what it was: files there have changed since the run began" for key in self.changed
        ]
        if not self.lacking:
            return lines
        return [*lines, f"config.json of {self.workdir} is older than {listed(self.lacking)}: today's defaults hold"]


def compare(
    config: Any,
    workdir: str,
    free: Sequence[str] = (),
    *,
    allowed: Sequence[str] = (),
    defaults: Callable[[dict], Mapping[str, Any]] = lambda raw: {},
    reading: bool = False,
) -> Claim:
    """The claim of `config` on `workdir`; writes nothing.

    Args:
      config: of the run.
      workdir: of an earlier run, or of none.
      free: sections and keys, besides `FREE`, that do not define what is trained.
      allowed: sections and keys that are changed on purpose.
      defaults: of a config.json's content: today's values, by flat key, of what it may lack.
      reading: nothing will be trained, so that nothing can be changed on purpose.

    Raises:
      InputError: trained with values that contradict `config` (all are named), by another version, or further than
        `config` goes; or an allowed change that could not change anything.
    """
    found = read_config(workdir)
    now, raw = flatten(redacted(config.to_dict())), {} if found is None else found[0]
    then = flatten(redacted(raw))
    _require_known(allowed, now.keys() | then.keys())
    if found is None or not has_saves(workdir):
        return Claim(config, workdir, about={RUN: secrets.token_hex(8)}, free=free)
    since = {key: value for key, value in defaults(raw).items() if key in now and key not in then}
    then |= since
    changes = [Change(key, then.get(key), now.get(key)) for key in sorted(now.keys() | then.keys())]
    changes = [
        c for c in changes if c.then != c.now and not _within(c.key, (*FREE, *free)) and not c.key.endswith(".micro_batches")
    ]
    digests = found[1].get("digests")
    digests = digests if isinstance(digests, dict) else {}
    changes = [c for c in changes if not _same_content(c, digests)]
    kept = {key: value for key, value in now.items() if key in digests and then.get(key) == value and not reading}
    anew = digests_of(kept)
    changed = sorted(key for key in kept if key in anew and anew[key] != digests[key])
    steps = {f"{name}.steps": name for name in config.stages if f"{name}.steps" in now}
    blocking = []
    for change in changes:
        stage = steps.get(change.key)
        why = _consequences(config, change.then, workdir, stage) if stage else ""
        if not _within(change.key, allowed) and (why or not stage):
            blocking.append(f"{change.key} ({change.then!r} then, {change.now!r} now{why})")
    if blocking:
        keys = ",".join(text.split(" ", 1)[0] for text in blocking)
        others = f"a new workdir, the same values, or change them on purpose with --allow_change={keys}"
        remedy = "the values that it was trained with" if reading else others
        raise InputError(f"--workdir={workdir} was trained with another config: {listed(blocking, '; ')}. Use {remedy}", blocking)
    _require_effect([c for c in changes if c.key not in steps], config, workdir)
    about = {RUN: secrets.token_hex(8), **found[1]}  # an older version gave none
    return Claim(config, workdir, changes, sorted(since), about, changed=changed, free=free)


def _same_content(change: Change, digests: Mapping[str, Any]) -> bool:
    """Whether a path became another, and what is there did not."""
    paths = isinstance(change.then, str) and isinstance(change.now, str) and change.key in digests
    return paths and digest_at(change.now) == digests[change.key]


def _within(key: str, names: Iterable[str]) -> bool:
    """Whether a key is one of the names, or in one of these sections."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _require_known(allowed: Sequence[str], keys: Iterable[str]) -> None:
    keys = list(keys)
    for name in allowed:
        if not any(_within(key, (name,)) for key in keys):
            raise InputError(f"--allow_change={name}: not a config key; {nearest(name, keys)}")


def _require_effect(changes: Sequence[Change], config, workdir: str) -> None:
    """Raises InputError for a change of what is finished: it would be recorded and would not have happened."""
    newest = {name: newest_step(workdir, name) or 0 for name in config.stages}
    for change in changes:
        section = change.key.split(".")[0]
        concerned = [section] if section in newest else list(newest)
        if all(newest[name] >= config[name].steps for name in concerned):
            done = ", ".join(f"{name} at step {newest[name]}" for name in concerned)
            raise InputError(
                f"--allow_change={change.key} would change nothing: finished is {done}; give more steps as well "
                f"(--config.{concerned[-1]}.steps=…)"
            )


def _consequences(config, before: int | None, workdir: str, stage: str) -> str:
    """What else another number of steps than `before` changes of a stage, as the end of its refusal; empty: nothing."""
    section, newest = config[stage], newest_step(workdir, stage)
    if newest is None or before is None:
        return ""
    if section.steps < newest:
        raise InputError(
            f"config.{stage}.steps = {section.steps}, but --workdir={workdir} is at step {newest} of it already: give "
            f"{newest} or more; --step reads an earlier save"
        )
    lines = []
    for name, updates in UPDATES.items():
        if name in section and section[name].decay:
            each = updates(section)
            rates = (float(learning_rate(section[name], n * each)(newest * each)) for n in (before, section.steps))
            lines.append(
                "{} decays to the stage's end: at step {} its rate is {:.3g}, and then {:.3g}".format(name, newest, *rates)
            )
    later = config.stages[list(config.stages).index(stage) + 1 :]
    if begun := [name for name in later if newest_step(workdir, name) is not None]:
        lines.append(f"{', '.join(begun)} began from what it left at step {newest} and is not redone")
    return "".join(f"; {line}" for line in lines)
