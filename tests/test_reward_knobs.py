"""`config.rewards`: its keys come from the rewards' records, and a mix comes from it."""

from pathlib import Path

import jax
import ml_collections
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from didr_jax.objectives import OBJECTIVES  # noqa: E402
from didr_jax.recipes.text_to_image import knobs  # noqa: E402
from didr_jax.recipes.text_to_image.rewards import PER_REWARD, chosen, open_mix, require_reward, resolve_estimator  # noqa: E402
from didr_jax.rewards import REWARDS  # noqa: E402
from didr_jax.rewards.custom import FURTHER, OWN  # noqa: E402
from didr_jax.types import InputError  # noqa: E402
from tests.parity.vocabularies import save_clip_tokenizer  # noqa: E402
from tests.text_to_image.tiny_sdxl import save_clip  # noqa: E402

REDNESS = {"custom": "tests.text_to_image.tiny_sdxl:redness"}
DEFAULTS = {
    "hps": "", "pickscore": "", "imagereward": "", "clipscore": "", "aesthetic": "", "custom": "",
    "custom_differentiable": False, "held_out": ("clipscore", "aesthetic"), "clip": "", "clip_tokenizer": "",
    "bert_tokenizer": "", "dtype": "float32", "param_dtype": "", "remat": "auto",
}  # fmt: skip


def section(**values):
    config = knobs.rewards()
    config.update(values)
    return config


def align(objective, **values):
    knobs = dict(objective=objective, estimator="auto", num_steps=2, num_samples=2)
    return ml_collections.ConfigDict(knobs | values)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP with its tokenizer, and the folder of a pipeline's tokenizer."""
    folder = tmp_path_factory.mktemp("clip")
    return str(save_clip(folder / "clip", 7)), str(save_clip_tokenizer(folder / "tokenizer"))


def without_tokenizer(folder, tmp_path):
    """The same CLIP, its tokenizer left behind."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(f"{folder}/{name}")
    return str(tmp_path)


def test_every_reward_has_the_keys_that_its_record_tells():
    config = section()
    assert {key: config[key] for key in DEFAULTS} == DEFAULTS
    assert set(config.weights) == set(REWARDS) and set(config.weights.values()) == {1.0}
    told = {knob.key: knob for record in REWARDS.values() for knob in record.knobs.values()}
    assert set(config) == set(told) | {"held_out", *PER_REWARD}
    assert all(set(config[key]) == set(REWARDS) for key in PER_REWARD)
    for name, record in REWARDS.items():
        assert record.about and told[name] in record.knobs.values(), f"nothing turns {name} on"
        for knob in record.knobs.values():
            assert knob == told[knob.key], f"{knob.key} means two things"
            assert knob.meaning and "\n" not in knob.meaning


def test_every_reward_is_in_the_documentation():
    page = (Path(__file__).parent.parent / "docs" / "sdxl.md").read_text()
    assert [name for name in REWARDS if f"\n| `{name}` |" not in page and name not in FURTHER] == []
    assert all(f"`{name}`" in page for name in FURTHER)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"held_out": ("hpss",)}, "config.rewards.held_out = 'hpss' is not known; did you mean hps"),
        ({"weights": {"pikscore": 1.0}}, "config.rewards.weights = 'pikscore' is not known; did you mean pickscore"),
        ({"hps": "x", "dtype": "float31"}, "config.rewards.dtype = 'float31' is not known; did you mean float32"),
        ({"hps": "x", "remat": "block"}, "config.rewards.remat = 'block'"),
        ({"imagereward": "x"}, "config.rewards.bert_tokenizer is empty, but the reward 'imagereward' needs it"),
        ({"aesthetic": "x"}, "config.rewards.clip is empty, but the reward 'aesthetic' needs it"),
        ({"hps": "/nowhere"}, "config.rewards.clip_tokenizer is empty, but the reward 'hps' needs it"),
        ({"hps": "/nowhere", "clip_tokenizer": "x"}, "no such file or folder: /nowhere"),
        (REDNESS | {"weights": {"custom": 0.0}}, "weight 0 for custom"),
        (REDNESS | {"shape": {"custom": "hinge"}}, "config.rewards.shape.custom = 'hinge': write hinge:M, or clip:L,M"),
        (REDNESS | {"shape": {"custom": "clip:2,1"}}, "config.rewards.shape.custom = 'clip:2,1'"),
        (REDNESS | {"shape": {"custom": "hinge:nan"}}, "config.rewards.shape.custom = 'hinge:nan'"),
    ],
)
def test_what_cannot_be_used_is_refused(values, message):
    config = section()
    with config.unlocked():
        config.update(values)
    with pytest.raises(InputError, match=message):
        open_mix(config, None)


def test_a_mix_trains_what_is_not_held_out(clip):
    config = section(hps=clip[0], clipscore=clip[0], **REDNESS)
    config.weights.hps = 0.5
    assert chosen(config) == ["hps", "clipscore", "custom"]
    mix = open_mix(config, clip[1])
    assert list(mix.models) == ["hps", "custom", "clipscore"] and mix.weights == {"hps": 0.5, "custom": 1.0}
    mix.params.check()
    assert set(mix.params.load()) == set(mix.models)
    for values, dtype in (
        ({}, "float32"),
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": "bfloat16", "param_dtype": "float32"}, "float32"),
    ):
        config.update(values)  # parameters are kept as they are computed with, unless it is said
        assert {leaf.dtype for leaf in jax.tree.leaves(open_mix(config, clip[1]).params.shapes) if leaf.ndim} == {
            jax.numpy.dtype(dtype)
        }
    assert open_mix(section(), clip[1]) is None


@pytest.mark.parametrize(
    "name", [name for name, record in REWARDS.items() if "tokenizer" in record.knobs and name != "imagereward"]
)
def test_an_empty_tokenizer_is_the_rewards_own_or_the_pipelines(clip, tmp_path, name):
    folder, pipelines = clip
    open_mix(section(**{name: folder}), None)
    alone = section(**{name: without_tokenizer(folder, tmp_path)})
    open_mix(alone, pipelines)
    with pytest.raises(InputError, match=f"clip_tokenizer is empty, but the reward '{name}' needs it"):
        open_mix(alone, None)


def test_a_plan_opens_nothing():
    paths = {name: "/nowhere" for name, record in REWARDS.items() if record.published}
    mix = open_mix(section(**paths, held_out=()), None, published=True)
    assert set(mix.models) == set(paths) == set(REWARDS) - set(OWN)
    for name, model in mix.models.items():
        assert jax.tree.leaves(model.weights.shapes), name
        assert jax.tree.leaves(model.tokenize(["a cat"]))[0].shape[0] == 1, name
        with pytest.raises(LookupError):
            model.weights.load()


def test_a_plan_takes_the_sizes_of_what_is_there(clip):
    """Of a reward whose files all are; if one is not, the published ones."""
    shapes = lambda mix: jax.tree.map(lambda a: a.shape, mix.params.shapes)
    folder, pipelines = clip
    here = section(hps=folder, held_out=())
    assert shapes(open_mix(here, None, published=True)) == shapes(open_mix(here, None))
    lacking = section(hps=folder, aesthetic="/nowhere", clip=folder, held_out=())
    planned = shapes(open_mix(lacking, pipelines, published=True))
    assert planned["hps"] == shapes(open_mix(here, None))["hps"]
    assert planned["aesthetic"] == shapes(open_mix(section(aesthetic="/nowhere", held_out=()), None, published=True))["aesthetic"]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_that_needs_a_reward_is_refused_without_one(name):
    require_reward(name, section(**REDNESS))
    for idle in (section(), section(**REDNESS, held_out=("custom",))):
        if not OBJECTIVES[name].needs_reward:
            require_reward(name, idle)
            continue
        with pytest.raises(InputError, match=f"'{name}' needs a reward .* config.rewards.{{hps, .*custom}}"):
            require_reward(name, idle)


def test_a_black_box_is_for_objectives_that_do_not_differentiate_it():
    smooth = open_mix(section(**REDNESS, custom_differentiable=True), None)
    black = open_mix(section(**REDNESS), None)
    for name, objective in OBJECTIVES.items():
        assert resolve_estimator(align(name), smooth).estimator == "own", "of a reward behind a decoder"
        assert resolve_estimator(align(name), None).estimator == "own"
        if objective.differentiates_reward:
            with pytest.raises(InputError, match="custom has no gradient"):
                resolve_estimator(align(name), black)
        else:
            assert resolve_estimator(align(name), black).estimator == "covariance"
    with pytest.raises(InputError, match="'drp' differentiates the reward"):
        resolve_estimator(align("didr", estimator="drp"), black)
    with pytest.raises(InputError, match="set num_steps and num_samples to 2 or more, not 2 and 1"):
        resolve_estimator(align("didr", num_samples=1), black)
    resolve_estimator(align("sim", num_samples=1), black)
