"""Z-Image end to end, at tiny size: a diffusers pipeline in, trained by run.py, a transformer that diffusers runs out."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from configs import zimage as config_file  # noqa: E402
from didr_jax import lora, recipes  # noqa: E402
from didr_jax.cli import _check  # noqa: E402
from didr_jax.recipes.text_to_image.report import ADAPTER  # noqa: E402
from didr_jax.recipes.text_to_image.zimage import zimage  # noqa: E402
from didr_jax.training.metrics import read_metrics  # noqa: E402
from didr_jax.types import InputError  # noqa: E402
from didr_jax.weights.files import read_tensors, write_safetensors  # noqa: E402
from tests.text_to_image import runs  # noqa: E402
from tests.text_to_image import tiny_zimage as tiny  # noqa: E402
from tests.parity.oracle import assert_close, nchw  # noqa: E402

FULL = {"network.generator": "full", "network.ta": "full", "align.generator_optimizer.lr": 1e-3}
SHARED = {"weights.generator": ""}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """(the base pipeline, {config key: value} of a tiny run)."""
    return tiny.settings(tmp_path_factory.mktemp("zimage"))


def config_of(settings):
    return runs.config_of(config_file, settings)


def task_of(settings):
    return runs.task_of(config_file, zimage, settings)


def run(*arguments, **more):
    return runs.run("zimage", *arguments, **more)


def refused(settings, mode="train"):
    return runs.refusal(config_of(settings), mode)


@pytest.fixture(scope="module")
def trained(inputs, tmp_path_factory):
    """Workdir of a finished run that was also exported."""
    workdir = tmp_path_factory.mktemp("run")
    run(inputs[1], workdir)
    run(inputs[1], workdir, "--mode=export")
    return workdir


# ------------------------------------------------------------------------------------------ the run


def test_the_run_is_logged_and_judged(trained):
    lines = [line for line in read_metrics(str(trained)) if line["stage"] == "align"]
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert line["reward/dropped"] == line["skipped"] == 0 and np.isfinite(list(line.values())[2:]).all()
        assert line["tilt"] > 0 and line["gap"] > 0 and line["reward"] == pytest.approx(line["reward/custom"], rel=1e-5)
    assert list(json.loads((trained / "summary.json").read_text())) == ["one step, initial", "one step, didr"]
    assert (trained / "before.png").read_bytes() != (trained / "after.png").read_bytes()


def client_of(pipeline, folder):
    """diffusers' pipeline with what was exported to `folder`: the transformer and the scheduler."""
    client = diffusers.ZImagePipeline.from_pipe(
        pipeline, transformer=diffusers.ZImageTransformer2DModel.from_pretrained(folder, subfolder="transformer"),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler"),
    )  # fmt: skip
    client.set_progress_bar_config(disable=True)
    return client


def images_of(client, noise, kind, steps=1):
    return client(
        tiny.PROMPTS[:3], tiny.HEIGHT, tiny.WIDTH, steps, guidance_scale=0.0, latents=nchw(noise), output_type=kind,
        max_sequence_length=tiny.MAX_LENGTH,
    ).images  # fmt: skip


def test_diffusers_runs_the_export_and_gets_our_image(inputs, trained):
    """By default adapters train; the export has them merged."""
    pipeline, settings = inputs
    folder = trained / "export" / "transformer"
    exported, initial = read_tensors(folder), read_tensors(f"{settings['weights.generator']}/transformer")
    moved = {name for name in initial if not np.array_equal(exported[name], initial[name])}
    attention = {name for name in initial if ".attention.to_" in name}
    assert set(exported) == set(initial) and moved == attention and len(moved) == 4 * (2 + 1 + 1)

    client = client_of(pipeline, trained / "export")
    assert client.scheduler.config.shift == 3.0 and pipeline.scheduler.config.shift == 6.0
    task = task_of(settings | FULL | {"weights.generator": str(folder)})
    keys = [jax.random.fold_in(jax.random.key(task.config.eval.seed), i) for i in range(3)]
    noise = np.stack([jax.random.normal(key, task.backbone.event_shape) for key in keys])
    generate = jax.jit(task.generate, compiler_options=runs.HASTE)
    latents = generate(task.backbone.load("generator", "float32"), None, noise, task.table(tiny.PROMPTS[:3]))
    assert_close(latents, images_of(client, noise, "latent").numpy().transpose(0, 2, 3, 1), what="latents")

    after = np.asarray(Image.open(trained / "after.png"), int)  # what the run itself drew: three images in a row
    for i, image in enumerate(images_of(client, noise, "np")):
        left = i * (tiny.WIDTH + 2)
        drawn = after[:, left : left + tiny.WIDTH]
        assert np.abs(drawn - 255 * image).max() < 1 and drawn.std() > 10


def test_training_can_begin_with_exported_adapters(inputs, trained):
    """On the initial generator they are the merged export."""
    adapter = trained / "export" / ADAPTER
    task = task_of(inputs[1] | {"weights.generator_adapter": str(adapter)})
    task.check("train")
    ours = lora.merge(task.backbone.load("generator", "float32"), task.start("generator"), task.config.lora.alpha)
    theirs = task_of(inputs[1] | FULL | {"weights.generator": str(trained / "export")}).start("generator")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), ours, theirs)


# ------------------------------------------------------------------------------- parts of the recipe


def test_captions_are_ragged_rows_of_the_table(inputs):
    task = task_of(inputs[1] | {"data.dtype": "bfloat16"})
    batch, table = task.align({}).batch(1)["text"], task.table(task.prompts)["text"]
    assert batch["caption"].shape == (2, 2, tiny.MAX_LENGTH, 16) and batch["caption"].dtype == jnp.bfloat16
    assert batch["length"].shape == (2, 2) and batch["length"].dtype == np.int32
    assert table["length"].tolist() == [11, 33, 6, 7, 14] and task.no_text()["length"].tolist() == [5]
    for row, length in zip(table["caption"], table["length"]):
        assert np.all(np.any(row[:length], axis=1)) and not np.any(row[length:])
    assert np.any(task.no_text()["caption"])  # the empty prompt, not zeros
    exact = task_of(inputs[1]).table(task.prompts)["text"]["caption"]
    np.testing.assert_array_equal(table["caption"], exact.astype(jnp.bfloat16))


def test_one_shared_base_trains_as_three_copies_do(inputs, tmp_path):
    """With adapters on the base's own weights, `frozen` has one network; gradients, read off one step of SGD, are equal."""
    copy = shutil.copytree(f"{inputs[1]['weights.base']}/transformer", tmp_path / "transformer")
    sgd = {f"align.{who}_optimizer.{key}": value for who in ("generator", "ta")
           for key, value in dict(name="sgd", b1=0.0, lr=1.0, warmup=0, clip=1e9).items()}  # fmt: skip
    plain = {"align.objective": "dmd2", "rewards.custom": "", "rewards.custom_differentiable": False}
    states = []
    for generator, networks in (("", {"base"}), (str(copy), {"base", "generator"})):
        task = task_of(inputs[1] | sgd | plain | {"weights.generator": generator})
        frozen = task.frozen()
        assert {name for name in ("base", "generator") if name in frozen} == networks
        assert task.judged().keys() & {"base", "generator"} == ({"base"} if generator == "" else {"generator"})
        states.append((task, *runs.train(task)))
    (task, shared, metrics, untouched), (_, apart, _, also) = states
    assert untouched and also and metrics["skipped"] == 0
    for who in ("generator", "ta"):
        start, moved = task.start(who), getattr(shared, who)
        gradient = jax.tree.map(lambda new, old: old - new, moved, start)
        other = jax.tree.map(lambda new, old: old - new, getattr(apart, who), start)
        assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) > 1e-4, who
        jax.tree.map(np.testing.assert_array_equal, gradient, other)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["di", "dipp", "distar", "sim", "dmd2", "didr"])
def test_every_objective_trains_all_of_both_networks(inputs, objective):
    runs.assert_trains(task_of(inputs[1] | FULL | {"align.objective": objective}))


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["ode", "renoise"])
def test_a_four_step_generator_trains(inputs, solver):
    task = task_of(inputs[1] | SHARED | {"network.generator_steps": 4, "network.generator_solver": solver})
    task.check("train")
    state, metrics, untouched = runs.train(task, steps=2)
    assert untouched and metrics["skipped"] == 0 and all(np.isfinite(value) for value in metrics.values())
    assert all(np.any(leaf) for leaf in jax.tree.leaves((state.generator, state.ta)))


@pytest.mark.slow
def test_half_precision_rematerialisation_and_unrolling_follow_full_precision(inputs, tmp_path):
    """The precisions that configs/zimage.py sets, on the same noise, with a reward network; then flat loops."""
    settings = inputs[1] | tiny.save_hps(tmp_path) | {"rewards.custom": "", "rewards.remat": "none", "align.ta_updates": 2}
    _, exact, _ = runs.train(task_of(settings))
    _, flat, _ = runs.train(task_of(settings | {"unroll": True}))
    half = {"network.dtype": "bfloat16", "network.frozen_dtype": "bfloat16", "data.dtype": "bfloat16"}
    remat = {"network.remat": "blocks", "network.vae_remat": "products", "rewards.remat": "products"}
    task = task_of(settings | half | remat | {"data.encoder_dtype": "bfloat16"})
    runs.assert_half_follows(task, exact)
    for name in ("ta_loss", "gap", "reward/hps"):
        assert flat[name] == pytest.approx(exact[name], rel=1e-4), name


@pytest.mark.slow
def test_two_devices_hold_half_of_the_parameters_each_and_compute_the_same(inputs, tmp_path):
    """On one base for three roles, which is spread over both devices; then the export of spread adapters."""
    spread = {"mesh.fsdp": 2, "mesh.data": 1, "mesh.min_size": 64}
    run(inputs[1] | SHARED, tmp_path / "one")
    run(inputs[1] | SHARED | spread, tmp_path / "two", devices=2)
    runs.assert_same_figures(tmp_path / "one", tmp_path / "two")
    run(inputs[1] | SHARED | spread, tmp_path / "two", "--mode=export", devices=2)
    diffusers.ZImageTransformer2DModel.from_pretrained(tmp_path / "two" / "export", subfolder="transformer")


# -------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("part", ["transformer/config.json", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_folder_without_a_part_is_refused_naming_it(inputs, tmp_path, part):
    shutil.copytree(inputs[1]["weights.base"], tmp_path / "base")
    gone = tmp_path / "base" / part
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    message = refused(inputs[1] | {"weights.base": str(tmp_path / "base")})
    assert "config.weights.base" in message and part in message


def test_a_generator_of_another_architecture_is_refused(inputs, tmp_path):
    """A file by its tensors, a folder by its config."""
    wrong = dict(read_tensors(f"{inputs[1]['weights.generator']}/transformer"))
    wrong["t_embedder.extra.weight"] = wrong.pop("x_pad_token")
    wrong["layers.1.attention.to_q.weight"] = wrong["layers.1.attention.to_q.weight"][:, :7]
    write_safetensors(tmp_path / "wrong.safetensors", wrong)
    message = refused(inputs[1] | {"weights.generator": str(tmp_path / "wrong.safetensors")})
    for fragment in ("config.weights.generator", "1 missing: x_pad_token", "t_embedder.extra", "1 misshapen: layers.1.atten"):
        assert fragment in message
    shutil.copytree(inputs[1]["weights.generator"], tmp_path / "turbo")
    edit_json(tmp_path / "turbo" / "transformer" / "config.json", rope_theta=16.0, n_layers=3)
    message = refused(inputs[1] | {"weights.generator": str(tmp_path / "turbo")})
    assert "config.weights.generator" in message and "n_layers 3 (2), rope_theta 16.0 (256.0)" in message


def edit_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    "file, values, fragments",
    [
        ("transformer/config.json", {"siglip_feat_dim": 8}, ["siglip_feat_dim=8"]),
        ("transformer/config.json", {"in_channels": 16}, ["16 channels", "the VAE's 4"]),
        ("transformer/config.json", {"cap_feat_dim": 8}, ["width 8", "gives 16"]),
        ("text_encoder/config.json", {"model_type": "qwen2"}, ["model_type='qwen2'"]),
        ("scheduler/scheduler_config.json", {"use_dynamic_shifting": True}, ["use_dynamic_shifting=True"]),
        ("scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}, ["DDIMScheduler", "FlowMatchEuler"]),
    ],
)
def test_a_pipeline_that_is_not_z_image_is_refused(inputs, tmp_path, file, values, fragments):
    shutil.copytree(inputs[1]["weights.base"], tmp_path / "base")
    edit_json(tmp_path / "base" / file, **values)
    message = refused(inputs[1] | SHARED | {"weights.base": str(tmp_path / "base")})
    assert all(fragment in message for fragment in fragments), message


@pytest.mark.parametrize(
    "change, fragments",
    [
        ({"weights.base": ""}, ["config.weights.base is empty"]),
        ({"weights.generator": "/nowhere"}, ["no such file or folder: /nowhere"]),
        ({"weights.generator_adapter": "/nowhere"}, ["no such file or folder: /nowhere"]),
        ({"weights.generator_adapter": "x", "network.generator": "full"}, ["generator_adapter", "generator=lora"]),
        ({"image.height": 18}, ["config.image.height = 18", "divisible by 4"]),
        ({"image.height": 100}, ["Z-Image: latents of 50×12", "axes_lens"]),
        ({"network.generator_steps": 9}, ["config.network", "1 to 8 steps, got 9"]),
        ({"network.generator_solver": "heun"}, ["config.network.generator_solver", "ode"]),
        ({"data.max_length": 0}, ["config.data.max_length = 0"]),
        ({"data.encoder_dtype": "int8"}, ["config.data.encoder_dtype", "bfloat16"]),
        ({"network.attention": "flash"}, ["config.network.attention", "xla"]),
        ({"network.vae_attention": "flash"}, ["config.network.vae_attention", "xla"]),
        ({"lora.layers": ("attn1/to_q",)}, ["'attn1/to_q' matches no layer"]),
        ({"rewards.hps": "/nowhere"}, ["config.rewards.clip_tokenizer is empty"]),
    ],
)
def test_what_cannot_be_used_is_refused_before_work(inputs, change, fragments):
    message = refused(inputs[1] | change)
    assert all(fragment in message for fragment in fragments), message


def test_another_schedule_is_refused(inputs):
    config = config_of(inputs[1])
    config.schedule = {"name": "cosine"}
    with pytest.raises(InputError, match="config.schedule.name = 'cosine': Z-Image is a rectified_flow"):
        _check(recipes.build(config), config, "train")


def test_refusals_leave_with_code_2_and_one_line(inputs, tmp_path):
    result = runs.start_run("zimage", inputs[1] | {"image.width": 25}, tmp_path / "run")
    assert result.returncode == 2 and result.stderr.strip().count("\n") == 0
    assert "config.image.width = 25" in result.stderr and not (tmp_path / "run").exists()


def test_what_is_probably_not_meant_is_warned_about(inputs, tmp_path, capsys):
    def warnings(**change):
        task_of(inputs[1] | {key.replace("__", "."): value for key, value in change.items()}).check("train")
        return [line for line in capsys.readouterr().err.splitlines() if "warning" in line]

    assert warnings() == [] == warnings(align__guidance=1.0, weights__base=inputs[1]["weights.base"])
    base = inputs[1]["weights.base"]
    line, shift = warnings(weights__generator=base)
    assert "config.weights.base and config.weights.generator are the same" in line and "has 6" in shift
    named = shutil.copytree(base, tmp_path / "Z-Image-Turbo")
    (line,) = warnings(weights__base=str(named))
    assert "looks like Turbo (Z-Image-Turbo)" in line and "guidance = 5" in line
    assert warnings(weights__base=str(named), align__guidance=1.0) == []
    edit_json(tmp_path / "Z-Image-Turbo" / "transformer" / "config.json", _name_or_path="Tongyi-MAI/Z-Image-Turbo")
    unnamed = (tmp_path / "Z-Image-Turbo").rename(tmp_path / "base")
    assert "looks like Turbo (Tongyi-MAI/Z-Image-Turbo)" in warnings(weights__base=str(unnamed))[0]
    (line,) = warnings(weights__generator=str(tiny.save_turbo(tmp_path / "other", shift=6.0)))
    assert "config.schedule.shift = 3, the generator's own scheduler has 6" in line
