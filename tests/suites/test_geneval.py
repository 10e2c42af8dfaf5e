"""GenEval's rules against cases worked by hand, and against a restatement in plain numbers; its files in and out."""

import json
import math

import numpy as np
import pytest

from didr_jax.suites.geneval import Detection, judge, judge_all, kept, read_detections, read_results, relations, summary, text_of
from didr_jax.types import InputError


def box(x, y, width=10, height=10):
    """Around a centre."""
    return (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def seen(name, score=0.95, colour=None, at=(0, 0)):
    return Detection(name, box(*at), score, colour)


def asked(tag, include, exclude=()):
    return {"tag": tag, "prompt": "p", "include": list(include), "exclude": list(exclude)}


def cat(count=1, **more):
    return {"class": "cat", "count": count} | more


DOG = {"class": "dog", "count": 1}
LEFT = [DOG, cat(position=["left of", 0])]
CASES = [  # detections, metadata, right?, a word of the reason
    ([seen("cat")], asked("single_object", [cat()]), True, ""),
    ([seen("cat", 0.3)], asked("single_object", [cat()]), False, "expected cat>=1, found 0"),
    ([seen("cat", 0.31)], asked("single_object", [cat()]), True, ""),
    ([seen("cat", 0.89)], asked("counting", [cat()]), False, "found 0"),
    ([seen("cat"), seen("cat", 0.92)], asked("counting", [cat(2)], [cat(3)]), True, ""),
    ([seen("cat")] * 3, asked("counting", [cat(2)], [cat(3)]), False, "expected cat<3, found 3"),
    ([seen("cat"), seen("dog")], asked("two_object", [cat(), DOG]), True, ""),
    ([seen("cat")], asked("two_object", [cat(), DOG]), False, "dog"),
    ([seen("cat", colour="red")], asked("colors", [cat(color="red")]), True, ""),
    ([seen("cat", colour="blue")], asked("colors", [cat(color="red")]), False, "expected red cat>=1, found 1 blue"),
    # colour is asked of the surest, not of any
    ([seen("cat", 0.9, "blue"), seen("cat", 0.8, "red")], asked("colors", [cat(color="red")]), False, "1 blue"),
    ([seen("dog", at=(50, 0)), seen("cat", at=(0, 0))], asked("position", LEFT), True, ""),
    ([seen("dog", at=(0, 0)), seen("cat", at=(50, 0))], asked("position", LEFT), False, "found right of target"),
    ([seen("cat", at=(0, 0))], asked("position", LEFT), False, "no target for cat"),
    # both cats must be left of the dog
    ([seen("dog", at=(50, 0)), seen("cat"), seen("cat", 0.8, at=(90, 0))], asked("position", [DOG, cat(2, position=["left of", 0])]), False, "right of"),
]  # fmt: skip


@pytest.mark.parametrize("detections, metadata, right, reason", CASES)
def test_a_picture_is_judged_as_the_rules_say(detections, metadata, right, reason):
    found = judge(detections, metadata)
    assert found.correct is right and reason in found.reason and (found.tag, bool(found.reason)) == (metadata["tag"], not right)


def test_at_most_sixteen_of_a_class_are_looked_at_the_surest():
    many = [seen("cat", score) for score in np.linspace(0.31, 0.99, 20)]
    found = kept(many, "single_object")["cat"]
    assert len(found) == 16 and [each.score for each in found] == sorted((each.score for each in many), reverse=True)[:16]


def test_positions_are_those_of_the_formula_in_plain_numbers():
    rng = np.random.default_rng(0)
    names = {0: ("left of", "right of"), 1: ("above", "below")}
    told = set()
    for _ in range(300):
        a, b = (box(*rng.uniform(0, 60, 2), *rng.uniform(2, 50, 2)) for _ in range(2))
        wanted, offsets, beyond = set(), [], []
        for axis in (0, 1):
            offset = (a[axis] + a[axis + 2]) / 2 - (b[axis] + b[axis + 2]) / 2
            room = 0.1 * (a[axis + 2] - a[axis] + b[axis + 2] - b[axis])
            offsets.append(offset)
            beyond.append(math.copysign(max(abs(offset) - room, 0), offset))
        for axis in (0, 1):
            share = beyond[axis] / math.hypot(*offsets)
            if abs(share) > 0.5 and max(map(abs, beyond)) >= 1e-3:
                wanted.add(names[axis][share > 0])
        assert relations(a, b) == wanted
        told |= {frozenset(wanted)}
    assert relations(box(3, 3), box(3, 3)) == set()
    assert {frozenset(), frozenset({"above"}), frozenset({"left of", "below"})} <= told


def test_detections_come_from_a_file_of_any_folder_and_pictures_without_a_line_are_told(tmp_path):
    rows = [
        {
            "filename": f"/some/where/0000{i}/samples/0000.png",
            "detections": [{"class": "cat", "box": [0, 0, 9, 9], "score": 0.8}] * i,
        }
        for i in range(2)
    ]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read_detections(tmp_path / "d.jsonl")
    pictures = [([f"0000{i}/samples/0000.png"], asked("single_object", [cat()])) for i in range(2)]
    assert [each.correct for each in judge_all(found, pictures)] == [False, True]
    with pytest.raises(InputError, match="1 pictures have no line, the first 00002/samples/0000.png"):
        judge_all(found, [*pictures, (["00002/samples/0000.png"], asked("single_object", [cat()]))])
    with pytest.raises(InputError, match="red is asked of cat, whose detections have no color"):
        judge([seen("cat")], asked("colors", [cat(color="red")]))


@pytest.mark.parametrize("line", [
    '{"detections": []}', '{"filename": "a", "detections": [{"class": "cat", "score": 1}]}', "[]",
    '{"filename": "a", "detections": [{"class": "cat", "box": [1, 2, 3], "score": 1}]}',
    '{"filename": "a", "detections": [{"class": "cat", "box": [1, 2, 3, 4], "score": 1, "color": "mauve"}]}',
])  # fmt: skip
def test_a_line_that_is_no_detection_is_refused_in_one(line, tmp_path):
    (tmp_path / "d.jsonl").write_text(line)
    with pytest.raises(InputError, match="d.jsonl, line 1 is not") as refused:
        read_detections(tmp_path / "d.jsonl")
    assert "\n" not in str(refused.value)


def test_the_score_is_the_mean_over_tasks_of_the_share_of_right_pictures(tmp_path):
    """As GenEval's own summary has it: tasks count alike, whatever the number of their pictures."""
    rows = [{"filename": "x", "tag": "a", "prompt": f"{i // 4}", "correct": i < 6, "reason": ""} for i in range(8)]
    rows += [{"filename": "x", "tag": "b", "prompt": "p", "correct": True, "reason": ""}]
    (tmp_path / "results.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = summary(read_results(tmp_path / "results.jsonl"))
    assert {name: each.mean for name, each in found.items()} == {"a": 0.75, "b": 1.0, "overall": 0.875}
    assert found["overall"].error == pytest.approx(found["a"].error / 2) and found["a"].error == pytest.approx(
        0.25 / 2**0.5, rel=0.1
    )
    assert text_of(found)[-1].startswith("overall          0.87500")
    (tmp_path / "results.jsonl").write_text('{"tag": "a", "correct": 1}')
    with pytest.raises(InputError, match="line 1 has no tag and correct"):
        read_results(tmp_path / "results.jsonl")
