"""What every text-to-image backbone does, at tiny size: a diffusers pipeline in, trained by run.py, an export that
diffusers runs out; and what is refused before any work.  A backbone joins by a row of `backbones`."""

import dataclasses
import html
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from didr_jax import lora  # noqa: E402
from didr_jax.objectives import OBJECTIVES  # noqa: E402
from didr_jax.recipes.text_to_image.doubts import doubts  # noqa: E402
from didr_jax.recipes.text_to_image.export import ADAPTER, WEIGHTS, write_export  # noqa: E402
from didr_jax.recipes.text_to_image.report import PromptJudge  # noqa: E402
from didr_jax.reporting.pairs import read_pairs  # noqa: E402
from didr_jax.training.metrics import read_metrics  # noqa: E402
from didr_jax.weights.engine import to_torch  # noqa: E402
from didr_jax.weights.files import read_tensors, write_safetensors  # noqa: E402
from tests.parity.oracle import assert_close  # noqa: E402
from tests.text_to_image import runs, tiny_zimage  # noqa: E402
from tests.text_to_image.backbones import ROWS, Row  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Bench:
    """A row with its tiny files: `pipeline` and `settings` of `Row.tiny.settings`, under `root`."""

    row: Row
    root: object
    pipeline: object
    settings: dict

    def recipe(self, *changes, **more):
        settings = self.settings
        for change in changes:
            settings = settings | change
        return runs.recipe_of(self.row.config, self.row.backbone, settings, **more)

    def run(self, workdir, *arguments, change=None, **more):
        return runs.run(self.row.name, self.settings | (change or {}), workdir, *arguments, **more)

    def refused(self, change, mode="train"):
        return runs.refusal(runs.config_of(self.row.config, self.settings | change), mode)

    @property
    def generator_file(self):
        """Tensors of the initial generator."""
        given = self.settings["weights.generator"]
        return read_tensors(given if given.endswith(".safetensors") else f"{given}/{self.row.backbone.part}")

    def noise(self, n=3):
        """The evaluation's own, of the first n prompts."""
        recipe = self.recipe()
        key, shape = jax.random.key(recipe.config.eval.seed), recipe.task.backbone.noise_shape
        return np.stack([jax.random.normal(jax.random.fold_in(key, i), shape) for i in range(n)])


@pytest.fixture(scope="module", params=list(ROWS))
def bench(request, tmp_path_factory):
    row, root = ROWS[request.param], tmp_path_factory.mktemp(request.param)
    return Bench(row, root, *row.tiny.settings(root))


@pytest.fixture(scope="module")
def trained(bench, tmp_path_factory):
    """(workdir of a finished run that was also exported, cache of compiled programs)."""
    workdir, cache = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("compiled")
    bench.run(workdir, cache=cache)
    bench.run(workdir, "--mode=export", cache=cache)
    return workdir, cache


def digests(workdir, step):
    """What the save says of the bits of every leaf."""
    return json.loads((workdir / "checkpoints" / "align" / str(step) / "meta" / "metadata").read_text())["digests"]


# ------------------------------------------------------------------------------------------ the run


def test_a_run_is_logged_and_judged(trained, bench):
    lines = [line for line in read_metrics(str(trained[0])) if line["stage"] == "align"]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    for line in lines[1:]:
        assert line["reward/dropped"] == line["skipped"] == 0 and np.isfinite(list(line.values())[2:]).all()
        assert line["pull"] > 0 and line["divergence"] > 0
        assert line["pull_to_divergence"] == pytest.approx(line["pull"] / line["divergence"], rel=1e-4)
        # the mix, Σ weight (r − centre)/spread, is of the rewards that are not held out
        models, held_out = bench.recipe().task.mix.models, bench.recipe().config.rewards.held_out
        weights = bench.recipe().config.rewards.weights
        terms = {name: (line[f"reward/{name}"] - m.centre) / m.spread for name, m in models.items() if name not in held_out}
        assert line["reward"] == pytest.approx(sum(weights[name] * r for name, r in terms.items()), rel=1e-5)
    summary = json.loads((trained[0] / "summary.json").read_text())
    before, after = summary.values()
    assert list(summary) == ["one step, initial", "one step, didr"]
    assert all(set(row) == {"reward", *models, "brightness", "letters"} for row in summary.values())
    assert all(row["letters"] == sum(len(prompt.strip()) for prompt in bench.row.tiny.PROMPTS[:3]) for row in summary.values())
    shown = picture_of(trained[0] / "after.png", 3, bench.row.tiny)
    assert summary["one step, didr"]["brightness"] == pytest.approx(shown.mean(), rel=1e-6)
    assert (trained[0] / "before.png").read_bytes() != (trained[0] / "after.png").read_bytes()
    assert (trained[0] / "curves_align.png").is_file()
    pairs, page = read_pairs(str(trained[0])), (trained[0] / "report.html").read_text(encoding="utf-8")
    assert pairs.captions.tolist() == [prompt.strip() for prompt in bench.row.tiny.PROMPTS[:3]]
    for rewards, row in ((pairs.reward_before, before), (pairs.reward_after, after)):
        assert np.mean(rewards) == pytest.approx(row["reward"])
    assert all(html.escape(prompt) in page for prompt in pairs.captions) and "--mode=export" in page


def picture_of(path, n, tiny):
    """The n images of a grid of one row, gaps of two pixels between them."""
    grid = np.asarray(Image.open(path))
    return np.stack([grid[:, i * (tiny.WIDTH + 2) :][:, : tiny.WIDTH] for i in range(n)])


def test_evaluators_judge_the_run_while_it_trains(trained, bench):
    """Before the first step they find the initial generator, and at the end what the report finds."""
    found = {line["step"]: line for line in read_metrics(str(trained[0])) if "eval/reward" in line}
    assert list(found) == [0, 2, 3]
    before, after = json.loads((trained[0] / "summary.json").read_text()).values()
    for name in after:
        assert found[0][f"eval/{name}"] == pytest.approx(before[name], rel=1e-4, abs=1e-5)
        assert found[3][f"eval/{name}"] == pytest.approx(after[name], rel=1e-5, abs=1e-6)
    pictures = sorted(path.name for path in (trained[0] / "progress" / "align").iterdir())
    assert pictures == ["000000_samples.png", "000002_samples.png", "000003_samples.png"]
    assert np.array_equal(*(np.asarray(Image.open(trained[0] / path)) for path in ("after.png", f"progress/align/{pictures[2]}")))


def test_diffusers_runs_the_export_and_gets_our_images(trained, bench):
    row, folder = bench.row, trained[0] / "export"
    exported, initial = read_tensors(folder / row.backbone.part), bench.generator_file
    moved = {name for name in initial if not np.array_equal(exported[name], initial[name])}
    assert set(exported) == set(initial)
    if bench.recipe().config.network.generator == "full":
        assert len(moved) > 0.9 * len(initial) and not (folder / ADAPTER).exists()
    else:
        adapted = {
            key.removeprefix(f"{row.backbone.part}.").removesuffix(".lora_A.weight") for key in read_tensors(folder / ADAPTER)
        }
        assert moved == {name for name in initial if name.removesuffix(".weight") in adapted} and moved

    client = row.client(bench.pipeline, folder)
    client.set_progress_bar_config(disable=True)
    noise, prompts = bench.noise(), row.tiny.PROMPTS[:3]
    task = bench.recipe(row.full, {"weights.generator": str(folder / row.backbone.part / WEIGHTS)}).task
    c, generator = task.table(prompts).everything, task.backbone.generator.cast("float32").load()
    latents = jax.jit(task.generate, compiler_options=runs.HASTE)(generator, None, noise, c)
    assert_close(latents, row.images(client, noise, "latent").numpy().transpose(0, 2, 3, 1), 1e-4, "latents")

    after = np.asarray(Image.open(trained[0] / "after.png"), int)  # what the run itself drew: three images in a row
    for i, image in enumerate(row.images(client, noise, "np")):
        left = i * (row.tiny.WIDTH + 2)
        drawn = after[: row.tiny.HEIGHT, left : left + row.tiny.WIDTH]
        assert np.abs(drawn - 255 * image).max() < 1.01 and drawn.std() > 10


def test_an_interrupted_run_ends_with_the_same_bits(trained, bench, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "align" / "3")
    said = bench.run(tmp_path / "run", cache=trained[1]).stdout
    assert "goes on from at step 2" in said
    assert digests(tmp_path / "run", 3) == digests(trained[0], 3) != digests(trained[0], 2)


# ---------------------------------------------------------------- each mode reads what it uses, and no more


def without(bench, tmp_path, *gone) -> tuple[object, dict]:
    """A copy of all inputs in which these files or folders are not, and the settings that point there."""
    root = shutil.copytree(bench.root, tmp_path / "inputs")
    for name in gone:
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    moved = lambda value: value.replace(str(bench.root), str(root)) if isinstance(value, str) else value
    return root, {key: moved(value) for key, value in bench.settings.items()}


def moved_run(bench, workdir, settings, copy):
    """A copy of a workdir whose config says where the inputs are now."""
    shutil.copytree(workdir, copy)
    config = json.loads((copy / "config.json").read_text())
    for key, value in settings.items():
        section, _, knob = key.rpartition(".")
        node = config
        for name in section.split("."):
            node = node[name]
        node[knob] = value
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def test_export_opens_nothing_but_the_configs_it_copies(trained, bench, tmp_path):
    """With full training: the prompts, rewards, text encoders, VAE and the base's weights may be gone."""
    rewards = [path.name for path in bench.root.iterdir() if path.name in ("hps", "pickscore")]
    weights = [f"base/{bench.row.backbone.part}/{WEIGHTS}"] if bench.row.full == {} else []
    gone = [
        *rewards,
        *weights,
        "prompts.jsonl",
        "base/vae",
        *(f"base/{part}" for part in bench.recipe().task.backbone.text_parts),
    ]
    root, settings = without(bench, tmp_path, *gone)
    workdir = moved_run(bench, trained[0], settings, tmp_path / "run")
    shutil.rmtree(workdir / "export")
    files = runs.opened(bench.row.name, settings, workdir, root, "--mode=export")
    merged = [] if weights else ["turbo/transformer/" + WEIGHTS]  # adapters are merged into the initial generator
    assert [name for name in files if name not in merged] == [f"base/{name}" for name in bench.row.read_by_export]
    part = bench.row.backbone.part
    assert (workdir / "export" / part / WEIGHTS).read_bytes() == (trained[0] / "export" / part / WEIGHTS).read_bytes()
    assert all((workdir / "export" / name).is_file() for name in bench.row.exported)


def test_sampling_needs_no_reward_and_no_base(trained, bench, tmp_path):
    rewards = [path.name for path in bench.root.iterdir() if path.name in ("hps", "pickscore")]
    root, settings = without(bench, tmp_path, *rewards, f"base/{bench.row.backbone.part}/{WEIGHTS}")
    workdir = moved_run(bench, trained[0], settings, tmp_path / "run")
    files = runs.opened(bench.row.name, settings, workdir, root, "--mode=sample", "--config.sample.num=2")
    assert f"base/vae/{WEIGHTS}" in files and "prompts.jsonl" in files
    assert sorted(path.name for path in (workdir / "samples").iterdir()) == ["00000.png", "00001.png", "prompts.jsonl"]


def test_a_stage_is_built_before_any_weights_are_read(bench, monkeypatch):
    from didr_jax.weights import files

    def never(*_, **__):
        raise AssertionError("weights were read")

    recipe = bench.recipe()
    recipe.task.mix  # the names in a reward's file tell its architecture  # noqa: B018
    monkeypatch.setattr(files, "_read_safetensors", never)
    stage = recipe.align({})
    kinds = lambda tree: jax.tree.map(lambda a: (a.shape, jnp.dtype(a.dtype)), tree)
    monkeypatch.undo()
    frozen, state = runs.loaded(stage.frozen), runs.begun(stage)
    assert kinds(frozen) == {name: kinds(weights.shapes) for name, weights in stage.frozen.items()}
    assert kinds(vars(state)) == kinds(vars(stage.shapes))


def test_a_plan_is_of_the_shapes_that_training_has(bench):
    """From the configs of the pipeline and of the rewards, which are there, its shapes are the stage's."""
    recipe, plain = bench.recipe(), lambda a: (a.shape, jnp.dtype(a.dtype))
    real, planned = recipe.align({}), recipe.planned().align({})
    assert jax.tree.map(plain, real.shapes) == jax.tree.map(plain, planned.shapes)
    assert {k: jax.tree.map(plain, w.shapes) for k, w in real.frozen.items()} == {
        k: jax.tree.map(plain, w.shapes) for k, w in planned.frozen.items()
    }
    assert jax.tree.map(plain, planned.batch_shapes) == jax.tree.map(plain, real.batch(0))


@pytest.mark.slow
def test_run_py_plans_a_step_from_a_folder_on_this_machine(bench, tmp_path):
    settings = bench.settings | {"rewards.hps": "", "rewards.pickscore": "", "rewards.held_out": (), "mesh.fsdp": 2}
    done = runs.run(bench.row.name, settings, tmp_path / "none", "--mode=compile", devices=2)
    for words in (
        "2 × device of unknown peak",
        "state opt_ta",
        "activations",
        "operations per image",
        "GiB pass through a device's",
    ):
        assert words in done.stdout
    assert not (tmp_path / "none").exists()
    refused = runs.start_run(bench.row.name, settings | {"align.batch_size": 3}, tmp_path / "none", "--mode=compile", devices=2)
    assert refused.returncode == 2 and "multiple of 2" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


# ------------------------------------------------------------------------------- parts of the recipe


def test_conditions_are_rows_of_the_table_picked_by_seed_and_step(bench):
    recipe = bench.recipe()
    stage, table = recipe.align({}), recipe.task.conditions
    batch, again = stage.batch(1), bench.recipe().align({}).batch(1)
    assert jax.tree.leaves(batch)[0].shape[:2] == (2, 2)
    jax.tree.map(np.testing.assert_array_equal, batch, again)
    picked = jax.tree.map(lambda column: column.reshape(4, *column.shape[2:]), batch)
    # captions of a batch are as wide as the widest of them; what the table has beyond is padding
    same = lambda row, drawn: np.array_equal(row[: len(drawn)] if row.ndim > 1 else row, drawn)
    matches = [
        [i for i in range(5) if jax.tree.all(jax.tree.map(lambda a, b, i=i, k=k: same(a[i], b[k]), table.everything, picked))]
        for k in range(4)
    ]  # fmt: skip
    assert all(len(found) == 1 for found in matches)
    assert not jax.tree.all(jax.tree.map(np.array_equal, batch, stage.batch(2)))


def test_rows_of_a_batch_are_read_without_the_others(bench, monkeypatch):
    """What a process of several does; the table is asked for the rows that are wanted, and for no more."""
    recipe = bench.recipe()
    stage, table = recipe.align({}), recipe.task.conditions
    whole, asked, rows = stage.batch(3), [], type(table).rows
    monkeypatch.setattr(type(table), "rows", lambda self, which, among: asked.append(len(which)) or rows(self, which, among))
    second = stage.batch(3, np.array([1]))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:, 1:]), second, whole)
    assert asked == [2], "of a TA update and of the generator's"


def test_the_empty_prompt_is_the_last_row_of_the_table(bench):
    table = bench.recipe().task.conditions
    assert table.place.tolist() == list(range(len(bench.row.tiny.PROMPTS) + 1))
    alone = bench.recipe().task.table([""]).everything["text"]
    wide = lambda a, like: np.pad(a, [(0, there - here) for here, there in zip(a.shape, like.shape, strict=True)])  # of captions
    jax.tree.map(lambda a, b: np.testing.assert_allclose(wide(a, b), b, atol=1e-5), alone, table.empty)


def test_prompts_embedded_in_the_loop_are_those_of_the_cache_to_the_last_bit(bench, tmp_path):
    """Where as many are embedded at once."""
    prompts = bench.row.tiny.PROMPTS
    alone = {"data.batch_size": len(prompts), "data.cache": str(tmp_path)}  # not what another test embedded, two at a time
    cached, loop = bench.recipe(alone).task, bench.recipe({"data.encode": "in_loop"}).task
    all_of_them = np.arange(len(prompts))
    found = jax.jit(loop.embed)({"text_encoder": loop.frozen()["text_encoder"].load()}, loop.conditions.rows(all_of_them))
    found, wanted = found["text"], cached.conditions.rows(all_of_them)["text"]
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert jax.tree.map(lambda a: a.dtype, found) == jax.tree.map(lambda a: a.dtype, wanted)
    jax.tree.map(np.testing.assert_array_equal, loop.no_text().load(), cached.no_text().load())


def test_a_plan_counts_text_encoders_that_stay_on_the_devices(bench):
    unrewarded = {"rewards.hps": "", "rewards.pickscore": "", "rewards.held_out": (), "data.encode": "in_loop"}
    recipe = bench.recipe(unrewarded)
    planned, real = recipe.planned().align({}), recipe.align({})
    assert planned.frozen["text_encoder"].shapes == bench.recipe().task.encoder.weights.shapes
    plain = lambda a: (a.shape, jnp.dtype(a.dtype))
    drawn = bench.recipe({"data.encode": "in_loop"}).align({}).batch(0)["prompt"]
    assert jax.tree.map(plain, planned.batch_shapes["prompt"]) == jax.tree.map(plain, drawn) and real.frozen.keys() >= {
        "text_encoder"
    }


@pytest.mark.slow
def test_a_step_that_embeds_its_prompts_is_the_step_of_the_cache(bench):
    _, cached, _ = runs.train(bench.recipe(), steps=2)
    _, loop, untouched = runs.train(bench.recipe({"data.encode": "in_loop"}), steps=2)
    assert untouched
    for name, value in cached.items():
        assert loop[name] == pytest.approx(value, rel=1e-4), name


def test_adapters_train_on_a_frozen_base_and_export_merged_and_alone(bench, tmp_path):
    recipe = bench.recipe(bench.row.adapters, {"align.objective": "dipp"})
    recipe.check("train")
    state, metrics, untouched = runs.train(recipe, steps=2)
    assert untouched and metrics["skipped"] == 0
    assert all(np.any(leaf) for leaf in jax.tree.leaves((state.generator, state.ta)))

    write_export(recipe.task, state.generator, str(tmp_path), print)
    part = bench.row.backbone.part
    adapter, merged, base = read_tensors(tmp_path / ADAPTER), read_tensors(tmp_path / part), bench.generator_file
    changed = 0
    for name, weight in base.items():
        key = f"{part}.{name.removesuffix('.weight')}"
        if f"{key}.lora_A.weight" in adapter:
            update = adapter[f"{key}.lora_B.weight"] @ adapter[f"{key}.lora_A.weight"]
            assert np.abs(update).max() > 0
            np.testing.assert_allclose(merged[name], weight + update, atol=1e-6)
            changed += 1
        else:
            np.testing.assert_array_equal(merged[name], weight)
    assert changed == len(adapter) // 2 > 0
    bench.row.network.from_pretrained(tmp_path, subfolder=part)

    # training can begin with them: on the initial generator they are the merged export
    again = bench.recipe(bench.row.adapters, {"weights.generator_adapter": str(tmp_path / ADAPTER)})
    again.check("train")
    start, task = again.task.start("generator"), again.task
    assert jax.tree.map(lambda a: a.shape, start.shapes) == jax.tree.map(jnp.shape, state.generator)
    ours = lora.merge(task.backbone.generator.cast("float32").load(), start.load(), task.config.lora.alpha)
    theirs = bench.recipe(bench.row.full, {"weights.generator": str(tmp_path / part / WEIGHTS)}).task.start("generator").load()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), ours, theirs)


def test_full_training_exports_the_adapters_that_come_nearest_and_begins_with_them(bench, tmp_path):
    """On the base they make what they were taken from again: every dense kernel where they have all ranks, the rest the base's."""
    recipe = bench.recipe(bench.row.full, {"export.adapter_rank": 4096, "export.dtype": "float32"})
    base, backbone, said = recipe.task.backbone.base.load(), recipe.task.backbone, []
    trained = jax.tree.map(lambda leaf: leaf + 0.01 * np.random.default_rng(3).normal(size=leaf.shape).astype(leaf.dtype), base)
    write_export(recipe.task, trained, str(tmp_path), said.append)
    assert "adapters of rank 4096" in said[0] and "of the squared change" in said[0]

    changes = {"weights.generator": "", "weights.generator_adapter": str(tmp_path / ADAPTER)}
    again = bench.recipe(bench.row.full, changes)
    again.check("train")
    dense = {f"{name}" for name in read_tensors(tmp_path / ADAPTER)}
    start = to_torch(again.task.start("generator").load(), backbone.table)
    whole, begun = to_torch(trained, backbone.table), 0
    for name, weight in to_torch(base, backbone.table).items():
        adapted = f"{backbone.part}.{name.removesuffix('.weight')}.lora_A.weight" in dense
        np.testing.assert_allclose(start[name], whole[name] if adapted else weight, rtol=0, atol=2e-6, err_msg=name)
        begun += adapted
    assert begun == len(dense) // 2 > 0


def test_adapters_on_the_base_itself_need_one_base(bench):
    for change, networks in (({"weights.generator": ""}, {"base"}), ({}, {"base", "generator"})):
        frozen = bench.recipe(bench.row.adapters, change).task.frozen()
        assert frozen.keys() & {"base", "generator"} == networks


@pytest.mark.slow
@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if name != "refl"])
def test_every_objective_trains_all_of_both_networks(bench, objective):
    runs.assert_trains(bench.recipe(bench.row.full, {"align.objective": objective}))


@pytest.mark.slow
def test_half_precision_and_rematerialisation_follow_full_precision(bench, tmp_path):
    """The precisions that the configs set, on the same noise, with a reward network."""
    reward = {} if bench.settings.get("rewards.hps") else tiny_zimage.save_hps(tmp_path)
    _, exact, _ = runs.train(bench.recipe(reward))
    half = {"network.dtype": "bfloat16", "network.frozen_dtype": "bfloat16", "data.dtype": "bfloat16"}
    remat = {"network.remat": "products", "network.vae_remat": "blocks", "rewards.remat": "blocks"}
    recipe = bench.recipe(reward, half, remat)
    state, metrics, untouched = runs.train(recipe)
    assert untouched and metrics["skipped"] == 0
    assert {leaf.dtype for leaf in jax.tree.leaves(state.generator)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(recipe.task.frozen()["base"].load())} == {jnp.dtype("bfloat16")}
    for name in ("ta_loss", "gap", "reward/hps"):
        assert metrics[name] == pytest.approx(exact[name], rel=0.1), name


@pytest.mark.slow
def test_the_generators_loss_may_ask_the_ta_in_float32(bench):
    half = bench.recipe(bench.row.full, {"network.dtype": "bfloat16", "align.ta_float32": True}).task
    exact = bench.recipe(bench.row.full, {"network.dtype": "float32"}).task
    assert exact.networks().ta_in_loss is None
    x_t = jax.random.normal(jax.random.key(0), (1, *half.backbone.event_shape))
    text = {name: jnp.ones(a.shape, a.dtype) for name, a in half.backbone.text_shapes.items()}
    params, t = half.start("ta").load(), jnp.array([0.5])
    asked = lambda ta: np.asarray(ta(params, {}, x_t, t, {"text": text}))
    wanted, scale = asked(exact.networks().ta), float(jnp.abs(x_t).max())
    np.testing.assert_allclose(asked(half.networks().ta_in_loss), wanted, atol=1e-5 * scale)
    assert np.abs(asked(half.networks().ta) - wanted).max() > 1e-4 * scale


@pytest.mark.slow
def test_flat_loops_compute_the_same(bench):
    _, exact, _ = runs.train(bench.recipe({"align.ta_updates": 2}))
    _, flat, _ = runs.train(bench.recipe({"align.ta_updates": 2, "unroll": True}))
    for name in ("ta_loss", "gap", "reward"):
        assert flat[name] == pytest.approx(exact[name], rel=1e-4), name


@pytest.mark.slow
def test_two_devices_hold_half_of_the_parameters_each_and_compute_the_same(bench, trained, tmp_path):
    """And judge the same, sample and export."""
    spread = {"mesh.fsdp": 2, "mesh.data": 1, "mesh.min_size": 64}
    bench.run(tmp_path, change=spread, devices=2)
    runs.assert_same_figures(trained[0], tmp_path)
    for one, two in zip(*(json.loads((w / "summary.json").read_text()).values() for w in (trained[0], tmp_path)), strict=True):
        for name in one:
            assert two[name] == pytest.approx(one[name], rel=1e-2, abs=1e-3), name
    bench.run(tmp_path, "--mode=export", change=spread, devices=2)
    bench.row.network.from_pretrained(tmp_path / "export", subfolder=bench.row.backbone.part)


@pytest.mark.slow
def test_calibration_takes_the_command_that_trains_and_no_workdir(bench, tmp_path):
    """By the estimator whose pull has no bound: some β gives any ratio."""
    drp = ("--config.calibrate.batches=1", "--config.align.estimator=drp")
    said = bench.run(tmp_path / "none", "--mode=calibrate", *drp).stdout
    assert "align at step 0" in said and "--config.align.beta=" in said and not (tmp_path / "none").exists()


@pytest.mark.slow
def test_samples_are_what_score_reads(bench, trained, tmp_path):
    bench.run(trained[0], "--mode=sample", "--config.sample.num=4", cache=trained[1])
    folder = trained[0] / "samples"
    said = bench.run(
        tmp_path, "--mode=score", f"--config.score.images={folder}", f"--config.score.prompts={folder}/prompts.jsonl",
        cache=trained[1],
    ).stdout  # fmt: skip
    names = list(bench.recipe().task.mix.models)
    assert all(name in said for name in names)
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert lines[0] == f"image,prompt,{','.join(names)}" and len(lines) == 5


def test_a_judge_draws_the_same_prompts_and_noise_every_time(bench):
    recipe = bench.recipe(bench.row.full)
    judge, generator = PromptJudge(recipe.task, 3, seed=5, with_rewards=False), (recipe.task.start("generator").load(), None)
    frozen = runs.loaded(judge.weights)
    first, scores = judge.run(frozen, generator)
    np.testing.assert_array_equal(first, judge.run(frozen, generator)[0])
    assert scores == {} and first.shape == (3, bench.row.tiny.HEIGHT, bench.row.tiny.WIDTH, 3) and first.std() > 0.1


# -------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("which", range(5))
def test_a_folder_without_a_part_is_refused_naming_it(bench, tmp_path, which):
    if which >= len(bench.row.parts):
        pytest.skip("fewer parts")
    part = bench.row.parts[which]
    shutil.copytree(bench.settings["weights.base"], tmp_path / "base")
    gone = tmp_path / "base" / part
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    message = bench.refused({"weights.base": str(tmp_path / "base")})
    assert "config.weights.base" in message and part in message


def test_a_generator_of_another_architecture_is_refused_naming_every_tensor(bench, tmp_path):
    wrong = dict(bench.generator_file)
    for name, new in bench.row.broken.items():
        if new is None:
            wrong[name] = wrong[name][..., :1] if wrong[name].ndim > 2 else wrong[name][:, :7]
        else:
            wrong[new] = wrong.pop(name)
    write_safetensors(tmp_path / "wrong.safetensors", wrong)
    message = bench.refused({"weights.generator": str(tmp_path / "wrong.safetensors")})
    renamed = [name for name, new in bench.row.broken.items() if new]
    assert "config.weights.generator" in message and f"1 missing: {renamed[0]}" in message
    assert f"{len(bench.row.broken) - 1} misshapen" in message and "1 unexpected" in message
    assert all((new or name) in message for name, new in bench.row.broken.items())


@pytest.mark.parametrize("part", ["vae"])
def test_a_part_whose_weights_do_not_fit_is_refused_before_prompts_are_embedded(bench, tmp_path, part):
    shutil.copytree(bench.settings["weights.base"], tmp_path / "base")
    path = tmp_path / "base" / part / WEIGHTS
    tensors = dict(read_tensors(path))
    tensors.pop(sorted(tensors)[0])
    write_safetensors(path, tensors)
    assert "1 missing" in bench.refused({"weights.base": str(tmp_path / "base"), "data.cache": str(tmp_path / "cache")})
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "part, pattern, mode",
    [
        ("vae", "*.safetensors", "train"),
        ("vae", "config.json", "eval"),
        ("text_encoder", "*.safetensors", "sample"),
        ("text_encoder", "config.json", "train"),
        ("tokenizer", "[tv]o*.json", "train"),
    ],
)
def test_a_file_that_is_cut_is_one_line_before_prompts_are_embedded(bench, tmp_path, part, pattern, mode):
    shutil.copytree(bench.settings["weights.base"], tmp_path / "base")
    for path in (tmp_path / "base" / part).glob(pattern):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message = bench.refused({"weights.base": str(tmp_path / "base"), "data.cache": str(tmp_path / "cache")}, mode)
    assert str(tmp_path / "base" / part) in message and "cache" not in message.replace(str(tmp_path), "")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "change, fragments",
    [
        ({"weights.base": ""}, ["config.weights.base is empty"]),
        ({"weights.base": "/nowhere"}, ["config.weights.base", "no such folder"]),
        ({"weights.generator": "/nowhere.safetensors"}, ["no such file"]),
        ({"data.prompts": ""}, ["config.data.prompts is empty"]),
        ({"data.prompts": "/nowhere.txt"}, ["cannot read /nowhere.txt"]),
        ({"eval.prompts": "/nowhere.txt"}, ["cannot read /nowhere.txt"]),
        ({"eval.num": 0}, ["config.eval.num = 0", "at least 1"]),
        ({"export.dtype": "int8"}, ["config.export.dtype = 'int8'", "float16"]),
        ({"rewards.held_out": ("hpsv2",)}, ["config.rewards.held_out = 'hpsv2' is not known", "did you mean hps"]),
        ({"rewards.held_out": ("imagereward",)}, ["held_out names imagereward, which is not configured"]),
        ({"eval.judge": "nowhere:told"}, ["config.eval.judge = 'nowhere:told'", "cannot import nowhere"]),
        ({"eval.judge": "didr_jax.types"}, ["config.eval.judge", "module:function"]),
        ({"image.width": 0}, ["config.image.width = 0"]),
        ({"network.ta": "half"}, ["config.network.ta", "full, lora"]),
        ({"network.attention": "flash"}, ["config.network.attention", "xla"]),
        ({"network.vae_attention": "flash"}, ["config.network.vae_attention", "xla"]),
        ({"network.remat": "some"}, ["config.network.remat = 'some'", "none"]),
        ({"rewards.hps": "", "rewards.pickscore": "", "rewards.custom": ""}, ["needs a reward", "rewards", "held_out"]),
        ({"rewards.imagereward": "x.pt"}, ["config.rewards.bert_tokenizer is empty"]),
        ({"rewards.custom": "tests.text_to_image.tiny_sdxl:one_score_for_all"}, ["returned shape ()", "for 2 images"]),
        ({"rewards.custom": "tests.text_to_image.tiny_sdxl:unfinished"}, ["RuntimeError: the model is not there"]),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_before_work(bench, change, fragments):
    message = bench.refused(change)
    assert all(fragment in message for fragment in fragments), message


def test_a_prompt_that_the_evaluation_would_stumble_over_is_found_first(bench, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a cat"}\n{"prompt": 3}\n')
    assert "line 2: prompt is 3, not text" in bench.refused({"eval.prompts": str(tmp_path / "prompts.jsonl")})


def test_adapters_at_the_rate_of_a_full_fine_tune_are_warned_of(bench):
    rates = {"align.generator_optimizer.lr": 1e-6, "align.ta_optimizer.lr": 1e-4}
    lines = list(doubts(bench.recipe(bench.row.adapters, rates).config))
    assert len(lines) == 1 and "config.align.generator_optimizer.lr = 1e-06, a full fine-tune's rate" in lines[0]
    assert not list(
        doubts(bench.recipe(bench.row.full, {"align.ta_optimizer.lr": 1e-6, "align.generator_optimizer.lr": 1e-6}).config)
    )


def test_sides_that_the_networks_cannot_do_are_refused(bench):
    side = bench.row.tiny.HEIGHT + 1
    message = bench.refused({"image.height": side})
    assert f"config.image.height = {side}" in message and f"divisible by {bench.row.multiple}" in message


def test_refusals_leave_with_code_2_and_one_line_and_touch_nothing(bench, tmp_path):
    result = runs.start_run(bench.row.name, bench.settings | {"image.width": 25}, tmp_path / "run")
    assert result.returncode == 2 and result.stderr.strip().count("\n") == 0
    assert "config.image.width = 25" in result.stderr and not (tmp_path / "run").exists()


def test_modes_that_cannot_run_are_refused(bench):
    assert "score.images" in bench.refused({}, "score")
    nowhere = {"score.images": "/nowhere", "score.prompts": "/nowhere.csv", "tac.rankings": "/nowhere.json"}
    assert all("cannot read /nowhere" in bench.refused(nowhere, mode) for mode in ("score", "tac"))
    nothing = {key: "" for key in bench.settings if key in ("rewards.hps", "rewards.pickscore", "rewards.custom")}
    assert "no reward" in bench.refused(nothing | {"score.images": "here"}, "score")
