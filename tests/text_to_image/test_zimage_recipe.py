"""What is particular to Z-Image; what every backbone does stands in test_recipe.py."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from configs import zimage as config_file  # noqa: E402
from didr_jax import recipes  # noqa: E402
from didr_jax.cli import check  # noqa: E402
from didr_jax.recipes.text_to_image.zimage import ZImage  # noqa: E402
from didr_jax.types import InputError  # noqa: E402
from tests.text_to_image import runs  # noqa: E402
from tests.text_to_image import tiny_zimage as tiny  # noqa: E402

FULL = {"network.generator": "full", "network.ta": "full", "align.generator_optimizer.lr": 1e-3}
SHARED = {"weights.generator": ""}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """{config key: value} of a tiny run on captions of two padded lengths."""
    return tiny.settings(tmp_path_factory.mktemp("zimage"), **tiny.RAGGED)[1]


def config_of(settings):
    return runs.config_of(config_file, settings)


def recipe_of(settings):
    return runs.recipe_of(config_file, ZImage, settings)


def refused(settings, mode="train"):
    return runs.refusal(config_of(settings), mode)


def test_captions_are_ragged_rows_of_the_table(settings):
    recipe = recipe_of(settings | {"data.dtype": "bfloat16"})
    batch, table = recipe.align({}).batch(1)["text"], recipe.task.conditions.everything["text"]
    empty = recipe.task.no_text().load()
    width = 32 if batch["length"].max() <= 32 else tiny.RAGGED["max_length"]
    assert batch["caption"].shape == (2, 2, width, 16) and batch["caption"].dtype == jnp.bfloat16
    assert batch["length"].shape == (2, 2) and batch["length"].dtype == np.int32
    assert table["length"].tolist() == [11, 33, 6, 7, 14] and empty["length"].tolist() == [5]
    for row, length in zip(table["caption"], table["length"], strict=True):
        assert np.all(np.any(row[:length], axis=1)) and not np.any(row[length:])
    assert np.any(empty["caption"])  # the empty prompt, not zeros
    exact = recipe_of(settings).task.conditions.everything["text"]["caption"]
    np.testing.assert_array_equal(table["caption"], exact.astype(jnp.bfloat16))


@pytest.mark.slow
def test_a_caption_that_is_padded_less_gives_the_same_numbers(settings):
    """The prediction, and its gradient for every parameter, pad tokens too: what lies beyond the widest caption is masked."""
    task = recipe_of(settings).task
    table, some = task.conditions, np.array([0, 2, 3])  # 11, 6 and 7 tokens of 33 that the widest has
    assert table.rows(some, some)["text"]["caption"].shape[1] == 32 < table.rows(some)["text"]["caption"].shape[1]
    params = task.backbone.base.load()
    x, t = jax.random.normal(jax.random.key(0), (3, *task.backbone.event_shape)), jnp.array([0.1, 0.5, 0.9])
    loss = lambda params, text: jnp.mean(task.backbone.network(params, x, t, text) ** 2)
    narrow, wide = (
        jax.jit(jax.value_and_grad(loss))(params, rows["text"]) for rows in (table.rows(some, some), table.rows(some))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), narrow, wide)


def test_one_shared_base_trains_as_three_copies_do(settings, tmp_path):
    """With adapters on the base's own weights, `frozen` has one network; gradients, read off one step of SGD, are equal."""
    copy = shutil.copytree(f"{settings['weights.base']}/transformer", tmp_path / "transformer")
    sgd = {f"align.{who}_optimizer.{key}": value for who in ("generator", "ta")
           for key, value in dict(name="sgd", b1=0.0, lr=1.0, warmup=0, clip=1e9).items()}  # fmt: skip
    plain = {"align.objective": "dmd2", "rewards.custom": "", "rewards.custom_differentiable": False}
    found = []
    for generator, networks in (("", {"base"}), (str(copy), {"base", "generator"})):
        recipe = recipe_of(settings | sgd | plain | {"weights.generator": generator})
        assert recipe.task.frozen().keys() & {"base", "generator"} == networks
        assert recipe.task.under_adapters().keys() == ({"base"} if generator == "" else {"generator"})
        found.append((recipe.task, *runs.train(recipe)))
    (task, shared, metrics, untouched), (_, apart, _, also) = found
    assert untouched and also and metrics["skipped"] == 0
    for who in ("generator", "ta"):
        start, moved = task.start(who).load(), getattr(shared, who)
        gradient = jax.tree.map(lambda new, old: old - new, moved, start)
        other = jax.tree.map(lambda new, old: old - new, getattr(apart, who), start)
        assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) > 1e-4, who
        jax.tree.map(np.testing.assert_array_equal, gradient, other)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["ode", "renoise"])
def test_a_four_step_generator_trains(settings, solver):
    recipe = recipe_of(settings | SHARED | {"network.generator_steps": 4, "network.generator_solver": solver})
    recipe.check("train")
    state, metrics, untouched = runs.train(recipe, steps=2)
    assert untouched and metrics["skipped"] == 0 and all(np.isfinite(value) for value in metrics.values())
    assert all(np.any(leaf) for leaf in jax.tree.leaves((state.generator, state.ta)))


def edit_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_generators_folder_of_another_architecture_is_refused_by_its_config(settings, tmp_path):
    shutil.copytree(settings["weights.generator"], tmp_path / "turbo")
    edit_json(tmp_path / "turbo" / "transformer" / "config.json", rope_theta=16.0, n_layers=3)
    message = refused(settings | {"weights.generator": str(tmp_path / "turbo")})
    assert "config.weights.generator" in message and "n_layers 3 (2), rope_theta 16.0 (256.0)" in message


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
def test_a_pipeline_that_is_not_z_image_is_refused(settings, tmp_path, file, values, fragments):
    shutil.copytree(settings["weights.base"], tmp_path / "base")
    edit_json(tmp_path / "base" / file, **values)
    message = refused(settings | SHARED | {"weights.base": str(tmp_path / "base")})
    assert all(fragment in message for fragment in fragments), message


@pytest.mark.parametrize(
    "change, fragments",
    [
        ({"weights.generator": "/nowhere"}, ["no such file or folder: /nowhere"]),
        ({"weights.generator_adapter": "/nowhere"}, ["no such file or folder: /nowhere"]),
        ({"image.height": 18}, ["config.image.height = 18", "divisible by 4"]),
        ({"image.height": 100}, ["Z-Image: latents of 50×12", "axes_lens"]),
        ({"network.generator_steps": 9}, ["config.network", "1 to 8 steps, got 9"]),
        ({"network.generator_solver": "heun"}, ["config.network.generator_solver", "ode"]),
        ({"data.max_length": 0}, ["config.data.max_length = 0"]),
        ({"data.encoder_dtype": "int8"}, ["config.data.encoder_dtype", "bfloat16"]),
        ({"lora.layers": ("attn1/to_q",)}, ["'attn1/to_q' matches no layer"]),
        ({"rewards.hps": "/nowhere"}, ["config.rewards.clip_tokenizer is empty"]),
    ],
)
def test_what_cannot_be_used_is_refused_before_work(settings, change, fragments):
    message = refused(settings | change)
    assert all(fragment in message for fragment in fragments), message


def test_another_schedule_is_refused(settings):
    config = config_of(settings)
    config.schedule = {"name": "cosine"}
    with pytest.raises(InputError, match="config.schedule.name = 'cosine': Z-Image is a rectified_flow"):
        check(recipes.build(config), config, "train")


def test_what_is_probably_not_meant_is_warned_about(settings, tmp_path, capsys):
    def warnings(**change):
        recipe_of(settings | {key.replace("__", "."): value for key, value in change.items()}).check("train")
        return [line for line in capsys.readouterr().err.splitlines() if "warning" in line]

    assert warnings() == [] == warnings(align__guidance=1.0, weights__base=settings["weights.base"])
    base = settings["weights.base"]
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
