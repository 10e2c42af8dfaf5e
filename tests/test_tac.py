"""Rewards against people's rankings: the published files, the figures, the refusals."""

import io
import json

import numpy as np
import pytest
import scipy.stats
from PIL import Image

from configs import sdxl
from didr_jax import recipes
from didr_jax.cli import check
from didr_jax.rewards import RewardMix, RewardModel
from didr_jax.rewards.people import Ranked, read_rankings
from didr_jax.rewards.tac import MIX, agreement, agreements, score_rankings, table
from didr_jax.text.tokens import utf8
from didr_jax.types import InputError, Weights

NONE = Weights.join({})
MEAN = lambda images: images.mean(axis=(1, 2))
RED = RewardModel("red", NONE, MEAN, lambda p, x, t: x[:, 0], utf8)
BLUE = RewardModel("blue", NONE, MEAN, lambda p, x, t: x[:, 2], utf8, centre=0.5, spread=2.0)
MIXED = RewardMix({"red": RED, "blue": BLUE}, {"red": 1.0, "blue": -2.0})
REDS, BLUES = [[10, 200, 90], [30, 20, 250]], [[5, 5, 90], [0, 100, 50]]


def judge_rewards(path, folder, mix, **more):
    return agreements(score_rankings(path, folder, mix, **more))


def picture(red, blue, size=(4, 4)):
    return Image.new("RGB", size, (red, 0, blue))


@pytest.fixture
def folder(tmp_path):
    """Three pictures of each of two prompts, of two sizes."""
    for p in range(2):
        for i in range(3):
            picture(REDS[p][i], BLUES[p][i], (4, 4 + p)).save(tmp_path / f"{p}{i}.png")
    return tmp_path


RANKS = [[3, 1, 2], [2, 2, 1]]
ROWS = {
    "ImageRewardDB": [
        {"id": str(p), "prompt": f"prompt {p}", "generations": [f"{p}{i}.png" for i in range(3)], "ranking": RANKS[p]}
        for p in range(2)
    ],
    "HPDv2": [
        {"prompt": f"prompt {p}", "image_path": [f"{p}{i}.png" for i in range(3)], "rank": RANKS[p], "raw_annotations": []}
        for p in range(2)
    ],
}


@pytest.mark.parametrize("kind", ROWS)
def test_files_of_ranked_pictures_are_read_and_judged(folder, kind):
    (folder / "test.json").write_text(json.dumps(ROWS[kind]))
    read = read_rankings(folder / "test.json")
    assert [(each.prompt, each.pictures) for each in read] == [
        (f"prompt {p}", tuple(f"{p}{i}.png" for i in range(3))) for p in range(2)
    ]
    found = judge_rewards(folder / "test.json", folder, MIXED, batch_size=2)
    wanted = [scipy.stats.kendalltau(np.negative(ranks), reds).statistic for ranks, reds in zip(RANKS, REDS, strict=True)]
    assert found["red"].tau == pytest.approx(np.mean(wanted)) and found["red"].prompts == 2
    assert (found["red"].pairs, found["red"].accuracy) == (5, 1.0), "one pair of five and a tied one"
    assert set(found) == {"red", "blue", MIX}


def test_the_mix_is_weighed_in_its_own_units(folder):
    (folder / "test.json").write_text(json.dumps(ROWS["HPDv2"]))
    total = [np.array(r) / 127.5 - 2 * (np.array(b) / 127.5 - 1.5) / 2 for r, b in zip(REDS, BLUES, strict=True)]
    wanted = np.mean([scipy.stats.kendalltau(np.negative(ranks), t).statistic for ranks, t in zip(RANKS, total, strict=True)])
    assert judge_rewards(folder / "test.json", folder, MIXED)[MIX].tau == pytest.approx(wanted)


def test_pick_a_pic_brings_its_pictures_and_its_ties(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def held(red):
        out = io.BytesIO()
        picture(red, 0).save(out, "PNG")
        return out.getvalue()

    labels = [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5)]
    rows = [{"caption": "a", "jpg_0": held(200), "jpg_1": held(20), "label_0": a, "label_1": b, "user_id": 7} for a, b in labels]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "test.parquet")
    found = judge_rewards(tmp_path / "test.parquet", "", RewardMix({"red": RED}, {"red": 1.0}))
    assert set(found) == {"red"}, "a mix of one is that one"
    assert (found["red"].tau, found["red"].prompts, found["red"].undefined) == (0.0, 2, 1)
    assert (found["red"].accuracy, found["red"].pairs) == (0.5, 2)


def rankings_of(n, noise, seed=0):
    """Rankings of four pictures by a reward with noise, and the reward."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(n, 4))
    return [Ranked("", ("",) * 4, each) for each in scores + noise * rng.normal(size=(n, 4))], scores


def test_the_interval_holds_the_mean_and_shrinks_with_the_root_of_the_prompts():
    wide, narrow = (agreement(*rankings_of(n, 1.0)) for n in (50, 800))
    for each in (wide, narrow):
        assert each.low < each.tau < each.high
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(4, rel=0.3)
    assert (
        agreement(*rankings_of(20, 0.0)).tau == 1
        and agreement(*rankings_of(800, 1e6)).low < 0 < agreement(*rankings_of(800, 1e6)).high
    )


def test_the_table_has_a_line_a_reward():
    lines = table({"red": agreement(*rankings_of(20, 0.0))}).splitlines()
    assert lines[1].split() == ["red", "1.0000", "1.0000", "to", "1.0000", "20", "1.0000", "120"]


@pytest.mark.parametrize("text, words", [
    ("[", "cannot read"),
    ("[]", "ranks nothing"),
    ('[{"prompt": "a", "images": []}]', "row 1 has prompt, images; it needs"),
    ('[{"prompt": "a", "generations": ["x", "y"], "ranking": [1]}]', "2 pictures and 1 ranks"),
    ('[{"prompt": "a", "generations": ["x.png", "y.png"], "ranking": [1, 2]}]', "2 pictures are not in"),
    ('[{"prompt": "a", "generations": ["00.png", "00.png"], "ranking": [1, 2]}]', "in none of 1 prompts"),
])  # fmt: skip
def test_what_cannot_be_used_is_one_line(folder, text, words):
    (folder / "test.json").write_text(text)
    with pytest.raises(InputError, match=words) as refused:
        judge_rewards(folder / "test.json", folder, MIXED)
    assert "\n" not in str(refused.value)


def test_scores_that_are_not_finite_are_counted():
    rankings, scores = rankings_of(3, 1.0)
    scores[1, 2] = np.nan
    with pytest.raises(InputError, match="1 scores are not finite"):
        agreement(rankings, scores)


def test_the_mode_asks_for_rewards_and_rankings_and_for_nothing_else(tmp_path):
    config = sdxl.get_config()
    with pytest.raises(InputError, match="--mode=tac has no reward"):
        check(recipes.build(config), config, "tac")
    config.rewards.custom = "statistics:mean"
    with pytest.raises(InputError, match="config.tac.rankings is empty"):
        check(recipes.build(config), config, "tac")
    config.tac.rankings = str(tmp_path / "test.json")
    with pytest.raises(InputError, match="cannot read .*test.json"):
        check(recipes.build(config), config, "tac")
    rows = [{"prompt": "a cat", "generations": ["a.png", "b.png"], "ranking": [1, 2]}]
    (tmp_path / "test.json").write_text(json.dumps(rows))
    with pytest.raises(InputError, match="2 pictures are not in"):
        check(recipes.build(config), config, "tac")
    config.tac.images = str(tmp_path)
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    check(recipes.build(config), config, "tac")
