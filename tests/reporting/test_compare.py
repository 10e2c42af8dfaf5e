"""`didr-jax compare`: several runs on one self-contained page, with the plane of reward against cost."""

import re
import sys

import numpy as np
import pytest

from configs import digits
from didr_jax import cli
from didr_jax.reporting.compare import labels, write_comparison
from didr_jax.reporting.contents import read_workdir
from didr_jax.reporting.pairs import write_pairs
from didr_jax.reporting.pareto import Point, costs_of, front, in_words, point_of, together
from didr_jax.training.metrics import RunLog
from didr_jax.training.reports import write_summary
from didr_jax.types import InputError
from tests.reporting.test_report_html import Page
from tests.tiny_runs import claim_workdir

HOSTILE = '<script>alert("x")</script> & <b>'


def run_of(folder, reward, cost, seed=0, beta=1.0, finished=True):
    """A digits run that came to a reward and a cost, as its writers leave it."""
    config, rng, n = digits.get_config(), np.random.default_rng(7), 30
    config.seed, config.align.beta = seed, beta
    claim_workdir(config, str(folder), (), {"program": "python run.py", "flags": [], "modes": ["eval"]})
    log = RunLog(str(folder))
    for step in (0, 200, config.align.steps):
        share = step / config.align.steps
        log.write("align", step, {"eval/reward": reward * share, "eval/to_tilted_data": 1 + (cost - 1) * share})
    if finished:
        rows = {"one step, initial": (0.0, 1.0), "one step, didr": (reward, cost)}
        write_summary(
            str(folder), {label: {"reward": r, "to_tilted_data": c, "accuracy": 0.9} for label, (r, c) in rows.items()}, log
        )
        before, after = rng.integers(0, 255, (2, n, 8, 8)).astype(np.uint8)
        write_pairs(str(folder), before, after, [HOSTILE] + ["digit"] * (n - 1), rng.normal(size=n), rng.normal(size=n) + reward)
    log.close()
    return str(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """a is beaten by b; c costs less than b; d is c with another seed; e is not finished."""
    root = tmp_path_factory.mktemp("runs")
    rows = [("a", 0.5, 2.0, 0, 1.0), ("b", 0.8, 1.5, 0, 0.5), ("c", 0.6, 1.2, 0, 2.0), ("d", 0.7, 1.3, 1, 2.0)]
    found = [run_of(root / name, *rest) for name, *rest in rows]
    return [*found, run_of(root / "e", 0.1, 1.1, 0, 4.0, finished=False)]


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    with open(write_comparison(runs, str(tmp_path_factory.mktemp("out") / "compare.html")), encoding="utf-8") as file:
        return Page(file.read())


def held(runs):
    return dict(zip("abcde", map(read_workdir, runs), strict=True))


def test_it_is_one_whole_page_that_asks_for_nothing_and_is_told_in_words(page):
    assert page.broken == [] and len(page.all("h1")) == 1
    names = [a["id"] for _, a in page.elements if "id" in a]
    assert len(names) == len(set(names))
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/")), tag
        assert tag not in ("script", "link", "iframe", "object", "embed", "base")
    policy = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert page.all("img") and all(image["alt"].strip() for image in page.all("img"))
    drawings = page.all("svg")
    assert len(drawings) == 2 and all(drawing["role"] == "img" and drawing["aria-label"].strip() for drawing in drawings)
    assert any(HOSTILE in text for text in page.text) and not page.all("b")


def test_every_run_has_its_row_and_only_differing_settings_are_told(page):
    text = " ".join(" ".join(page.text).split())
    for cell in ("0.5", "0.8", "1.2", "0.1"):
        assert cell in page.cells
    assert "This run is not finished" in text and "The reward rose" in text
    assert "align.beta" in text and "seed" in text and "align.ta_updates" not in text
    assert "c stands for c, d, which differ in their seed alone" in text


def test_the_same_noise_is_shown_through_every_run_that_has_it(page):
    alts = [image["alt"] for image in page.all("img")]
    assert len(alts) == 8 * 5 and alts[:5] == [f"{HOSTILE}, {side} (number 0)" for side in ("before", "a", "b", "c", "d")]


def test_a_points_bars_are_its_samples_errors_or_the_range_of_its_seeds(runs):
    found = held(runs)
    assert costs_of(list(found.values())) == ["to_tilted_data"]
    assert together(found) == {"a": ["a"], "b": ["b"], "c": ["c", "d"], "e": ["e"]}
    one, two = (
        point_of(label, [found[each] for each in members], "to_tilted_data") for label, members in (("a", "a"), ("c", "cd"))
    )
    error = np.std(found["a"].pairs.reward_after, ddof=1) / 30**0.5
    assert one.reward == pytest.approx((0.5, 0.5 - 1.96 * error, 0.5 + 1.96 * error)) and one.cost == (2.0, 2.0, 2.0)
    assert two.reward == pytest.approx((0.65, 0.6, 0.7)) and two.cost == pytest.approx((1.25, 1.2, 1.3)) and two.seeds == 2
    assert one.start == (1.0, 0.0)
    np.testing.assert_allclose(one.course[[0, -1]], [[1.0, 0.0], [2.0, 0.5]])
    unfinished = point_of("e", [found["e"]], "to_tilted_data")
    assert (unfinished.cost[0], unfinished.reward[0], unfinished.start) == (1.1, 0.1, None)


def test_the_front_are_those_that_no_other_one_beats():
    point = lambda label, cost, reward: Point(label, 1, (cost,) * 3, (reward,) * 3, np.empty((0, 2)), None)
    points = [point("a", 2.0, 0.5), point("b", 1.5, 0.8), point("c", 1.2, 0.6), point("d", 1.2, 0.6), point("e", 1.3, 0.6)]
    assert front(points) == [1, 2, 3]
    assert in_words(points, "kl").endswith("Beaten by none: b, c, d")


def test_labels_are_the_shortest_that_tell_runs_apart(tmp_path):
    assert labels([f"{tmp_path}/x/run", f"{tmp_path}/y/run"]) == ["x/run", "y/run"]
    assert labels([f"{tmp_path}/x", f"{tmp_path}/y/"]) == ["x", "y"]


def test_the_command_writes_it_and_refuses_in_one_line(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run.py", "compare", *runs[:2], f"--out={tmp_path}/both.html"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0 and re.search("<h1>2 runs compared</h1>", (tmp_path / "both.html").read_text(encoding="utf-8"))
    for words in (runs[:1], [runs[0], runs[0]], [runs[0], str(tmp_path)]):
        monkeypatch.setattr(sys, "argv", ["run.py", "compare", *words, f"--out={tmp_path}/none.html"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr().err
        assert ended.value.code == 2 and told.startswith("didr_jax: ") and told.count("\n") == 1
    assert not (tmp_path / "none.html").exists()
    with pytest.raises(InputError, match="two or more different workdirs"):
        write_comparison(runs[:1], str(tmp_path / "none.html"))
