"""GenEval (Ghosh et al., arXiv 2310.11513): is what was asked for in the picture, by what a detector found?

A prompt's metadata asks for objects (`include`: class, count, perhaps a colour, perhaps a position relative to an earlier
one) and forbids some (`exclude`).  With the detections of one class sorted by score, the surest first,

    found        those with a score above .3, or .9 where the task is counting; at most 16 of a class                (1)
    include      at least `count` of them; colour and position are asked of the `count` surest                       (2)
    colour       at least `count` of those have it
    position     with centres c, sizes d and o = c_a − c_b:  |o| less .1 (d_a + d_b), not below 0, with the sign of o,
                 over ‖o‖; below −½ or above ½ it is left of / right of, above / below                               (3)
    exclude      fewer than `count` of them
    score        the share of right pictures of each task, and the mean over the tasks                               (4)

(3) must hold between every one of the objects and every one of its target's.  The detector (mask2former) and the classifier
of colours (CLIP on the object cut out) are outside: their answers come as a file, or its verdicts do (`results.jsonl`).
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from didr_jax.suites.tables import Mean, mean_of
from didr_jax.text.prompts import read_rows
from didr_jax.types import InputError

THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9
MOST = 16  # objects of a class
POSITION = 0.1
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")


class Detection(NamedTuple):
    """`box` [left, top, right, bottom], pixels; `colour`: one of `COLOURS`, or None where nobody looked."""

    name: str
    box: tuple[float, float, float, float]
    score: float
    colour: str | None = None


class Judged(NamedTuple):
    """Of one picture: its task, its prompt's metadata as text, whether it is right, and why not."""

    tag: str
    prompt: str
    correct: bool
    reason: str = ""


def relations(a: Sequence[float], b: Sequence[float]) -> set[str]:
    """Where box `a` lies relative to box `b`, by (3)."""
    (corner_a, corner_b) = (np.asarray(box, float).reshape(2, 2) for box in (a, b))
    offset = corner_a.mean(0) - corner_b.mean(0)
    sizes = np.abs(corner_a[1] - corner_a[0]) + np.abs(corner_b[1] - corner_b[0])
    beyond = np.maximum(np.abs(offset) - POSITION * sizes, 0) * np.sign(offset)
    if (np.abs(beyond) < 1e-3).all():
        return set()
    x, y = beyond / np.linalg.norm(offset)
    held = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {name for name, holds in held.items() if holds}


def kept(detections: Iterable[Detection], tag: str) -> dict[str, list[Detection]]:
    """By class, the surest first, (1)."""
    least = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    found: dict[str, list[Detection]] = {}
    for each in sorted(detections, key=lambda one: -one.score):
        if each.score > least and len(found.get(each.name, ())) < MOST:
            found.setdefault(each.name, []).append(each)
    return found


def judge(detections: Iterable[Detection], metadata: Mapping[str, Any]) -> Judged:
    """One picture against its prompt's metadata.

    Raises:
      InputError: a colour is asked of an object whose colour nobody looked at.
    """
    found = kept(detections, metadata["tag"])
    reasons: list[str] = []
    targets: list[list[Detection] | None] = []
    for asked in metadata.get("include", []):
        told, objects = _include(asked, found, targets)
        reasons += told
        targets.append(None if told else objects)
    for asked in metadata.get("exclude", []):
        there = len(found.get(asked["class"], ()))
        if there >= asked["count"]:
            reasons.append(f"expected {asked['class']}<{asked['count']}, found {there}")
    return Judged(metadata["tag"], json.dumps(dict(metadata), sort_keys=True), not reasons, "\n".join(reasons))


def _include(
    asked: Mapping[str, Any], found: Mapping[str, list[Detection]], targets: Sequence[list[Detection] | None]
) -> tuple[list[str], list[Detection]]:
    """What is wrong with one of `include`, and its objects."""
    name, count = asked["class"], asked["count"]
    objects = found.get(name, [])[:count]
    if len(objects) < count:
        return [f"expected {name}>={count}, found {len(objects)}"], objects
    if "color" in asked:
        if any(each.colour is None for each in objects):
            raise InputError(f"geneval: {asked['color']} is asked of {name}, whose detections have no color; classify them")
        right = sum(each.colour == asked["color"] for each in objects)
        if right < count:
            seen = ", ".join(
                f"{sum(each.colour == c for each in objects)} {c}" for c in COLOURS if c in {o.colour for o in objects}
            )
            return [f"expected {asked['color']} {name}>={count}, found {seen}"], objects
    if "position" in asked:
        relation, which = asked["position"]
        target = targets[which]
        if target is None:
            return [f"no target for {name} to be {relation}"], objects
        for a in objects:
            for b in target:
                if relation not in (held := relations(a.box, b.box)):
                    return [f"expected {name} {relation} target, found {' and '.join(sorted(held))} target"], objects
    return [], objects


# ------------------------------------------------------------------------------------------- files


def read_detections(path: str | os.PathLike) -> dict[str, list[Detection]]:
    """`{picture's name: detections}` of a `.jsonl`, a line a picture:

    `{"filename": "00000/samples/0000.png", "detections": [{"class": "bench", "box": [l, t, r, b], "score": 0.98, "color": "red"}]}`

    Raises:
      InputError: a line that is not this.
    """
    found: dict[str, list[Detection]] = {}
    for where, row in read_rows(path, ("filename", "detections")):
        try:
            found[_short(row["filename"])] = [_detection(each) for each in row["detections"]]
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())[:100]
            raise InputError(
                f"config.benchmark.detections: {where} is not {{filename, detections: [{{class, box, score}}]}} ({said})"
            ) from None
    return found


def _detection(each: Mapping[str, Any]) -> Detection:
    box = tuple(float(x) for x in each["box"])
    if len(box) != 4 or not np.isfinite([*box, each["score"]]).all():
        raise ValueError(f"box {each['box']}, score {each['score']}")
    if each.get("color") not in (None, *COLOURS):
        raise ValueError(f"color {each['color']!r} is none of {', '.join(COLOURS)}")
    return Detection(str(each["class"]), box, float(each["score"]), each.get("color"))


def read_results(path: str | os.PathLike) -> list[Judged]:
    """`results.jsonl` as GenEval's own program writes it: filename, tag, prompt, correct, reason, metadata.

    Raises:
      InputError: a line that is not this, or none.
    """
    found = []
    for where, row in read_rows(path, ("tag", "correct")):
        if not isinstance(row, dict) or not isinstance(row.get("tag"), str) or not isinstance(row.get("correct"), bool):
            raise InputError(
                f"config.benchmark.results: {where} has no tag and correct; give results.jsonl of evaluate_images.py"
            )
        found.append(
            Judged(row["tag"], str(row.get("metadata", row.get("prompt", ""))), row["correct"], str(row.get("reason", "")))
        )
    if not found:
        raise InputError(f"config.benchmark.results: {path} has no lines")
    return found


def judge_all(
    detections: Mapping[str, Sequence[Detection]], pictures: Sequence[tuple[Sequence[str], Mapping[str, Any]]]
) -> list[Judged]:
    """All pictures.

    Args:
      detections: of `read_detections`.
      pictures: (the names that one may have, its prompt's metadata).

    Raises:
      InputError: pictures that the detections do not have.
    """
    named = [next((name for name in map(_short, names) if name in detections), None) for names, _ in pictures]
    if absent := [names[0] for (names, _), name in zip(pictures, named, strict=True) if name is None]:
        raise InputError(
            f"config.benchmark.detections: {len(absent)} pictures have no line, the first {absent[0]}; one without objects has []"
        )
    return [judge(detections[name], metadata) for (_, metadata), name in zip(pictures, named, strict=True) if name is not None]


def _short(name: str) -> str:
    """The last three parts of a path: 00000/samples/0000.png."""
    return "/".join(str(name).replace("\\", "/").split("/")[-3:])


# ----------------------------------------------------------------------------------------- figures


def summary(judged: Sequence[Judged]) -> dict[str, Mean]:
    """`{task: Mean}` in the order of the pictures, and `overall` by (4); errors by a bootstrap over prompts within tasks."""
    tasks: dict[str, dict[str, list[bool]]] = {}
    for each in judged:
        tasks.setdefault(each.tag, {}).setdefault(each.prompt, []).append(each.correct)
    found = {tag: _of_task(list(prompts.values())) for tag, prompts in tasks.items()}
    mean = float(np.mean([each.mean for each in found.values()]))
    error = float(np.sqrt(sum(each.error**2 for each in found.values())) / len(found))
    return found | {"overall": Mean(mean, error)}


def _of_task(prompts: Sequence[Sequence[bool]]) -> Mean:
    """Pictures count alike, as (4) has it; with equally many of each prompt that is the mean over prompts."""
    longest = max(map(len, prompts))
    values = np.array([[*map(float, each), *[np.nan] * (longest - len(each))] for each in prompts])
    return mean_of(values)._replace(mean=float(np.nanmean(values)), unknown=0)


def text_of(found: Mapping[str, Mean]) -> list[str]:
    """Lines of a table, in percent; the overall score as GenEval prints it."""
    lines = [f"{name:<16} {100 * each.mean:6.2f} ± {100 * each.error:.2f} %" for name, each in found.items()]
    return [*lines[:-1], f"{'overall':<16} {found['overall'].mean:.5f} ± {found['overall'].error:.5f}"]
