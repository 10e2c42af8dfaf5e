"""ImageReward's towers, head and checkpoint names against transformers' BLIP, which equals the original."""

import jax
import numpy as np
import pytest
import torch
import transformers as T

from didr_jax.models.blip import BertBlock, BertConfig, ImageEncoder, ImageReward, TextEncoder
from didr_jax.models.clip import VisionConfig
from didr_jax.types import InputError
from didr_jax.weights import blip as weights
from didr_jax.weights.engine import to_torch
from didr_jax.weights.files import write_safetensors
from tests.parity.oracle import assert_close, nchw, nhwc, randomise

VISION = VisionConfig(32, 3, 4, 48, patch=8, image_size=32, eps=1e-6)
TEXT = BertConfig(24, 2, 3, 40, vocab=99, positions=40)


def torch_blip(vision, text):
    """transformers' towers with ImageReward's settings."""
    return T.BlipForImageTextRetrieval(T.BlipConfig(
        vision_config=dict(
            hidden_size=vision.width, num_hidden_layers=vision.depth, num_attention_heads=vision.heads,
            intermediate_size=vision.hidden, patch_size=vision.patch, image_size=vision.image_size, layer_norm_eps=1e-6),
        text_config=dict(
            hidden_size=text.width, num_hidden_layers=text.depth, num_attention_heads=text.heads,
            intermediate_size=text.hidden, vocab_size=text.vocab, max_position_embeddings=text.positions,
            encoder_hidden_size=vision.width, layer_norm_eps=1e-12, bos_token_id=1, sep_token_id=3),
    ))  # fmt: skip


def torch_head(width):
    linear, drop = torch.nn.Linear, torch.nn.Dropout
    return torch.nn.Sequential(
        linear(width, 1024), drop(0.2), linear(1024, 128), drop(0.2), linear(128, 64), drop(0.1),
        linear(64, 16), linear(16, 1),
    )  # fmt: skip


def imagereward_names(blip, head):
    """The state dict under the names of `ImageReward.pt`, with the tensors that file holds and no one reads."""
    out = {f"mlp.layers.{k}": w for k, w in head.state_dict().items()}
    for name, w in blip.state_dict().items():
        if name.startswith("text_encoder."):
            out[f"blip.{name}"] = w
        elif name.startswith("vision_model."):
            for old, new in (
                ("encoder.layers", "blocks"), ("self_attn.qkv", "attn.qkv"), ("self_attn.projection", "attn.proj"),
                ("post_layernorm", "norm"), ("layer_norm", "norm"), ("embeddings.class_embedding", "cls_token"),
                ("embeddings.position_embedding", "pos_embed"), ("embeddings.patch_embedding", "patch_embed.proj"),
            ):  # fmt: skip
                name = name.replace(old, new)
            out[name.replace("vision_model", "blip.visual_encoder")] = w
    positions = torch.arange(blip.config.text_config.max_position_embeddings)[None]
    return out, {"blip.text_encoder.embeddings.position_ids": positions, "blip.vision_proj.weight": torch.zeros(2, 2),
                 "blip.text_proj.bias": torch.zeros(2)}  # fmt: skip


def torch_raw_reward(blip, head, pixels, ids, mask):
    image = blip.vision_model(pixels).last_hidden_state
    text = blip.text_encoder(
        input_ids=ids, attention_mask=mask, encoder_hidden_states=image,
        encoder_attention_mask=torch.ones(image.shape[:2], dtype=torch.long),
    )  # fmt: skip
    return head(text.last_hidden_state[:, 0])[:, 0]


def batch():
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 99, (2, 9)).astype(np.int32)
    mask = np.arange(9) < np.array([[9], [4]])
    return rng.normal(size=(2, 32, 32, 3)).astype(np.float32), ids, mask


@pytest.fixture(scope="module")
def reward(tmp_path_factory):
    blip, head = randomise(torch_blip(VISION, TEXT)), randomise(torch_head(TEXT.width), 1)
    path = tmp_path_factory.mktemp("imagereward") / "ImageReward.pt"
    names, unread = imagereward_names(blip, head)
    torch.save({**names, **unread}, path)
    return blip, head, weights.load_imagereward(path, VISION, TEXT).load()


def test_towers(reward):
    blip, _, params = reward
    pixels, ids, mask = batch()
    with torch.no_grad():
        image = blip.vision_model(nchw(pixels)).last_hidden_state
        text = blip.text_encoder(
            input_ids=torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(mask).long(),
            encoder_hidden_states=image).last_hidden_state  # fmt: skip
    assert_close(jax.jit(ImageEncoder(VISION).apply)({"params": params["vision"]}, pixels), image, what="vision")
    got = jax.jit(TextEncoder(TEXT).apply)({"params": params["text"]}, ids, mask, image.numpy())
    assert_close(got[mask], text.numpy()[mask], what="text")


def test_bert_blocks(reward):
    blip, _, params = reward
    rng = np.random.default_rng(3)
    x, image = (rng.normal(size=s).astype(np.float32) for s in ((2, 9, 24), (2, 17, 32)))
    _, _, mask = batch()
    additive = torch.from_numpy(np.where(mask, 0, -1e9).astype(np.float32))[:, None, None, :]
    block = jax.jit(BertBlock(TEXT).apply)
    for i, layer in enumerate(blip.text_encoder.encoder.layer):
        with torch.no_grad():
            want = layer(torch.from_numpy(x), torch.from_numpy(image), attention_mask=additive)
        ours = jax.tree.map(lambda w: w[i], params["text"]["layers"])
        assert_close(block({"params": ours}, x, mask, image)[0], want, what=f"layer {i}")


def test_reward_and_its_gradient(reward):
    blip, head, params = reward
    pixels, ids, mask = batch()
    x = nchw(pixels).requires_grad_()
    want = torch_raw_reward(blip, head, x, torch.from_numpy(ids).long(), torch.from_numpy(mask).long())
    want.sum().backward()
    for remat in ("none", "products", "blocks"):
        model = ImageReward(VISION, TEXT, remat=remat)
        score = lambda x: (lambda r: (r.sum(), r))(model.apply({"params": params}, x, ids, mask))
        grad, got = jax.jit(jax.grad(score, has_aux=True))(pixels)
        assert_close(got, want.detach(), what=f"remat={remat}")
        assert_close(grad, nhwc(x.grad), what=f"gradient, remat={remat}")


def test_padding_is_not_attended(reward):
    _, _, params = reward
    pixels, ids, mask = batch()
    score = jax.jit(lambda ids: ImageReward(VISION, TEXT).apply({"params": params}, pixels, ids, mask))
    np.testing.assert_array_equal(score(ids), score(np.where(mask, ids, 7)))


def test_round_trip_is_exact(reward, tmp_path):
    blip, head, params = reward
    tensors = to_torch(params, weights.IMAGEREWARD)
    for name, w in imagereward_names(blip, head)[0].items():
        np.testing.assert_array_equal(np.asarray(tensors[name]), w.numpy(), err_msg=name)
    write_safetensors(tmp_path / "ImageReward.safetensors", tensors)
    again = weights.load_imagereward(tmp_path / "ImageReward.safetensors", VISION, TEXT)
    jax.tree.map(np.testing.assert_array_equal, again.load(), params)


def test_full_architecture_has_the_published_names_and_shapes():
    vision, text = weights.VIT_L_16, BertConfig()
    with torch.device("meta"):
        want, _ = imagereward_names(torch_blip(vision, text), torch_head(text.width))
    got = to_torch(weights.imagereward_shapes(vision, text), weights.IMAGEREWARD)
    assert {k: tuple(t.shape) for k, t in got.items()} == {k: tuple(w.shape) for k, w in want.items()}


def test_wrong_checkpoint_is_refused(tmp_path):
    torch.save({"mlp.layers.0.weight": torch.zeros(1024, 768), "blip.other": torch.zeros(1)}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="missing.*unexpected: blip.other.*misshapen: mlp.layers.0.weight"):
        weights.load_imagereward(tmp_path / "x.pt", VISION, TEXT).check()
