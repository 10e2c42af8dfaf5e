"""CLIP metrics on a tiny random CLIP: features, scores and prefixes against transformers."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
import transformers as T

from didr_jax.evaluation.clip_features import MODELS, clip_pictures
from didr_jax.evaluation.clip_score import ClipScorer
from didr_jax.evaluation.cmmd import cmmd
from didr_jax.evaluation.collect import Options, statistics_of
from didr_jax.evaluation.protocols import CLIP_SCORE, CMMD, DIVERSITY
from didr_jax.types import InputError
from didr_jax.weights.clip import clip_shapes
from tests.parity.oracle import assert_close, randomise
from tests.parity.vocabularies import CLIP_BOS, CLIP_EOS, CLIP_VOCAB, save_clip_tokenizer

TINY = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, hidden_act="quick_gelu")
STEPS = (("short_side", 28), ("centre", 28))
PROMPTS = ["a cat of cats", "cat", "dog"]


def tiny(row, **fields):
    return dataclasses.replace(row, network="tiny", steps=STEPS, **fields)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A transformers CLIP and its folder, with a tokenizer."""
    config = T.CLIPConfig(
        text_config=dict(TINY, vocab_size=CLIP_VOCAB, max_position_embeddings=77, bos_token_id=CLIP_BOS, eos_token_id=CLIP_EOS),
        vision_config=dict(TINY, image_size=28, patch_size=7),
        projection_dim=16,
    )
    model, folder = randomise(T.CLIPModel(config)), tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    save_clip_tokenizer(folder)
    return model, folder


@pytest.fixture(scope="module")
def pictures():
    """Noise, the last one bright.  Even margins: of an odd one transformers cuts off the half pixel."""
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((40, 60), (28, 28), (80, 40))]
    return [*noise[:2], 255 - noise[2] // 4]


def want(model, folder, pictures, prompts):
    """Embeddings of unit length by transformers and its own PIL processor."""
    processor = T.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    pixels = processor(images=pictures, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    tokens = T.CLIPTokenizer.from_pretrained(folder)(
        prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        out = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=pixels)
    return out.image_embeds.numpy(), out.text_embeds.numpy()


def test_features_equal_transformers(clip, pictures):
    network = clip_pictures(clip[1], tiny(DIVERSITY["clip-l-14"]))
    got = statistics_of(network, pictures, options=Options(batch_size=2)).features
    assert_close(got, want(*clip, pictures, PROMPTS)[0])
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, rtol=1e-6)


def test_cmmd_of_measured_features(clip, pictures):
    row = tiny(CMMD["cmmd"], name="tiny")
    network = clip_pictures(clip[1], row)
    a, b = statistics_of(network, pictures), statistics_of(network, [255 - p for p in pictures])
    assert cmmd(a, b, row).value > 1e-3 and "[tiny; 3 real; 3 generated; x1000]" in str(cmmd(a, b, row))


@pytest.mark.parametrize("floor", [False, True])
def test_scores_equal_transformers(floor, clip, pictures):
    row = tiny(CLIP_SCORE["dmd2"], prefix="A photo depicts ", factor=2.5, floor=floor)
    measured, scores = ClipScorer(clip[1], row)(pictures, PROMPTS, Options(batch_size=2))
    image, text = want(*clip, pictures, [row.prefix + p for p in PROMPTS])
    cosine = np.sum(image * text, axis=1)
    assert cosine.min() < 0 < cosine.max()
    np.testing.assert_allclose(scores, 2.5 * (np.maximum(cosine, 0) if floor else cosine), rtol=2e-5, atol=2e-5)
    assert measured.value == pytest.approx(scores.mean()) and measured.spread == pytest.approx(scores.std())
    assert str(measured).endswith("[dmd2; 3 pictures; prefix 'A photo depicts '; x2.5]")


@pytest.mark.parametrize("prompt", ["cat", "a cat of cats " * 20], ids=["short", "truncated"])
def test_the_prefix_is_what_dmd2_puts_before_the_tokens(prompt, clip):
    """Its evaluator joins token rows: start, prefix, prompt, cut to 77 with the end token last."""
    tokens = T.CLIPTokenizer.from_pretrained(clip[1])
    plain = tokens([prompt], padding="max_length", max_length=77, truncation=True)["input_ids"][0]
    prefix = tokens("A photo depicts ")["input_ids"][1:-1]
    joined = [plain[0], *prefix, *plain[1:]][:77]
    joined[76] = CLIP_EOS
    got = ClipScorer(clip[1], tiny(CLIP_SCORE["dmd2"])).tokenize([prompt])["ids"][0]
    np.testing.assert_array_equal(got, joined)


def test_prompts_and_pictures_must_pair(clip, pictures):
    with pytest.raises(InputError, match="3 pictures and 2 prompts"):
        ClipScorer(clip[1], tiny(CLIP_SCORE["clip-l-14"]))(pictures, PROMPTS[:2])


def test_another_clip_than_the_protocols_is_refused(clip):
    with pytest.raises(InputError, match="is no ViT-L-14-336-quickgelu, which protocol 'cmmd' takes"):
        clip_pictures(clip[1], CMMD["cmmd"])


@pytest.mark.parametrize(
    "name, millions",
    [("ViT-B-32-quickgelu", 151.277313), ("ViT-L-14-336-quickgelu", 427.944193), ("ViT-g-14", 1366.68)],
)
def test_architectures_have_the_published_sizes(name, millions):
    """OpenAI's checkpoints, to the parameter; open_clip's model profile, as far as it says."""
    count = sum(int(np.prod(s.shape)) for s in jax.tree.leaves(clip_shapes(*MODELS[name])))
    assert count / 1e6 == pytest.approx(millions, abs=0.005 if name == "ViT-g-14" else 1e-9)


def test_every_protocol_ends_at_its_networks_size():
    rows = [*CMMD.values(), *CLIP_SCORE.values(), *DIVERSITY.values()]
    assert [row.steps[-1][-1] for row in rows] == [MODELS[row.network][0].image_size for row in rows]
