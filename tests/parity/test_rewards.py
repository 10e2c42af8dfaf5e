"""Complete rewards, image file and prompt to score, against torch.

Two oracles.  The official one: PIL's 8-bit resize (HPSv2 alone: torch's), the tower, the score.  And a
differentiable one, whose resize is torch's antialiased bicubic in float, for exact scores and gradients.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers as T
from PIL import Image
from sklearn.datasets import load_sample_image
from torch.nn import functional as F
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from didr_jax import rewards
from didr_jax.models.blip import BertConfig
from didr_jax.models.clip import VisionConfig, architecture
from didr_jax.rewards.imagereward import MEAN, STD
from didr_jax.rewards.preprocess import CLIP_MEAN, CLIP_STD
from didr_jax.rewards.scoring import score_folder
from didr_jax.weights.clip import hf_text_config, hf_vision_config
from tests.parity import test_blip
from tests.parity.oracle import assert_close, randomise
from tests.parity.test_clip import open_clip_names
from tests.parity.vocabularies import BERT_WORDS, CLIP_BOS, CLIP_EOS, CLIP_VOCAB, save_bert_tokenizer, save_clip_tokenizer

SIZE = 32
PROMPTS = ["A photo of the cat", "a dog on the mat, red."]
VISION = VisionConfig(32, 2, 4, 48, patch=8, image_size=SIZE, eps=1e-6)
TEXT = BertConfig(24, 2, 3, 40, vocab=len(BERT_WORDS), positions=40)


def resize(x, height, width):
    """Float [b, 3, h, w] in [0, 1]; clamped after each pass, as 8-bit images are."""
    for size in ((x.shape[2], width), (height, width)):
        x = F.interpolate(x, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    return x


def standardise(x):
    return (x - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]


def crop(x, half=round):
    """Float oracle of CLIP's; `half` of an odd margin as torchvision rounds it, or as transformers does."""
    h, w = x.shape[1:3]
    height, width = (int(SIZE * n / min(h, w)) for n in (h, w))
    x = resize(x.permute(0, 3, 1, 2) / 2 + 0.5, height, width)
    top, left = int(half((height - SIZE) / 2)), int(half((width - SIZE) / 2))
    return standardise(x[:, :, top : top + SIZE, left : left + SIZE])


def pad(x):
    """HPSv2's: [b, h, w, 3] in [-1, 1] -> [b, 3, SIZE, SIZE]; it resizes float tensors, so nothing is clipped."""
    h, w = x.shape[1:3]
    height, width = (round(n * (SIZE / max(h, w))) for n in (h, w))
    x = F.interpolate(x.permute(0, 3, 1, 2) / 2 + 0.5, size=(height, width), mode="bicubic", antialias=True)
    top, left = (SIZE - height) // 2, (SIZE - width) // 2
    return standardise(F.pad(x, (left, SIZE - width - left, top, SIZE - height - top)))


def file_pad(image):
    return pad(torch.from_numpy(np.asarray(image) / np.float32(127.5) - 1)[None])[0]


def pil_crop(image):
    """torchvision's Resize and CenterCrop on PIL images."""
    width, height = (int(SIZE * n / min(image.size)) for n in image.size)
    left, top = round((width - SIZE) / 2), round((height - SIZE) / 2)
    small = image.resize((width, height), Image.BICUBIC).crop((left, top, left + SIZE, top + SIZE))
    return standardise(torch.from_numpy(np.asarray(small) / np.float32(255)).permute(2, 0, 1))


def squash(x):
    """open_clip's "squash": both sides to the tower's."""
    return standardise(resize(x.permute(0, 3, 1, 2) / 2 + 0.5, SIZE, SIZE))


def pil_squash(image):
    small = np.asarray(image.resize((SIZE, SIZE), Image.BICUBIC)) / np.float32(255)
    return standardise(torch.from_numpy(small).permute(2, 0, 1))


def processor_crop(image):
    sizes = dict(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    return torch.from_numpy(CLIPImageProcessorPil(**sizes)(image, return_tensors="np")["pixel_values"][0])


class ClipOracle:
    """A random CLIP, saved as a folder with its tokenizer and as an open_clip file."""

    def __init__(self, folder, act="gelu"):
        tiny = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, hidden_act=act)
        config = T.CLIPConfig(
            text_config=dict(tiny, vocab_size=CLIP_VOCAB, bos_token_id=CLIP_BOS, eos_token_id=CLIP_EOS, pad_token_id=0),
            vision_config=dict(tiny, image_size=SIZE, patch_size=8), projection_dim=16,
        )  # fmt: skip
        self.model, self.folder, self.file = randomise(T.CLIPModel(config)), folder, folder / "open_clip.pt"
        self.model.save_pretrained(folder)
        save_clip_tokenizer(folder)
        state = {k: w.clone() for k, w in open_clip_names(self.model.state_dict()).items()}
        torch.save({"state_dict": state}, self.file)
        self.configs = hf_vision_config(config.vision_config, 16), hf_text_config(config.text_config, 16)
        self.tokenizer = T.CLIPTokenizer.from_pretrained(folder)

    def image(self, pixels):
        return F.normalize(self.model.visual_projection(self.model.vision_model(pixels).pooler_output), dim=-1)

    def cosine(self, pixels, prompts):
        inputs = self.tokenizer(prompts, padding=True, truncation=True, max_length=77, return_tensors="pt")
        text = self.model.text_projection(self.model.text_model(**inputs).pooler_output)
        return (self.image(pixels) * F.normalize(text, dim=-1)).sum(-1)


class BlipOracle:
    def __init__(self, folder):
        self.blip, self.head = randomise(test_blip.torch_blip(VISION, TEXT)), randomise(test_blip.torch_head(24), 1)
        self.file = folder / "ImageReward.pt"
        torch.save(test_blip.imagereward_names(self.blip, self.head)[0], self.file)
        self.tokens = save_bert_tokenizer(folder)
        self.tokenizer = T.BertTokenizer.from_pretrained(folder)

    def score(self, pixels, prompts):
        t = self.tokenizer(prompts, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
        raw = test_blip.torch_raw_reward(self.blip, self.head, pixels, t.input_ids, t.attention_mask)
        return (raw - MEAN) / STD


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """name -> (our reward, torch score of (pixels, prompts), float preprocessing, official preprocessing of a file)."""
    clip, blip = ClipOracle(tmp_path_factory.mktemp("clip")), BlipOracle(tmp_path_factory.mktemp("blip"))
    dfn = ClipOracle(tmp_path_factory.mktemp("dfn"), act="quick_gelu")
    head = randomise(test_blip.torch_head(16), 2)
    head_file = tmp_path_factory.mktemp("aesthetic") / "linear.pth"
    torch.save({f"layers.{k}": w for k, w in head.state_dict().items()}, head_file)
    load = lambda name, **options: rewards.load(name, options)
    return {
        "clip": clip,
        "dfn_files": dfn,
        "hps": (load("hps", weights=clip.file, tokenizer=clip.folder, arch=clip.configs),
                lambda x, p: 100 * clip.cosine(x, p), pad, file_pad),
        "pickscore": (load("pickscore", weights=clip.folder),
                      lambda x, p: clip.model.logit_scale.exp() * clip.cosine(x, p),
                      lambda x: crop(x, half=int), processor_crop),
        "clipscore": (load("clipscore", weights=clip.folder), lambda x, p: 100 * clip.cosine(x, p), crop, pil_crop),
        "dfn": (load("dfn", weights=dfn.file, tokenizer=dfn.folder, arch=dfn.configs),
                lambda x, p: 100 * dfn.cosine(x, p), squash, pil_squash),
        "imagereward": (load("imagereward", weights=blip.file, tokenizer=blip.tokens, vision=VISION, text=TEXT),
                        blip.score, crop, pil_crop),
        "aesthetic": (load("aesthetic", weights=head_file, clip=clip.folder),
                      lambda x, p: head(clip.image(x))[:, 0], crop, pil_crop),
    }  # fmt: skip


NAMES = ("hps", "pickscore", "clipscore", "dfn", "imagereward", "aesthetic")


def test_dfn_is_the_same_from_either_kind_of_file(cases):
    dfn = cases["dfn_files"]
    both = [rewards.load("dfn", {"weights": path, "tokenizer": dfn.folder} | arch).weights.load()
            for path, arch in ((dfn.folder, {}), (dfn.file, {"arch": dfn.configs}))]  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, *both)
    assert {c.act for c in dfn.configs} == {c.act for c in architecture("ViT-H-14-quickgelu")} == {"quick_gelu"}


@pytest.mark.parametrize("name", NAMES)
def test_score_and_gradient(cases, name):
    """Scores of two landscape photographs, their gradients, and gradients where there is nothing to see.

    The photographs lose 1 % of contrast: in areas of pure white torch's clamp lets rounding decide.
    """
    reward, oracle, preprocess, _ = cases[name]
    photos = np.stack([load_sample_image(f"{n}.jpg")[:120:2, :178:2] for n in ("china", "flower")])
    photos = (photos / 127.5 - 1).astype(np.float32) * np.float32(0.99)
    x = torch.from_numpy(photos).requires_grad_()
    want = oracle(preprocess(x), PROMPTS)
    want.sum().backward()

    tokens, params = reward.tokenize(PROMPTS), reward.weights.load()
    score = lambda x: (lambda r: (r.sum(), r))(reward.apply(params, x, tokens))
    gradient = jax.jit(jax.grad(score, has_aux=True))
    grad, got = gradient(photos)
    assert got.dtype == jnp.float32
    assert_close(got, want.detach(), what="score")
    assert_close(grad, x.grad, rel=1e-4, what="gradient")

    for value in (-1, 1, 3):  # black, white, saturated
        grad, got = gradient(np.full_like(photos, value))
        assert np.isfinite(got).all() and np.isfinite(grad).all()
        assert np.asarray(grad).any() == (abs(value) <= 1)


def test_half_precision_is_close_and_keeps_the_logit_scale(cases):
    full, clip = cases["pickscore"][0], cases["clip"]
    half = rewards.load("pickscore", dict(weights=clip.folder, dtype="bfloat16", param_dtype="bfloat16", remat="blocks"))
    params, rounded = full.weights.load(), half.weights.load()
    assert rounded["logit_scale"].dtype == jnp.float32
    assert rounded["vision"]["pos_embed"].dtype == jnp.bfloat16
    images = jnp.asarray(load_sample_image("china.jpg")[None, :90, :60] / np.float32(127.5) - 1)
    score = lambda r, params: jax.jit(jax.value_and_grad(lambda x: r.apply(params, x, r.tokenize(PROMPTS[:1])).sum()))
    (want, _), (got, grad) = score(full, params)(images), score(half, rounded)(images)
    assert got.dtype == grad.dtype == jnp.float32 and np.isfinite(grad).all()
    assert abs(got - want) < 0.03 * float(jnp.exp(params["logit_scale"]))


def test_folder_of_images_scores_as_officially(cases, tmp_path):
    """Image files of two shapes: within what PIL's 8-bit rounding does to each reward."""
    china, flower = (Image.fromarray(load_sample_image(f"{n}.jpg")) for n in ("china", "flower"))
    portrait = flower.crop((0, 0, 300, 427))
    images = {"a.png": china, "b.png": portrait, "sub/c.png": flower}
    rows = [{"file_name": name, "prompt": PROMPTS[i % 2]} for i, name in enumerate(images)]
    (tmp_path / "sub").mkdir()
    for name, image in images.items():
        image.save(tmp_path / name)
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    got = score_folder(tmp_path, tmp_path / "prompts.jsonl", [cases[name][0] for name in NAMES], batch_size=2)
    for row, expected in zip(got, rows, strict=False):
        assert (row["image"], row["prompt"]) == (expected["file_name"], expected["prompt"])
        for name in NAMES:
            _, oracle, _, pil = cases[name]
            with torch.no_grad():
                want = float(oracle(pil(images[row["image"]])[None], [row["prompt"]]))
            assert abs(row[name] - want) <= 1e-2 * max(1, abs(want)), (name, row["image"], row[name], want)
