"""What is particular to SDXL and SD 1.5; what every backbone does stands in test_recipe.py."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from configs import sd15, sdxl  # noqa: E402
from didr_jax.recipes.text_to_image.conditions import read_shapes  # noqa: E402
from didr_jax.recipes.text_to_image.stable_diffusion import StableDiffusion  # noqa: E402
from didr_jax.types import InputError  # noqa: E402
from tests.parity.oracle import assert_close  # noqa: E402
from tests.text_to_image import runs  # noqa: E402
from tests.text_to_image import tiny_sdxl as tiny  # noqa: E402


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """{config key: value} of a tiny run."""
    return tiny.settings(tmp_path_factory.mktemp("sdxl"))[1]


def recipe_of(settings, module=sdxl):
    return runs.recipe_of(module, StableDiffusion, settings)


def test_guidances_other_branch_of_sdxl_is_zero(settings):
    empty = recipe_of(settings).task.no_text()
    assert {name: leaf.shape[0] for name, leaf in empty.shapes.items()} == {"prompt": 1, "pooled": 1}
    assert not any(np.any(leaf) for leaf in empty.load().values())


def test_stable_diffusion_15_is_the_same_recipe(settings, tmp_path):
    import transformers as T

    folder = tiny.save_sd15(tmp_path / "sd15")
    recipe = recipe_of(settings | {"weights.base": str(folder), "weights.generator": ""}, sd15)
    recipe.check("train")
    task = recipe.task
    assert task.backbone.few_step.times == pytest.approx((0.999,))
    tokenizer = T.CLIPTokenizer.from_pretrained(folder / "tokenizer")
    ids = tokenizer([*tiny.PROMPTS, ""], padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        want = T.CLIPTextModel.from_pretrained(folder / "text_encoder").eval()(ids).last_hidden_state
    assert_close(task.conditions.everything["text"]["prompt"], want[:-1], what="prompts")
    assert_close(task.no_text().load()["prompt"], want[-1:], what="the empty prompt")
    assert task.start("generator").shapes.keys() == task.start("ta").shapes.keys()


@pytest.mark.slow
def test_rewards_read_a_prompt_once_and_score_as_with_their_text_towers(settings):
    """Those that read it by themselves: a step then has no text tower, the score and its gradient are the same to rounding."""
    alone = {"rewards.pickscore": "", "rewards.custom": "", "rewards.held_out": (), "rewards.prefix.hps": "art: "}
    task, loop = (recipe_of(settings | alone | {"data.encode": how}).task for how in ("cache", "in_loop"))
    assert task.frozen()["rewards"].shapes["hps"].keys() == {"vision", "logit_scale"}
    assert loop.frozen()["rewards"].shapes["hps"].keys() == {"vision", "text", "logit_scale"}
    rows, side = np.arange(len(tiny.PROMPTS)), task.config.image
    images = jax.random.uniform(jax.random.key(0), (len(rows), side.height, side.width, 3), minval=-1)

    def asked(of):
        tokens, params = of.conditions.rows(rows)["tokens"], of.judge.params.load()
        assert jax.tree.map(lambda a: (1, *a.shape[1:]), tokens) == jax.tree.map(np.shape, read_shapes(of.mix, not of.in_loop))

        def total(x):
            found = of.judge.apply(params, x, tokens)
            return found.total.sum(), found

        return jax.jit(jax.value_and_grad(total, has_aux=True))(images)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), asked(task), asked(loop))


def test_a_black_box_selects_the_estimator_that_needs_no_gradient(settings):
    alone = {"rewards.hps": "", "rewards.pickscore": "", "rewards.held_out": (), "rewards.custom_differentiable": False}
    enough = {"align.num_steps": 2, "align.num_samples": 4}
    recipe_of(settings | alone | enough).check("train")
    for more, message in (
        ({}, "num_steps and num_samples to 2"), (enough | {"align.estimator": "drp"}, "'drp' differentiates"),
        (enough | {"align.objective": "dipp"}, "has no gradient"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            recipe_of(settings | alone | more).check("train")


@pytest.mark.parametrize(
    "change, fragments",
    [
        ({"schedule.name": "cosine", "align.ta_t_min": 0.01}, ["config.schedule", "scaled_linear"]),
        ({"network.cross_attention": "flash"}, ["config.network.cross_attention", "xla"]),
        ({"rewards.weights.hps": 0.0}, ["weight 0 for hps"]),
        ({"weights.variant": "fp61"}, ["config.weights.variant = 'fp61'", "the plain ones only: leave it empty"]),
        ({"rewards.hps": "/nowhere"}, ["no such file or folder: /nowhere"]),
        (
            {
                "rewards.custom": "tests.text_to_image.tiny_sdxl:one_score_for_all",
                "rewards.custom_differentiable": False,
            },
            ["config.rewards.custom", "returned shape ()", "shape (2,)"],
        ),
    ],
)
def test_what_cannot_be_used_is_refused_before_work(settings, change, fragments):
    message = runs.refusal(runs.config_of(sdxl, settings | change))
    assert all(fragment in message for fragment in fragments), message
