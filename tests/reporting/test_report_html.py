"""report.html: whole, self-contained, escaped, readable by everyone; and in a browser, where there is one."""

import itertools
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from tiny_runs import REPO

from configs import digits
from didr_jax.reporting import page
from didr_jax.reporting.contents import read_workdir
from didr_jax.reporting.page import Rewriting, write_report
from didr_jax.reporting.pairs import write_pairs
from didr_jax.training.metrics import RunLog
from didr_jax.training.reports import write_summary
from didr_jax.training.watch import write_stopped
from didr_jax.types import InputError
from didr_jax.whole_files import write_json
from tests.tiny_runs import claim_workdir

HOSTILE = '<script>fetch("https://example.org")</script> & "quoted" <b>'
START = {"program": "python run.py", "flags": ["--config=configs/digits.py", "--workdir=a run"], "modes": ["eval", "sample"]}
SUMMARY = {
    "reference, 30 steps": {"reward": -0.17341, "accuracy": 0.846},
    "one step, initial": {"reward": -0.0745301, "accuracy": 0.88512345},
    "one step, didr": {"reward": 0.53561, "accuracy": 0.879},
}
VOID = {"meta", "img", "input", "br", "hr", "link", "path", "use", "rect"}


class Page(HTMLParser):
    """What a browser would make of it: every element with its attributes, the text, and whatever is not closed in order."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.cells, self.text, self.broken, self._open, self.raw = [], [], [], [], [], {"script": [], "style": []}
        self.feed(html)
        self.close()
        self.broken += self._open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self._open or self._open.pop() != tag:
            self.broken.append(f"/{tag}")

    def handle_data(self, data):
        inside = self._open[-1] if self._open else ""
        (self.raw[inside] if inside in self.raw else self.text).append(data)
        if inside == "td":
            self.cells.append(data.strip())

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def workdir_of(folder, steps=400):
    """A digits run as its writers leave it, `steps` of 400 done."""
    config, rng, n = digits.get_config(), np.random.default_rng(0), 60
    claim_workdir(config, str(folder), (), START)
    log = RunLog(str(folder))
    log.write("distill", 500, {"loss": 1.0})
    for step in range(0, steps + 1, 100):
        log.write("align", step, {"eval/reward": step / 100, "eval/accuracy": 0.9, "hacking/accuracy": 0.0})
        log.show("align", step, {"digits": rng.integers(0, 255, (20, 30)).astype(np.uint8)})
        log.write("align", step, {"reward": step / 90, "pull_to_divergence": 0.4, "skipped": 0})
    if steps == 400:
        write_summary(str(folder), SUMMARY, log)
    log.close()
    tac = {"reward": {"tau": 0.8123, "low": 0.79, "high": 0.83, "prompts": 300, "undefined": 0, "accuracy": 0.9, "pairs": 4500}}
    write_json(str(folder / "tac.json"), tac)
    before, after = rng.integers(0, 255, (2, n, 8, 8)).astype(np.uint8)
    rewards = rng.normal(size=(2, n)) + [[0.0], [0.6]]
    write_pairs(str(folder), before, after, [HOSTILE] + ["digit"] * (n - 1), *rewards)
    return folder


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    path = write_report(str(workdir_of(tmp_path_factory.mktemp("a run"))))
    with open(path, encoding="utf-8") as file:
        return file.read()


@pytest.fixture(scope="module")
def found(html):
    return Page(html)


def test_it_is_one_whole_page(found):
    assert found.broken == [] and len(found.all("h1")) == 1 and found.all("html") == [{"lang": "en"}]
    names = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(names) == len(set(names))
    wanted = {value[1:] for _, a in found.elements for key, value in a.items() if key in ("href", "xlink:href")}
    wanted |= {a["aria-labelledby"] for _, a in found.elements if "aria-labelledby" in a}
    wanted |= {name for _, a in found.elements for value in a.values() for name in re.findall(r"url\(#(.*?)\)", value or "")}
    assert wanted <= set(names)


def test_nothing_in_it_asks_for_anything_outside(found):
    for tag, attributes in found.elements:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster", "background"):
            assert attributes.get(name, "#").startswith(("#", "data:image/")), (tag, name)
        assert tag not in ("link", "iframe", "object", "embed", "base") and not any(name.startswith("on") for name in attributes)
        assert "url(" not in re.sub(r"url\(#", "", attributes.get("style", ""))
    style, script = "".join(found.raw["style"]), "".join(found.raw["script"])
    assert "url(" not in re.sub(r"url\(#", "", style) and "@import" not in style
    assert not re.search(r"fetch|XMLHttp|WebSocket|import|https?:", script)
    policy = [meta["content"] for meta in found.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"]


def test_what_prompts_hold_is_text(found):
    assert len(found.all("script")) == 1 and not found.all("b")
    assert any(HOSTILE in text for text in found.text)


def test_every_picture_is_told_in_words(found):
    assert len(found.all("img")) > 60 and all(image["alt"].strip() for image in found.all("img"))
    assert len(found.all("svg")) > 4
    assert all(drawing["role"] == "img" and drawing["aria-label"].strip() for drawing in found.all("svg"))
    assert all("aria-label" in button and button["aria-pressed"] == "false" for button in found.all("button"))


def test_every_figure_of_the_summary_is_in_the_table(found):
    for label, row in SUMMARY.items():
        assert any(text.strip() == label for text in found.text)
        for value in row.values():
            assert f"{value:.4g}" in found.cells


def test_it_tells_what_was_trained_the_verdict_the_config_and_the_commands(found):
    text = " ".join(" ".join(found.text).split())
    assert "digits didr" in text and "align 400" in text and "The reward rose, and nothing that is watched fell with it" in text
    assert "The first 24 of 60, chosen by nobody, largest gain first." in text and "Largest losses" in text
    assert "python run.py \\ --config=configs/digits.py \\ '--workdir=a run' \\ --mode=sample" in text
    assert "--mode=export" not in text, "digits have no such mode"
    assert "Does the reward order pictures as it should?" in text and {"0.8123", "0.79 to 0.83", "90.0 %"} <= set(found.cells)
    assert "align.beta" in text and "align.generator_optimizer.weight_decay" in text


def test_the_slider_has_every_evaluation(found):
    frames = [image["data-step"] for image in found.all("img") if "data-step" in image]
    (slider,) = [control for control in found.all("input") if control["type"] == "range"]
    assert frames == ["0", "100", "200", "300", "400"] and slider["max"] == "4"


def contrast(one, other):
    """WCAG's, of two colours "#rrggbb"."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_and_lines_stand_out_by_day_and_by_night(found):
    themes = [
        dict(re.findall(r"--([\w-]+): (#\w{6})", block))
        for block in re.findall(r":root \{(.*?)\}", "".join(found.raw["style"]), re.S)
    ]
    assert len(themes) == 2
    for theme in themes:
        for text, ground in itertools.product(("ink", "soft", "good", "bad", "open"), ("paper", "card")):
            assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground)
        for line in ("line-1", "line-2", "line-3", "line-4", "focus"):
            assert contrast(theme[line], theme["card"]) >= 3, line


# ----------------------------------------------------------------------------------- of other runs


def text_of(folder):
    with open(write_report(str(folder)), encoding="utf-8") as file:
        page = Page(file.read())
    assert page.broken == []
    return " ".join(" ".join(page.text).split())


def test_a_run_that_is_not_finished_has_one_too(tmp_path):
    text = text_of(workdir_of(tmp_path, steps=200))
    assert "This run is not finished" in text and "align 200 of 400 steps" in text
    assert "Judged so far: reward 0 → 2, accuracy 0.9 → 0.9." in text


def test_warnings_are_told_and_those_that_are_over_are_not(tmp_path):
    workdir_of(tmp_path, steps=200)
    log = RunLog(str(tmp_path))
    log.write("align", 300, {"eval/reward": 3.0, "hacking/accuracy": 1.0, "skipped": 7, "pull_to_divergence": 3.0, "ta_lag": 2.0})
    log.close()
    write_stopped(str(tmp_path), "align", 200, {"loss": 1.0}, "stopped once")
    told = " ".join(read_workdir(str(tmp_path)).warnings())
    for words in (
        "accuracy fell while the reward rose",
        "step 300",
        "7 updates were dropped",
        "above 1 it wins",
        "does not keep up",
    ):
        assert words in told
    assert "stopped once" not in told, "the run went on"
    write_stopped(str(tmp_path), "align", 300, {"loss": 1.0}, "stopped for good")
    held = read_workdir(str(tmp_path))
    assert held.warnings()[0] == "stopped for good" and held.verdict().headline == "This run stopped before its end"


def test_where_no_run_has_begun_is_one_line(tmp_path):
    with pytest.raises(InputError, match="name the workdir of a run") as refused:
        write_report(str(tmp_path))
    assert "\n" not in str(refused.value)


def test_it_is_drawn_again_only_as_long_as_that_is_cheap(monkeypatch, tmp_path):
    clock, drawn, said = [0.0], [], []

    def slowly(workdir):
        drawn.append(clock[0])
        clock[0] += 3.0
        if len(drawn) == 2:
            raise ValueError("a bug")

    monkeypatch.setattr(page, "write_report", slowly)
    redraw = Rewriting(str(tmp_path), said.append, lambda: clock[0])
    while clock[0] < 1000:
        redraw(False)
        clock[0] += 1
    assert drawn[0] == 100 and 5 <= len(drawn) <= 7 and 3 * len(drawn) <= 0.02 * 1000
    redraw(True)
    assert drawn[-1] == clock[0] - 3, "where a run ends early it is drawn in any case"
    assert said == ["report.html was not drawn (ValueError: a bug); training goes on"]


# -------------------------------------------------------------------------------------- in a browser

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PROBE = """
<script>{
const seen = { requests: performance.getEntriesByType("resource").filter((r) => !r.name.startsWith("data:")).length };
const shown = (selector) => getComputedStyle(document.querySelector(selector)).visibility === "visible";
const sides = () => [shown(".pair .before"), shown(".pair .after")];
const press = (key) => document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
seen.beside = sides();
document.querySelector('[value="swap"]').click(); seen.swap = sides();
document.querySelector(".pictures").click(); seen.tapped = sides();
document.querySelector(".pictures").click(); seen.tapped_again = sides();
press("b"); seen.key = sides();
document.querySelector('[value="difference"]').click(); seen.difference = sides();
const slider = document.querySelector(".slider input");
slider.value = 1; slider.dispatchEvent(new Event("input"));
seen.frame = document.querySelector(".frame.shown").dataset.step; seen.step = document.querySelector("output").textContent;
seen.frames = [...document.querySelectorAll(".frame")].filter((f) => getComputedStyle(f).display !== "none").length;
seen.broken = [...document.images].filter((image) => !image.naturalWidth).length;
seen.enlarged = document.querySelector(".small img").getBoundingClientRect().width / 8;
seen.pixels = getComputedStyle(document.querySelector(".small img")).imageRendering;
seen.wider = document.documentElement.scrollWidth - document.documentElement.clientWidth;
document.body.dataset.seen = JSON.stringify(seen);
}</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here: Debian's package chromium, which .ci/run installs")
def test_a_browser_shows_swaps_and_slides_it_and_asks_for_nothing(html, tmp_path):
    (tmp_path / "probed.html").write_text(html.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile", "--window-size=500,900",
               "--virtual-time-budget=2000", "--dump-dom", f"file://{tmp_path}/probed.html"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    (body,) = Page(done.stdout).all("body")
    seen = json.loads(body["data-seen"])
    assert seen["requests"] == seen["broken"] == 0 and seen["wider"] <= 0
    assert seen["beside"] == [True, True] and seen["swap"] == [False, True] and seen["tapped"] == [True, False]
    assert seen["tapped_again"] == [False, True] and seen["key"] == [True, False] and seen["difference"] == [True, True]
    assert (seen["frame"], seen["step"], seen["frames"]) == ("100", "100", 1)
    assert seen["enlarged"] >= 12 and seen["pixels"] == "pixelated"


def test_the_template_is_in_the_package():
    assert sorted(os.listdir(os.path.join(REPO, "didr_jax", "reporting", "template"))) == [
        "card.md",
        "compare.html",
        "report.css",
        "report.html",
        "report.js",
    ]
