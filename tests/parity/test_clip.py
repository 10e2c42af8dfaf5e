"""CLIP's towers and weight tables against transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers as T

from didr_jax.models.clip import ARCHITECTURES, TextTower, VisionTower
from didr_jax.models.encoder import Block
from didr_jax.types import InputError
from didr_jax.weights import clip as weights
from didr_jax.weights.engine import to_torch
from didr_jax.weights.files import read_tensors, write_safetensors
from tests.parity.oracle import assert_close, nchw, nhwc, randomise

BOS, EOS = 97, 98
TINY = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)


def torch_config(act="gelu", eos=EOS):
    return T.CLIPConfig(
        text_config=dict(TINY, vocab_size=99, max_position_embeddings=20, bos_token_id=BOS, eos_token_id=eos,
                         pad_token_id=0, hidden_act=act, projection_dim=16),
        vision_config=dict(TINY, num_hidden_layers=2, image_size=28, patch_size=7, hidden_act=act),
        projection_dim=16,
    )  # fmt: skip


def prompts():
    """Ids of three prompts; the end is followed by the end again (OpenAI's padding), by zeros, or by nothing."""
    ids = np.random.default_rng(0).integers(1, BOS, (3, 20)).astype(np.int32)
    ids[:, 0] = BOS
    ids[0, 5:] = EOS
    ids[1, 9], ids[1, 10:] = EOS, 0
    ids[2, 19] = EOS
    return ids


@pytest.fixture(scope="module", params=["gelu", "quick_gelu"])
def clip(request, tmp_path_factory):
    model = randomise(T.CLIPModel(torch_config(request.param)))
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    configs, promised = weights.load_clip(folder)
    return model, folder, configs, promised.load()


def pixels():
    return np.random.default_rng(1).normal(size=(2, 28, 28, 3)).astype(np.float32)


def test_text_tower(clip):
    model, _, (_, config), params = clip
    with torch.no_grad():
        want = model.text_model(torch.from_numpy(prompts()).long(), output_hidden_states=True)
        embedding = model.text_projection(want.pooler_output)
    got = jax.jit(TextTower(config).apply)({"params": params["text"]}, prompts())
    assert_close(got.penultimate, want.hidden_states[-2], what="penultimate")
    assert_close(got.last, want.last_hidden_state, what="last")
    assert_close(got.pooled, want.pooler_output, what="pooled")
    assert_close(got.embedding, embedding, what="embedding")


def test_blocks(clip):
    model, _, (vision, text), params = clip
    with torch.no_grad():
        for torch_tower, tower, inputs, causal in (
            (model.text_model, params["text"], torch.from_numpy(prompts()).long(), True),
            (model.vision_model, params["vision"], nchw(pixels()), False),
        ):
            states = [x.numpy() for x in torch_tower(inputs, output_hidden_states=True).hidden_states]
            block = Block(text.heads, text.hidden, text.act, text.eps, causal)
            apply = jax.jit(lambda p, x: block.apply({"params": p}, (x, x))[0][0])
            for i in range(len(states) - 2 if causal else len(states) - 1):
                layer = jax.tree.map(lambda w: w[i], tower["encoder"]["layers"])
                assert_close(apply(layer, states[i]), states[i + 1], what=f"block {i}, causal={causal}")


def test_vision_tower_and_its_gradient(clip):
    model, _, (config, _), params = clip
    cotangent = np.random.default_rng(2).normal(size=(2, 16)).astype(np.float32)
    x = nchw(pixels()).requires_grad_()
    want = model.visual_projection(model.vision_model(x).pooler_output)
    (want * torch.from_numpy(cotangent)).sum().backward()
    for remat in ("none", "products", "blocks"):
        tower = VisionTower(config, remat=remat)
        embed = lambda x: tower.apply({"params": params["vision"]}, x)
        score = lambda x: (lambda y: (jnp.sum(y * cotangent), y))(embed(x))
        grad, got = jax.jit(jax.grad(score, has_aux=True))(pixels())
        assert_close(got, want.detach(), what=f"remat={remat}")
        assert_close(grad, nhwc(x.grad), what=f"gradient, remat={remat}")


def test_vision_tower_refuses_another_size(clip):
    _, _, (config, _), params = clip
    with pytest.raises(InputError, match="28, 28, 3"):
        VisionTower(config).apply({"params": params["vision"]}, jnp.zeros((1, 35, 28, 3)))


def test_legacy_eos_pools_at_the_largest_id(tmp_path):
    model = randomise(T.CLIPModel(torch_config(eos=2)))
    model.save_pretrained(tmp_path)
    (_, config), promised = weights.load_clip(tmp_path)
    params = promised.load()
    assert config.eos is None
    with torch.no_grad():
        want = model.text_model(torch.from_numpy(prompts()).long()).pooler_output
    assert_close(TextTower(config).apply({"params": params["text"]}, prompts()).pooled, want)


@pytest.mark.parametrize("kind", [T.CLIPTextModel, T.CLIPTextModelWithProjection])
def test_pipeline_text_encoders(kind, tmp_path):
    model = randomise(kind(torch_config().text_config))
    prefix = "" if kind is T.CLIPTextModel else "text_model."
    model.save_pretrained(tmp_path)
    old = {f"{prefix}embeddings.position_ids": np.arange(20)[None]}  # as checkpoints before transformers 4.31 have
    tensors = {name: np.array(w) for name, w in read_tensors(tmp_path).items()}
    write_safetensors(tmp_path / "model.safetensors", {**tensors, **old})
    config, promised = weights.load_text(tmp_path)
    got = TextTower(config).apply({"params": promised.load()}, prompts())
    with torch.no_grad():
        want = model(torch.from_numpy(prompts()).long(), output_hidden_states=True)
    assert_close(got.penultimate, want.hidden_states[-2])
    if kind is T.CLIPTextModel:
        assert_close(got.embedding, want.pooler_output)
    else:
        assert_close(got.embedding, want.text_embeds)


def open_clip_names(tensors):
    """A transformers CLIPModel state dict under open_clip's names; works on arrays and on torch tensors."""
    out = {"logit_scale": tensors["logit_scale"]}
    for tower, to in (("vision_model.", "visual."), ("text_model.", "")):
        for name, w in tensors.items():
            if not name.startswith(tower) or ".k_proj." in name or ".v_proj." in name:
                continue
            if ".q_proj." in name:
                kind = name.rpartition(".")[2]
                qkv = [torch.as_tensor(tensors[name.replace("q_proj", f"{p}_proj")]) for p in "qkv"]
                name, w = name.replace(f"q_proj.{kind}", f"in_proj_{kind}"), torch.cat(qkv)
            name = name.removeprefix(tower)
            for old, new in (
                ("encoder.layers", "transformer.resblocks"), ("self_attn", "attn"), ("layer_norm", "ln_"),
                ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"), ("final_layer_norm", "ln_final"),
                ("final_ln_", "ln_final"), ("pre_layrnorm", "ln_pre"), ("post_layernorm", "ln_post"),
                ("embeddings.position_embedding.weight", "positional_embedding"),
                ("embeddings.patch_embedding", "conv1"), ("embeddings.", ""),
            ):  # fmt: skip
                name = name.replace(old, new)
            out[to + name] = w
    out["visual.proj"] = tensors["visual_projection.weight"].T
    out["text_projection"] = tensors["text_projection.weight"].T
    return out


@pytest.mark.parametrize("wrap", [lambda s: {"state_dict": s}, lambda s: {f"module.{k}": w for k, w in s.items()}])
def test_open_clip_file(clip, tmp_path, wrap):
    model, _, configs, params = clip
    state = {k: w.detach().clone() for k, w in open_clip_names(model.state_dict()).items()}
    torch.save(wrap(state), tmp_path / "HPS.pt")
    _, got = weights.load_clip(tmp_path / "HPS.pt", configs)
    jax.tree.map(np.testing.assert_array_equal, got.load(), params)
    vision, tower = weights.load_vision(tmp_path / "HPS.pt", configs)
    assert vision == configs[0]
    jax.tree.map(np.testing.assert_array_equal, tower.load(), params["vision"])


def test_round_trip_is_exact(clip, tmp_path):
    _, folder, configs, params = clip
    jax.tree.map(np.testing.assert_array_equal, weights.load_vision(folder)[1].load(), params["vision"])
    for table in (weights.HF, weights.OPEN_CLIP):
        write_safetensors(tmp_path / "model.safetensors", to_torch(params, table))
        _, again = weights.load_clip(tmp_path / "model.safetensors", configs)
        jax.tree.map(np.testing.assert_array_equal, again.load(), params)
    original = read_tensors(folder)
    write_safetensors(tmp_path / "model.safetensors", to_torch(params, weights.HF))
    again = read_tensors(tmp_path)
    assert set(again) == set(original)
    for name, w in original.items():
        np.testing.assert_array_equal(again[name], w, err_msg=name)


def test_what_is_not_asked_for_is_not_read(clip, tmp_path):
    """Configurations come with the promise; the tensors, and whether they fit, from the file that is there later."""
    _, _, configs, params = clip
    write_safetensors(path := tmp_path / "model.safetensors", to_torch(params, weights.HF))
    _, promised = weights.load_clip(path, configs)
    doubled = {name: 2 * np.asarray(w) for name, w in to_torch(params, weights.HF).items()}
    write_safetensors(path, doubled)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, 2 * b), promised.load(), params)
    write_safetensors(path, {"logit_scale": np.zeros(2, np.float32)})
    with pytest.raises(InputError, match=f"^{path}: .* missing.*1 misshapen: logit_scale"):
        promised.check()


def test_a_plan_knows_the_shapes_of_published_towers():
    for load in (weights.load_clip, weights.load_vision):
        _, promised = load(None, "ViT-L-14-quickgelu", dtype=jnp.bfloat16)
        assert jnp.dtype(jnp.bfloat16) in {leaf.dtype for leaf in jax.tree.leaves(promised.shapes)}
        with pytest.raises(LookupError):
            promised.load()


def meta_clip(name):
    vision, text = ARCHITECTURES[name]
    tower = lambda c: dict(hidden_size=c.width, intermediate_size=c.hidden, num_hidden_layers=c.depth,
                           num_attention_heads=c.heads, hidden_act=c.act)  # fmt: skip
    with torch.device("meta"):
        return T.CLIPModel(T.CLIPConfig(
            text_config=tower(text), vision_config=dict(tower(vision), patch_size=vision.patch),
            projection_dim=vision.embed,
        ))  # fmt: skip


@pytest.mark.parametrize("name, count", [("ViT-L-14-quickgelu", 427_616_513), ("ViT-H-14", 986_109_441)])
def test_full_architectures_have_the_published_names_and_shapes(name, count):
    """Parameter counts: open_clip's model profile."""
    shapes = weights.clip_shapes(*ARCHITECTURES[name])
    state = meta_clip(name).state_dict()
    assert sum(np.prod(s.shape, dtype=int) for s in jax.tree.leaves(shapes)) == count
    for table, want in ((weights.HF, state), (weights.OPEN_CLIP, open_clip_names(state))):
        got = {k: tuple(t.shape) for k, t in to_torch(shapes, table).items()}
        assert got == {k: tuple(w.shape) for k, w in want.items()}


def test_sdxl_text_encoders_have_the_published_sizes():
    count = lambda tree: sum(np.prod(s.shape, dtype=int) for s in jax.tree.leaves(tree))
    large, big = ARCHITECTURES["ViT-L-14-quickgelu"][1], ARCHITECTURES["ViT-bigG-14"][1]
    assert count(weights.text_shapes(large)) - large.width * large.embed == 123_060_480
    assert count(weights.text_shapes(big)) == 694_659_840


def test_unsupported_configs_are_refused_by_name(tmp_path):
    config = torch_config("silu")
    with pytest.raises(InputError, match="hidden_act='silu'"):
        weights.text_shapes(weights.hf_text_config(config.text_config, 16))
    with pytest.raises(InputError, match="num_channels=4"):
        weights.hf_vision_config(T.CLIPVisionConfig(num_channels=4), 16)
    with pytest.raises(InputError, match="ViT-Q"):
        weights.architecture("ViT-Q")
    with pytest.raises(InputError, match="give arch"):
        torch.save({"visual.conv1.weight": torch.zeros(1)}, tmp_path / "x.pt")
        weights.load_clip(tmp_path / "x.pt")
    with pytest.raises(InputError, match="config.json"):
        write_safetensors(tmp_path / "model.safetensors", {"logit_scale": np.zeros(())})
        weights.load_clip(tmp_path / "model.safetensors")
