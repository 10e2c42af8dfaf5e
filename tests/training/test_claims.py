"""What of a config may change when a run goes on, what must be asked for, and what is recorded of it."""

import json
import os

import pytest
from tiny_runs import tiny

from didr_jax.training.claims import Claim, compare
from didr_jax.training.workdir import LAYOUT, begin_anew, make_workdir
from didr_jax.types import InputError


def claim(workdir, config, *arguments, stage="pretrain", step=0, **options) -> list[str]:
    """Compares and records, as a run does whose first step is done; one save at least is there then."""
    lines = compare(config, str(workdir), *arguments, **options).record(stage, step)
    if not (workdir / "checkpoints").exists():
        with_saves(workdir, pretrain=5)
    return lines


def saved(workdir) -> dict:
    return json.loads((workdir / "config.json").read_text())


def with_saves(workdir, **steps):
    """A workdir whose stages have got so far."""
    for stage, step in steps.items():
        os.makedirs(workdir / "checkpoints" / stage / str(step))
    return workdir


def test_a_claim_leaves_the_config_to_read_and_nothing_else(tmp_path):
    workdir, config = tmp_path / "deep" / "run", tiny(seed=3)
    make_workdir(str(workdir))
    assert compare(config, str(workdir)).record("pretrain", 0) == []
    found = saved(workdir)
    assert found["seed"] == 3 and found["stages"] == list(config.stages) and found["pretrain"]["optimizer"]["lr"] == 1e-3
    assert [path.name for path in workdir.iterdir()] == ["config.json"]


def test_comparing_writes_nothing(tmp_path):
    compare(tiny(), str(tmp_path))
    assert not list(tmp_path.iterdir())
    compare(tiny(seed=3), str(tmp_path))  # the mended one is as welcome as the first


def test_a_run_that_saved_nothing_binds_nobody(tmp_path):
    """Killed between its first step and its first save, it has nothing to lose."""
    compare(tiny(), str(tmp_path)).record("pretrain", 0)
    other = tiny(seed=3)
    assert compare(other, str(tmp_path)).record("pretrain", 0) == [] and saved(tmp_path)["seed"] == 3
    assert "history" not in saved(tmp_path)["didr_jax"]
    (tmp_path / "checkpoints" / "corrupt" / "pretrain-10-1").mkdir(parents=True)  # a damaged save can be put back
    with pytest.raises(InputError, match="seed .3 then, 0 now"):
        compare(tiny(), str(tmp_path))


def test_what_it_logged_does_not_mix_with_the_next_ones(tmp_path):
    assert begin_anew(str(tmp_path)) == "" and os.listdir(tmp_path) == []
    for reward in (1, 2):
        (tmp_path / "metrics.jsonl").write_text(f"reward {reward}")
        (tmp_path / "progress").mkdir()
        (tmp_path / "notes.txt").write_text("mine")
        aside = begin_anew(str(tmp_path))
        assert sorted(os.listdir(tmp_path)) == ["notes.txt", "unsaved"]
        assert sorted(os.listdir(aside)) == ["metrics.jsonl", "progress"]
        assert (tmp_path / "unsaved" / "metrics.jsonl").read_text() == f"reward {reward}"
    claim = Claim(tiny(), str(tmp_path), aside=aside)
    assert claim.news() == [f"begins anew: what an earlier start logged and did not save is in {aside}"]


def test_a_run_has_a_name_of_its_own_and_keeps_it(tmp_path):
    names = set()
    for workdir in (tmp_path / "a", tmp_path / "b"):
        workdir.mkdir()
        claim(workdir, tiny())
        names.add(saved(workdir)["didr_jax"]["run"])
        claim(workdir, tiny(seed=1), allowed=("seed",))
        names.add(saved(workdir)["didr_jax"]["run"])
    assert len(names) == 2
    raw = saved(workdir)
    del raw["didr_jax"]["run"]  # as an older version left it
    (workdir / "config.json").write_text(json.dumps(raw))
    claim(workdir, tiny(seed=1))
    assert saved(workdir)["didr_jax"]["run"] not in names


def test_the_same_config_is_welcome_again(tmp_path):
    claim(tmp_path, tiny())
    before = (tmp_path / "config.json").read_bytes()
    assert claim(tmp_path, tiny()) == []
    assert (tmp_path / "config.json").read_bytes() == before


def test_another_config_is_refused_naming_every_key_with_both_values_and_changes_nothing(tmp_path):
    claim(tmp_path, tiny())
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(InputError) as refused:
        compare(tiny(seed=3, align__beta=0.25, log__every=9), str(tmp_path))
    assert "align.beta (1.0 then, 0.25 now); seed (0 then, 3 now)." in str(refused.value)
    assert str(refused.value).endswith("--allow_change=align.beta,seed")
    assert "log.every" not in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(InputError, match=r"seed \(0 then, 3 now\)\. Use the values that it was trained with$"):
        compare(tiny(seed=3), str(tmp_path), reading=True)
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_path_may_change_as_long_as_what_is_there_does_not(tmp_path):
    config = tiny()
    with config.unlocked():
        config.prompts = str(tmp_path / "prompts.txt")
    (tmp_path / "prompts.txt").write_text("a cat")
    (tmp_path / "moved.txt").write_text("a cat")
    (tmp_path / "others.txt").write_text("a dog")
    workdir = tmp_path / "run"
    claim(workdir, config)
    config.prompts = str(tmp_path / "moved.txt")
    again = compare(config, str(workdir))
    assert not again.changes and not again.news()
    for other in ("others.txt", "nowhere.txt"):
        config.prompts = str(tmp_path / other)
        with pytest.raises(InputError, match=f"prompts .*{other}"):
            compare(config, str(workdir))
    config.prompts = str(tmp_path / "prompts.txt")
    (tmp_path / "prompts.txt").write_text("a cow")
    assert compare(config, str(workdir)).news() == [
        "warning: config.prompts is not what it was: files there have changed since the run began"
    ]


def test_a_knob_that_only_one_of_them_has_counts_as_another_value(tmp_path):
    claim(tmp_path, tiny())
    config = tiny()
    with config.unlocked():
        config.novelty = 1
        del config.network.spread
    with pytest.raises(InputError, match=r"network\.spread \(2\.0 then, None now\); novelty \(None then, 1 now\)"):
        compare(config, str(tmp_path))


def test_a_knob_that_has_since_come_has_todays_default_and_is_told(tmp_path):
    claim(tmp_path, tiny())
    raw = saved(tmp_path)
    del raw["align"]["huber"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    today = lambda raw: {"align.huber": tiny().align.huber, "align.beta": 7.0}
    (line,) = compare(tiny(), str(tmp_path), defaults=today).news()
    assert "older than align.huber: today's defaults hold" in line
    with pytest.raises(InputError, match=r"align\.huber \(0\.001 then, 0\.5 now\)"):
        compare(tiny(align__huber=0.5), str(tmp_path), defaults=today)
    claim(tmp_path, tiny(), defaults=today)
    assert compare(tiny(), str(tmp_path), defaults=today).news() == [] and "history" not in saved(tmp_path)["didr_jax"]


@pytest.mark.parametrize(
    "key, value",
    [
        ("log.every", 7),
        ("checkpoint.keep", 5),
        ("watch.patience", 2),
        ("profile.stage", "distill"),
        ("mesh.rules", ("kernel$=fsdp,-",)),
        ("distributed.coordinator", "host:1"),
        ("compile.topology", "v5e:4x4"),
        ("compiler.flags", "gpu"),
        ("distill.micro_batches", 4),
        ("unroll", True),
    ],
)
def test_what_does_not_define_what_is_trained_may_change_and_is_saved(key, value, tmp_path):
    claim(tmp_path, tiny())
    assert claim(tmp_path, tiny(**{key: value})) == []
    found = saved(tmp_path)
    for part in key.split("."):
        found = found[part]
    assert found == (list(value) if isinstance(value, tuple) else value)


@pytest.mark.parametrize(
    "key", ["data.cache", "data.batch_size", "network.remat", "network.vae_remat", "network.attention",
            "network.cross_attention", "network.vae_attention", "rewards.remat", "eval.seed", "align.micro_batches"],
)  # fmt: skip
def test_of_a_text_to_image_run_caches_memory_and_attention_may_change(key, tmp_path):
    from configs import sdxl
    from didr_jax.recipes.text_to_image.recipe import TextToImage

    claim(tmp_path, config := sdxl.get_config(), TextToImage.free)
    old = config.to_dict()
    for part in key.split("."):
        old = old[part]
    config.update_from_flattened_dict({key: 7 if isinstance(old, int) else "other"})
    assert claim(tmp_path, config, TextToImage.free) == []


def test_a_recipe_frees_sections_and_keys_of_its_own_and_no_others(tmp_path):
    claim(tmp_path, tiny(), ("eval", "network.width"))
    claim(tmp_path, tiny(eval__samples=100, network__width=17), ("eval", "network.width"))
    with pytest.raises(InputError, match=r"config: sample\.num \(1000 then, 3 now\)\."):
        compare(tiny(eval__samples=100, network__width=17, sample__num=3), str(tmp_path), ("eval",))
    with pytest.raises(InputError, match=r"config: eval\.samples \(100 then, 4000 now\); network\.width"):
        compare(tiny(), str(tmp_path))


# ------------------------------------------------------------------------------------- on purpose


def test_what_is_changed_on_purpose_is_recorded_with_its_step_and_both_values(tmp_path):
    claim(with_saves(tmp_path, pretrain=10), tiny())
    changed = tiny(pretrain__optimizer__lr=0.5, seed=1, log__every=9)
    (first, second) = claim(tmp_path, changed, allowed=("pretrain.optimizer", "seed"), step=10)
    assert first == "config.pretrain.optimizer.lr = 0.5 from step 10 of pretrain on (0.001 before)"
    about = saved(tmp_path)["didr_jax"]
    assert len(about.pop("run")) == 16 and about == {
        "layout": LAYOUT,
        "history": [
            {"stage": "pretrain", "step": 10, "key": "pretrain.optimizer.lr", "then": 0.001, "now": 0.5},
            {"stage": "pretrain", "step": 10, "key": "seed", "then": 0, "now": 1},
        ],
    }
    assert claim(tmp_path, changed, allowed=("pretrain.optimizer", "seed"), step=15) == [], "the same command goes on"
    claim(tmp_path, tiny(pretrain__optimizer__lr=0.25, seed=1), allowed=("pretrain",), step=17)
    assert [entry["now"] for entry in saved(tmp_path)["didr_jax"]["history"]] == [0.5, 1, 0.25]


def test_only_what_was_allowed_may_change(tmp_path):
    claim(with_saves(tmp_path, pretrain=10), tiny())
    with pytest.raises(InputError, match=r"config: seed \(0 then, 1 now\)\..*--allow_change=seed$"):
        compare(tiny(seed=1, align__beta=0.5), str(tmp_path), allowed=("align.beta",))
    with pytest.raises(InputError, match="--allow_change=align.betta: not a config key; did you mean align.beta"):
        compare(tiny(), str(tmp_path), allowed=("align.betta",))


def test_a_change_that_comes_after_the_end_is_refused(tmp_path):
    """It would stand in config.json as what was trained with."""
    claim(with_saves(tmp_path, pretrain=20, distill=10), tiny())
    with pytest.raises(InputError, match="--allow_change=pretrain.ema would change nothing: finished is pretrain at step 20"):
        compare(tiny(pretrain__ema=0.5), str(tmp_path), allowed=("pretrain.ema",))
    compare(tiny(distill__ema=0.5, network__spread=1.0), str(tmp_path), allowed=("distill.ema", "network"))
    with_saves(tmp_path, distill=20)
    with pytest.raises(InputError, match="give more steps as well"):
        compare(tiny(network__spread=1.0), str(tmp_path), allowed=("network",))
    compare(tiny(distill__ema=0.5, distill__steps=30), str(tmp_path), allowed=("distill",))


# ------------------------------------------------------------------------------------------- steps


def constant(**more):
    return tiny(distill__generator_optimizer__decay=False, **more)


def test_more_steps_are_free_where_nothing_depends_on_the_end(tmp_path):
    claim(with_saves(tmp_path, pretrain=20, distill=20), constant())
    lines = claim(tmp_path, constant(distill__steps=30), stage="distill", step=20)
    assert lines == ["config.distill.steps = 30 from step 20 of distill on (20 before)"]
    assert [change["key"] for change in saved(tmp_path)["didr_jax"]["history"]] == ["distill.steps"]


def test_steps_of_a_stage_that_has_not_begun_are_free(tmp_path):
    claim(with_saves(tmp_path, pretrain=20), tiny())
    claim(tmp_path, tiny(distill__steps=30))


def test_where_a_rate_decays_to_the_end_the_line_says_what_would_change(tmp_path):
    claim(with_saves(tmp_path, pretrain=20, distill=10), tiny(distill__generator_optimizer__warmup=0))
    longer = tiny(distill__generator_optimizer__warmup=0, distill__steps=40)
    says = r"generator_optimizer decays to the stage's end: at step 10 its rate is 0\.00015, and then 0\.000256\)"
    with pytest.raises(InputError, match=says) as refused:
        compare(longer, str(tmp_path))
    assert "ta_optimizer" not in str(refused.value)
    claim(tmp_path, longer, allowed=("distill.steps",), stage="distill", step=10)


def test_where_a_later_stage_has_begun_the_line_says_so(tmp_path):
    claim(with_saves(tmp_path, pretrain=20, distill=10), tiny())
    with pytest.raises(InputError, match="distill began from what it left at step 20 and is not redone"):
        compare(tiny(pretrain__steps=30), str(tmp_path))
    compare(tiny(pretrain__steps=30), str(tmp_path), allowed=("pretrain.steps",))


def test_fewer_steps_than_are_saved_are_refused_and_fewer_than_were_wanted_are_not(tmp_path):
    claim(with_saves(tmp_path, pretrain=20, distill=10), constant())
    compare(constant(distill__steps=15), str(tmp_path))
    for allowed in ((), ("distill.steps",)):
        with pytest.raises(InputError, match="distill.steps = 5, but .* is at step 10 of it already: give 10 or more"):
            compare(constant(distill__steps=5), str(tmp_path), allowed=allowed)


# --------------------------------------------------------------------------------------- unreadable


@pytest.mark.parametrize("content", ["", '{"seed": 0', "[1, 2]", '{"didr_jax": 2}'])
def test_a_config_that_cannot_be_read_is_named_and_left_as_it_is(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match="config.json cannot be read .*; put back a good copy, or use a new workdir") as refused:
        compare(tiny(), str(tmp_path))
    assert "\n" not in str(refused.value) and (tmp_path / "config.json").read_text() == content


def test_a_workdir_of_a_newer_version_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"didr_jax": {"layout": LAYOUT + 1}}))
    with pytest.raises(InputError, match=f"belongs to a newer didr_jax .workdir layout {LAYOUT + 1}, this version's is {LAYOUT}"):
        compare(tiny(), str(tmp_path))
