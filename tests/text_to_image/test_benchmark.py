"""`--mode=benchmark`: pictures made elsewhere, of a run, of the reference; over processes, killed and restarted; refusals."""

import json
import time

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from tiny_runs import finish  # noqa: E402

from configs import sdxl  # noqa: E402
from didr_jax import recipes  # noqa: E402
from didr_jax.recipes.text_to_image.benchmark_models import guidance  # noqa: E402
from didr_jax.training.metrics import RunLog  # noqa: E402
from didr_jax.training.parallel import make_mesh  # noqa: E402
from didr_jax.training.run import Run  # noqa: E402
from tests.text_to_image import runs, tiny_sdxl  # noqa: E402

REDNESS = {"rewards.custom": "tests.text_to_image.tiny_sdxl:redness", "rewards.custom_differentiable": True}
ASKED = [
    {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a photo of a cat"},
    {
        "tag": "counting",
        "include": [{"class": "dog", "count": 2}],
        "exclude": [{"class": "dog", "count": 3}],
        "prompt": "two dogs",
    },
]


def configured(**settings):
    config = runs.config_of(sdxl, REDNESS | {f"benchmark.{key}": value for key, value in settings.items()})
    return config, recipes.build(config)


def judged(workdir, **settings):
    """benchmark.json of pictures made elsewhere, and what was said."""
    config, recipe = configured(**settings)
    recipe.check("benchmark")
    assert "benchmark" in recipe.alone
    workdir.mkdir()
    log, said = RunLog(str(workdir)), []
    log.say = said.append
    recipe.modes["benchmark"]({}, Run(config, str(workdir), make_mesh(config.mesh), log))
    (path,) = (workdir / "benchmark").iterdir()
    return json.loads((path / "benchmark.json").read_text()), said, path


def picture(path, red):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (red, 0, 0)).save(path, quality=100, subsampling=0)


def redness(red):
    return (red / 127.5 - 1) - ((red / 127.5 - 1) - 2) / 3


def test_pictures_made_elsewhere_are_scored_style_by_style(tmp_path):
    styles = ("anime", "concept-art", "paintings", "photo")
    for s, style in enumerate(styles):
        (tmp_path / "prompts").mkdir(exist_ok=True)
        (tmp_path / "prompts" / f"{style}.json").write_text(json.dumps(["a cat", "a dog"]))
        for i in range(2):
            picture(tmp_path / "theirs" / style / f"{i:05d}.jpg", 50 * s + 20 * i)
    found, said, folder = judged(
        tmp_path / "run", name="hpsv2", prompts=str(tmp_path / "prompts"), images=str(tmp_path / "theirs")
    )
    assert folder.name == "hpsv2-theirs" and not (folder / "images").exists()
    means = {row["group"]: row["figures"]["custom"]["mean"] for row in found["rewards"]}
    for s, style in enumerate(styles):
        assert means[style] == pytest.approx(np.mean([redness(50 * s), redness(50 * s + 20)]), abs=0.02)
    assert means["all"] == pytest.approx(np.mean([means[style] for style in styles]))
    assert (found["prompts"], found["published_prompts"]) == (8, 3200) and "8 prompts, and the published set has 3,200" in said[0]
    lines = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines][:3] == ["anime/00000.jpg", "anime/00001.jpg", "concept-art/00000.jpg"]


def test_of_a_grid_each_picture_is_scored_by_itself(tmp_path):
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "7.txt").write_text("a cat")
    (tmp_path / "theirs").mkdir()
    reds = np.array([[0, 200], [50, 100]], np.uint8).repeat(4, 0).repeat(4, 1)
    Image.fromarray(np.stack([reds, 0 * reds, 0 * reds], -1)).save(tmp_path / "theirs" / "7.png")
    _, _, folder = judged(tmp_path / "run", name="dpg", prompts=str(tmp_path / "prompts"), images=str(tmp_path / "theirs"))
    lines = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    assert [line["custom"] for line in lines] == pytest.approx([redness(red) for red in (0, 200, 50, 100)], abs=1e-5)


def test_geneval_is_judged_by_boxes_and_writes_what_its_own_program_would(tmp_path):
    (tmp_path / "evaluation_metadata.jsonl").write_text("\n".join(map(json.dumps, ASKED)))
    box = lambda name, score: {"class": name, "box": [0, 0, 5, 5], "score": score}
    seen = {
        (0, 0): [box("cat", 0.5)], (0, 1): [], (0, 2): [box("cat", 0.2)], (0, 3): [box("cat", 0.99)],
        (1, 0): [box("dog", 0.95)] * 2, (1, 1): [box("dog", 0.95)] * 3, (1, 2): [box("dog", 0.8)] * 2, (1, 3): [],
    }  # fmt: skip
    rows = [{"filename": f"{p:05d}/samples/{k:05d}.png", "detections": found} for (p, k), found in seen.items()]
    (tmp_path / "boxes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for p, k in seen:
        picture(tmp_path / "theirs" / f"{p:05d}" / "samples" / f"{k:05d}.png", 40 * k)  # as GenEval's own generation names them
    given = {"name": "geneval", "prompts": str(tmp_path / "evaluation_metadata.jsonl"), "images": str(tmp_path / "theirs")}
    found, _, folder = judged(tmp_path / "run", detections=str(tmp_path / "boxes.jsonl"), **given)
    assert {name: each["mean"] for name, each in found["geneval"].items()} == {
        "single_object": 0.5,
        "counting": 0.25,
        "overall": 0.375,
    }
    assert [row["group"] for row in found["rewards"]] == ["single_object", "counting", "all"], "and scored besides"
    again, _, _ = judged(tmp_path / "again", results=str(folder / "results.jsonl"), **given)
    assert again["geneval"] == found["geneval"], "results.jsonl in, the same score out"


@pytest.mark.parametrize("settings, words", [
    ({"name": "hpsv3"}, "config.benchmark.name = 'hpsv3' is not known; did you mean hpsv2"),
    ({"name": "hpsv2"}, "config.benchmark.prompts is empty; hpsv2 takes the folder with anime.json"),
    ({"model": "best"}, "config.benchmark.model = 'best'"),
    ({"per_prompt": -1}, "config.benchmark.per_prompt = -1: must be at least 0"),
    ({"results": "x"}, "config.benchmark.results is for benchmark.name=geneval, not plain"),
    ({"images": "/nowhere"}, "2 of 2 pictures are not in /nowhere, the first 00000.png"),
    ({"model": "reference"}, "config.weights.base is empty"),
])  # fmt: skip
def test_what_cannot_be_used_is_refused_before_work(settings, words, tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    given = {"name": "plain", "prompts": str(tmp_path / "prompts.txt")} | settings
    if settings.get("name") == "hpsv2":
        given["prompts"] = ""
    message = runs.refusal(configured(**given)[0], "benchmark")
    assert words in message


def test_the_references_guidance_is_that_of_training_unless_it_is_said():
    assert guidance(configured()[0]) == 8.0 and guidance(configured(guidance=1.5)[0]) == 1.5


# ------------------------------------------------------------------------------------ whole runs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """(settings of a benchmark of a tiny SDXL pipeline, cache of compiled programs)."""
    root = tmp_path_factory.mktemp("inputs")
    settings = tiny_sdxl.settings(root)[1]
    (root / "evaluation_metadata.jsonl").write_text("\n".join(map(json.dumps, ASKED * 4)))
    settings |= {
        "benchmark.name": "geneval",
        "benchmark.prompts": str(root / "evaluation_metadata.jsonl"),
        "benchmark.batch_size": 2,
    }
    return settings | {"distributed.detect": False}, tmp_path_factory.mktemp("compiled")


def run_of(inputs, workdir, model, change=None, **more):
    """(bytes of every file of the set's layout, benchmark.json without its folder), once all processes are done."""
    settings, cache = inputs
    started = runs.spawn(
        "sdxl", settings | {"benchmark.model": model} | (change or {}), workdir, "--mode=benchmark", cache=cache, **more
    )  # fmt: skip
    assert set(finish(started, 600)) == {0}
    return left(workdir)


def left(workdir):
    (folder,) = (workdir / "benchmark").iterdir()
    images = folder / "images"
    found = json.loads((folder / "benchmark.json").read_text())
    return {path.relative_to(images).as_posix(): path.read_bytes() for path in images.rglob("*.*") if path.is_file()}, found


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    return run_of(inputs, tmp_path_factory.mktemp("whole"), "initial", devices=2)


def assert_same(one, other):
    assert one[0].keys() == other[0].keys()
    assert [name for name in one[0] if one[0][name] != other[0][name]] == []
    for a, b in zip(one[1]["rewards"], other[1]["rewards"], strict=True):
        for name, mean in a["figures"].items():
            assert b["figures"][name] == pytest.approx(mean, rel=1e-5, abs=1e-5), name


@pytest.mark.slow
def test_two_processes_make_the_pictures_and_the_table_of_one(inputs, whole, tmp_path):
    names = [f"{p:05d}/samples/{k:04d}.png" for p in range(8) for k in range(4)]
    assert sorted(whole[0]) == sorted([*names, *(f"{p:05d}/metadata.jsonl" for p in range(8))])
    assert len({whole[0][name] for name in names}) == 32, "no two are alike"
    assert_same(whole, run_of(inputs, tmp_path, "initial", processes=2, devices=1))


@pytest.mark.slow
def test_killed_and_restarted_it_ends_with_the_same_table(inputs, whole, tmp_path):
    settings, cache = inputs
    (started,) = runs.spawn(
        "sdxl", settings | {"benchmark.model": "initial"}, tmp_path, "--mode=benchmark", cache=cache, devices=2
    )
    deadline = time.time() + 600
    while not list(tmp_path.rglob("*.png")):
        assert time.time() < deadline and started.poll() is None
        time.sleep(0.02)
    started.kill()
    started.wait()
    assert 0 < len(list(tmp_path.rglob("*.png"))) <= 32 and not list(tmp_path.rglob("benchmark.json"))
    assert_same(whole, run_of(inputs, tmp_path, "initial", devices=2))


@pytest.mark.slow
def test_any_save_of_a_run_can_be_benchmarked_and_pictures_of_two_are_not_mixed(inputs, tmp_path):
    """Trained three steps; by its last save and by another step; with another picture size it is refused."""
    settings, cache = inputs
    changed = settings | {"benchmark.limit": 1}
    runs.run("sdxl", settings, tmp_path, cache=cache)
    for step, folder in (("", "geneval-step-3"), ("2", "geneval-step-2")):
        words = [f"--step={step}"] if step else []
        runs.run("sdxl", changed, tmp_path, "--mode=benchmark", *words, cache=cache)
        assert len(list((tmp_path / "benchmark" / folder / "images").rglob("*.png"))) == 8
    sets = [
        {p.name: p.read_bytes() for p in (tmp_path / "benchmark" / f).rglob("0000.png")}
        for f in ("geneval-step-3", "geneval-step-2")
    ]
    assert sets[0] != sets[1]
    refused = runs.start_run("sdxl", changed | {"benchmark.seed": 5}, tmp_path, "--mode=benchmark", cache=cache)
    assert refused.returncode == 2 and "made with other benchmark.seed (0, now 5)" in refused.stderr
    refused = runs.start_run(
        "sdxl", changed | {"benchmark.model": "reference"}, tmp_path, "--mode=benchmark", "--step=2", cache=cache
    )
    assert refused.returncode == 2 and "--step picks a save of this workdir" in refused.stderr
