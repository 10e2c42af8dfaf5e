"""SDXL end to end, at tiny size: a diffusers pipeline in, trained by run.py, a UNet that diffusers runs out."""

import json
import shutil

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from configs import sd15, sdxl  # noqa: E402
from didr_jax import recipes  # noqa: E402
from didr_jax.cli import _check  # noqa: E402
from didr_jax.recipes.text_to_image.report import ADAPTER, WEIGHTS, Judge, export  # noqa: E402
from didr_jax.recipes.text_to_image.stable_diffusion import stable_diffusion  # noqa: E402
from didr_jax.recipes.text_to_image.task import TextToImage  # noqa: E402
from didr_jax.training.metrics import read_metrics  # noqa: E402
from didr_jax.types import InputError  # noqa: E402
from didr_jax.weights.files import read_tensors, write_safetensors  # noqa: E402
from tests.text_to_image import runs  # noqa: E402
from tests.text_to_image import tiny_sdxl as tiny  # noqa: E402
from tests.parity.oracle import assert_close, nchw  # noqa: E402

LORA = {"network.generator": "lora", "network.ta": "lora", "lora.rank": 2, "lora.alpha": 6.0}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """(the pipeline, {config key: value} of a tiny run)."""
    return tiny.settings(tmp_path_factory.mktemp("sdxl"))


def config_of(settings, module=sdxl, **more):
    return runs.config_of(module, settings | {key.replace("__", "."): value for key, value in more.items()})


def task_of(settings, **more):
    return TextToImage(config_of(settings, **more), stable_diffusion)


def run(settings, workdir, cache, *arguments, **more):
    return runs.run("sdxl", settings, workdir, *arguments, cache=cache, **more).stdout


def refused(settings, mode="train"):
    return runs.refusal(config_of(settings), mode)


@pytest.fixture(scope="module")
def trained(inputs, tmp_path_factory):
    """(workdir of a finished run that was also exported, cache of compiled programs)."""
    workdir, cache = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("compiled")
    run(inputs[1], workdir, cache)
    run(inputs[1], workdir, cache, "--mode=export")
    return workdir, cache


def digests(workdir, step):
    """What the save says of the bits of every leaf."""
    return json.loads((workdir / "checkpoints" / "align" / str(step) / "meta" / "metadata").read_text())["digests"]


# ------------------------------------------------------------------------------------------ the run


def test_the_log_shows_each_reward_term_and_their_mix(trained):
    lines = [line for line in read_metrics(str(trained[0])) if line["stage"] == "align"]
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        mixed = (line["reward/hps"] - 28.98) / 4.91 + 0.5 * (line["reward/pickscore"] - 22.8) / 1.1
        np.testing.assert_allclose(line["reward"], mixed, rtol=1e-5)
        assert line["reward/dropped"] == line["skipped"] == 0 and np.isfinite(line["reward/custom"])
        assert line["tilt"] > 0 and line["gap"] > 0
    summary = json.loads((trained[0] / "summary.json").read_text())
    assert list(summary) == ["one step, initial", "one step, didr"]
    assert all(set(row) == {"hps", "pickscore", "custom"} for row in summary.values())
    assert all((trained[0] / f"{name}.png").is_file() for name in ("before", "after", "curves_align"))


def test_diffusers_runs_the_export_and_gets_our_image(inputs, trained):
    pipeline, settings = inputs
    folder = trained[0] / "export" / "unet"
    exported, initial = read_tensors(folder), read_tensors(settings["weights.generator"])
    assert set(exported) == set(initial) and not (trained[0] / "export" / ADAPTER).exists()
    assert sum(not np.array_equal(exported[name], initial[name]) for name in initial) > 0.9 * len(initial)

    shape, keys = (tiny.HEIGHT // 2, tiny.WIDTH // 2, 4), [jax.random.fold_in(jax.random.key(1234), i) for i in range(3)]
    noise = np.stack([jax.random.normal(key, shape) for key in keys])
    client = diffusers.StableDiffusionXLPipeline.from_pipe(
        pipeline, unet=diffusers.UNet2DConditionModel.from_pretrained(trained[0] / "export", subfolder="unet"),
        scheduler=diffusers.LCMScheduler.from_config(pipeline.scheduler.config),
    )  # fmt: skip
    client.set_progress_bar_config(disable=True)
    theirs = lambda kind: client(
        tiny.PROMPTS[:3], height=tiny.HEIGHT, width=tiny.WIDTH, timesteps=[399], guidance_scale=0.0,
        latents=nchw(noise), output_type=kind,
    ).images  # fmt: skip

    task = task_of(settings | {"weights.generator": str(folder / WEIGHTS)})
    c = jax.tree.map(lambda column: np.asarray(column[:3]), task.table(tiny.PROMPTS))
    generator = task.backbone.load("generator", "float32")
    latents = jax.jit(task.generate)(generator, None, noise, c)
    assert_close(latents, theirs("latent").numpy().transpose(0, 2, 3, 1), 1e-4, "latents")
    images, _ = Judge(task, task.judged(), tiny.PROMPTS[:3], seed=1234).run((generator, None))
    np.testing.assert_allclose(images / 2 + 0.5, theirs("np"), atol=2e-4)
    assert images.std() > 0.1


def test_an_interrupted_run_ends_with_the_same_bits(inputs, trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "align" / "3")
    said = run(inputs[1], tmp_path / "run", trained[1])
    assert "goes on from at step 2" in said
    assert digests(tmp_path / "run", 3) == digests(trained[0], 3) != digests(trained[0], 2)


def test_adapters_train_on_a_frozen_base_and_export_merged_and_alone(inputs, tmp_path):
    """LoRA on both networks, the rewards mixed another way, the reward on the clean image."""
    task = task_of(
        inputs[1] | LORA, rewards__weights__hps=-2.0, rewards__held_out=("pickscore",), align__objective="dipp",
        lora__layers=("attn[12]/to_(q|k|v|out)$", "ff/proj_in$"),
    )  # fmt: skip
    task.check("train")
    state, metrics, untouched = runs.train(task, steps=2)
    assert untouched
    mixed = -2 * (metrics["reward/hps"] - 28.98) / 4.91 + metrics["reward/custom"]
    np.testing.assert_allclose(metrics["reward"], mixed, rtol=1e-5)
    assert np.isfinite(metrics["reward/pickscore"])
    assert all(np.any(leaf) for leaf in jax.tree.leaves((state.generator, state.ta)))

    export(task, {"align": {"generator": state.generator}}, str(tmp_path), Silent())
    adapter, merged = read_tensors(tmp_path / "export" / ADAPTER), read_tensors(tmp_path / "export" / "unet")
    base, changed = read_tensors(inputs[1]["weights.generator"]), 0
    for name, weight in base.items():
        key = f"unet.{name.removesuffix('.weight')}"
        if f"{key}.lora_A.weight" in adapter:
            update = adapter[f"{key}.lora_B.weight"] @ adapter[f"{key}.lora_A.weight"]
            assert np.abs(update).max() > 0
            np.testing.assert_allclose(merged[name], weight + update, atol=1e-6)
            changed += 1
        else:
            np.testing.assert_array_equal(merged[name], weight)
    assert changed == len(adapter) // 2 == 2 * 9  # two blocks
    diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "export", subfolder="unet")


def test_adapters_on_the_base_itself_need_one_base(inputs):
    for more, networks in (({"weights.generator": ""}, {"base"}), ({}, {"base", "generator"})):
        frozen = task_of(inputs[1] | LORA | more).frozen()
        assert frozen.keys() & {"base", "generator"} == networks


class Silent:
    def say(self, message):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["di", "dipp", "distar", "sim", "dmd2", "didr"])
def test_every_objective_takes_a_step(inputs, objective):
    runs.assert_trains(task_of(inputs[1], align__objective=objective))


@pytest.mark.slow
def test_half_precision_and_rematerialisation_follow_full_precision(inputs):
    """The precisions that configs/sdxl.py sets, on the same noise."""
    _, full, _ = runs.train(task_of(inputs[1]))
    half = {"network.dtype": "bfloat16", "network.frozen_dtype": "bfloat16", "data.dtype": "float16"}
    task = task_of(inputs[1] | half | {"network.remat": "products", "network.vae_remat": "blocks", "rewards.remat": "blocks"})
    runs.assert_half_follows(task, full)


@pytest.mark.slow
def test_two_devices_hold_half_of_the_parameters_each_and_compute_the_same(inputs, trained, tmp_path):
    run(inputs[1] | {"mesh.fsdp": 2, "mesh.data": 1, "mesh.min_size": 64}, tmp_path, trained[1], devices=2)
    runs.assert_same_figures(trained[0], tmp_path)


@pytest.mark.slow
def test_samples_are_what_score_reads(inputs, trained, tmp_path):
    run(inputs[1], trained[0], trained[1], "--mode=sample", "--config.sample.num=4")
    folder = trained[0] / "samples"
    said = run(
        inputs[1], tmp_path, trained[1], "--mode=score", f"--config.score.images={folder}",
        f"--config.score.prompts={folder}/prompts.jsonl",
    )  # fmt: skip
    assert all(name in said for name in ("hps", "pickscore", "custom"))
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert lines[0] == "image,prompt,hps,pickscore,custom" and len(lines) == 5


# ------------------------------------------------------------------------------- parts of the recipe


def test_conditions_are_rows_of_the_table_picked_by_seed_and_step(inputs):
    task = task_of(inputs[1])
    stage, again = task.align({}), task_of(inputs[1]).align({})
    batch, table = stage.batch(1), task.table(task.prompts)
    assert jax.tree.leaves(batch)[0].shape[:2] == (2, 2)
    jax.tree.map(np.testing.assert_array_equal, batch, again.batch(1))
    assert not np.array_equal(batch["text"]["prompt"], stage.batch(2)["text"]["prompt"])
    for row, ids in zip(batch["text"]["prompt"].reshape(4, -1), batch["tokens"]["hps"]["ids"].reshape(4, -1)):
        which = [i for i in range(5) if np.array_equal(table["tokens"]["hps"]["ids"][i], ids)]
        assert len(which) == 1 and np.array_equal(table["text"]["prompt"][which[0]].ravel(), row)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(task.no_text()))  # SDXL: zero text, zero pooled


def test_stable_diffusion_15_is_the_same_recipe(inputs, tmp_path):
    import transformers as T

    folder = tiny.save_sd15(tmp_path / "sd15")
    settings = inputs[1] | {"weights.base": str(folder), "weights.generator": ""}
    task = TextToImage(config_of(settings, sd15), stable_diffusion)
    task.check("train")
    assert task.backbone.few_step.times == pytest.approx((0.999,))
    tokenizer = T.CLIPTokenizer.from_pretrained(folder / "tokenizer")
    ids = tokenizer([*tiny.PROMPTS, ""], padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        want = T.CLIPTextModel.from_pretrained(folder / "text_encoder").eval()(ids).last_hidden_state
    assert_close(task.table(task.prompts)["text"]["prompt"], want[:-1], what="prompts")
    assert_close(task.no_text()["prompt"], want[-1:], what="the empty prompt")
    assert task.start("generator").keys() == task.start("ta").keys()


def test_a_black_box_selects_the_estimator_that_needs_no_gradient(inputs):
    alone = {"rewards.hps": "", "rewards.pickscore": "", "rewards.held_out": (), "rewards.custom_differentiable": False}
    enough = {"align.num_steps": 2, "align.num_samples": 4}
    task_of(inputs[1] | alone | enough).check("train")
    for more, message in (
        ({}, "num_steps and num_samples to 2"), (enough | {"align.estimator": "drp"}, "'drp' differentiates"),
        (enough | {"align.objective": "dipp"}, "has no gradient"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            task_of(inputs[1] | alone | more).check("train")


# -------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("part", ["unet/config.json", "vae", "text_encoder_2", "tokenizer"])
def test_a_folder_without_a_part_is_refused_naming_it(inputs, tmp_path, part):
    shutil.copytree(inputs[1]["weights.base"], tmp_path / "base")
    gone = tmp_path / "base" / part
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    message = refused(inputs[1] | {"weights.base": str(tmp_path / "base")})
    assert "config.weights.base" in message and part in message


def test_a_generator_of_another_architecture_is_refused_naming_every_tensor(inputs, tmp_path):
    wrong = dict(read_tensors(inputs[1]["weights.generator"]))
    wrong["time_embedding.extra.weight"] = wrong.pop("conv_in.bias")
    wrong["conv_out.weight"] = wrong["conv_out.weight"][:3]
    wrong["add_embedding.linear_1.weight"] = wrong["add_embedding.linear_1.weight"][:, :7]
    write_safetensors(tmp_path / "wrong.safetensors", wrong)
    message = refused(inputs[1] | {"weights.generator": str(tmp_path / "wrong.safetensors")})
    for fragment in (
        "generator", "1 missing: conv_in.bias", "1 unexpected: time_embedding.extra.weight", "2 misshapen",
        "conv_out.weight", "add_embedding.linear_1.weight",
    ):  # fmt: skip
        assert fragment in message


@pytest.mark.parametrize(
    "change, fragments",
    [
        ({"weights.base": ""}, ["config.weights.base is empty"]),
        ({"weights.base": "/nowhere"}, ["config.weights.base", "no such folder"]),
        ({"weights.generator": "/nowhere.safetensors"}, ["no such file"]),
        ({"data.prompts": ""}, ["config.data.prompts is empty"]),
        ({"data.prompts": "/nowhere.txt"}, ["cannot read /nowhere.txt"]),
        ({"image.height": 33}, ["config.image.height = 33", "divisible by 2", "32"]),
        ({"image.width": 0}, ["config.image.width = 0"]),
        ({"network.ta": "half"}, ["config.network.ta", "full or lora"]),
        ({"network.attention": "flash"}, ["config.network.attention", "xla"]),
        ({"schedule.name": "cosine", "align.ta_t_min": 0.01}, ["config.schedule", "scaled_linear"]),
        ({"rewards.weights.hps": 0.0}, ["weight 0 for hps"]),
        ({"rewards.hps": "", "rewards.pickscore": ""}, ["needs a reward", "rewards", "held_out"]),
        ({"rewards.hps": "/nowhere"}, ["no such file or folder: /nowhere"]),
        ({"rewards.custom": "tests.text_to_image.tiny_sdxl:one_score_for_all"}, ["returned shape ()", "for 2 images"]),
        (
            {"rewards.custom": "tests.text_to_image.tiny_sdxl:one_score_for_all", "rewards.custom_differentiable": False},
            ["config.rewards.custom", "returned shape ()", "shape (2,)"],
        ),
        ({"rewards.custom": "tests.text_to_image.tiny_sdxl:unfinished"}, ["RuntimeError: the model is not there"]),
        ({"rewards.imagereward": "x.pt"}, ["config.rewards.bert_tokenizer is empty"]),
    ],
)
def test_what_cannot_be_used_is_refused_before_work(inputs, change, fragments):
    message = refused(inputs[1] | change)
    assert all(fragment in message for fragment in fragments), message


def test_modes_that_cannot_run_are_refused(inputs):
    assert "score.images" in refused(inputs[1], "score")
    assert "no reward" in refused({"score.images": "here"}, "score")
    from configs import digits

    config = digits.get_config()
    with pytest.raises(InputError, match="--mode=export.*digits"):
        _check(recipes.build(config), config, "export")
