"""Qwen3 against transformers' `Qwen3Model`, and prompts through Z-Image's chat template against its pipeline."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")

from didr_jax.models.qwen3 import Layer, Qwen3, Qwen3Config  # noqa: E402
from didr_jax.models.rotary import rotary_table  # noqa: E402
from didr_jax.text.qwen import qwen_tokenizer, tokenize  # noqa: E402
from didr_jax.types import InputError  # noqa: E402
from didr_jax.weights.engine import to_flax, to_torch  # noqa: E402
from didr_jax.weights.files import read_tensors, write_safetensors  # noqa: E402
from didr_jax.weights.qwen3 import qwen3_table  # noqa: E402
from tests.parity.oracle import QUICK, assert_close, randomise  # noqa: E402
from tests.parity.vocabularies import chat_tokenizer  # noqa: E402

CONFIG = dict(
    vocab_size=60, hidden_size=40, intermediate_size=56, num_hidden_layers=3, num_attention_heads=6,
    num_key_value_heads=2, head_dim=12, rms_norm_eps=1e-4, rope_parameters={"rope_theta": 5e3, "rope_type": "default"},
)  # fmt: skip
LENGTHS = np.array([19, 4, 11])
MASK = np.arange(19) < LENGTHS[:, None]


def load(folder, hidden_state):
    config = Qwen3Config.from_json(json.loads((folder / "config.json").read_text()))
    model = Qwen3(config, hidden_state=hidden_state)
    ids = jnp.zeros((1, 4), int)
    shapes = jax.eval_shape(model.init, jax.random.key(0), ids, ids == 0)["params"]
    return model, to_flax(read_tensors(folder), qwen3_table(config, hidden_state), shapes)


@pytest.fixture(scope="module")
def oracle():
    return randomise(transformers.Qwen3Model(transformers.Qwen3Config(**CONFIG)))


@pytest.fixture(scope="module")
def folder(oracle, tmp_path_factory):
    path = tmp_path_factory.mktemp("qwen3")
    oracle.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def ids():
    return np.random.default_rng(0).integers(0, 60, MASK.shape)


@pytest.mark.parametrize("hidden_state", [-1, -2, -3])
def test_hidden_states(oracle, folder, ids, hidden_state):
    model, params = load(folder, hidden_state)
    with torch.no_grad():
        out = oracle(torch.from_numpy(ids), attention_mask=torch.from_numpy(MASK), output_hidden_states=True)
    got = jax.jit(model.apply, compiler_options=QUICK)({"params": params}, ids, MASK)
    assert_close(np.asarray(got)[MASK], out.hidden_states[hidden_state].numpy()[MASK])


def test_layer_and_gradient(oracle, folder):
    model, params = load(folder, -1)
    x, probe = np.random.default_rng(1).normal(size=(2, *MASK.shape, 40)).astype(np.float32)
    probe *= MASK[..., None]
    leaf = torch.from_numpy(x).requires_grad_()
    want = oracle(inputs_embeds=leaf, attention_mask=torch.from_numpy(MASK), output_hidden_states=True).hidden_states[1]
    (want * torch.from_numpy(probe)).sum().backward()

    layer = {"params": jax.tree.map(lambda leaf: leaf[0], params["layers"])}
    angles = jnp.asarray(rotary_table(MASK.shape[1], 12, 5e3))[None]
    f = lambda x: (out := Layer(model.config).apply(layer, x, angles, jnp.asarray(MASK))[0], (out * probe).sum())[::-1]
    (_, out), grad = jax.jit(jax.value_and_grad(f, has_aux=True), compiler_options=QUICK)(x)
    assert_close(np.asarray(out)[MASK], want.detach().numpy()[MASK], what="layer")
    assert_close(grad, leaf.grad, what="gradient")


def test_transformers_loads_what_we_write(oracle, folder, tmp_path):
    model, params = load(folder, -1)
    write_safetensors(tmp_path / "model.safetensors", to_torch(params, qwen3_table(model.config, -1)))
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    loaded = transformers.Qwen3Model.from_pretrained(tmp_path)
    for name, tensor in oracle.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


def test_causal_lm_folder_and_older_config(oracle, ids, folder, tmp_path):
    """The published encoder has a language model's names and a head; transformers 4 wrote `rope_theta` apart."""
    causal = transformers.Qwen3ForCausalLM(oracle.config)
    causal.model.load_state_dict(oracle.state_dict())
    causal.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    raw |= {"rope_theta": raw.pop("rope_parameters")["rope_theta"], "rope_scaling": None}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    (model, params), (_, want) = load(tmp_path, -2), load(folder, -2)
    assert model.config.rope_theta == 5e3
    jax.tree.map(np.testing.assert_array_equal, params, want)


def test_published_size():
    with torch.device("meta"):
        sizes = Qwen3Config()
        theirs = {k: v for k, v in vars(sizes).items() if k != "rope_theta"}
        oracle = transformers.Qwen3Model(transformers.Qwen3Config(**theirs))
    model = Qwen3(hidden_state=-1)
    ids = jnp.zeros((1, 4), int)
    shapes = jax.eval_shape(model.init, jax.random.key(0), ids, ids == 0)["params"]
    got = {name: tensor.shape for name, tensor in to_torch(shapes, qwen3_table(sizes, -1)).items()}
    assert got == {name: tuple(p.shape) for name, p in oracle.state_dict().items()}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "qwen2"}, "model_type='qwen2'"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "yarn"}}, "yarn"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"experts": 8}, "experts"),
        ({"head_dim": None}, "lacks head_dim"),
    ],
)
def test_unsupported_config_is_refused_by_name(folder, change, named):
    with pytest.raises(InputError, match=named):
        Qwen3Config.from_json(json.loads((folder / "config.json").read_text()) | change)


# --- Prompts ---------------------------------------------------------------------------------------

PROMPTS = ["a red cat on a mat", "", "mat " * 40]


@pytest.mark.parametrize("side", ["right", "left"])
def test_prompts_are_encoded_as_the_pipeline_does(oracle, folder, side):
    """Whichever side the tokenizer pads, ours pads right: rotary positions are relative, so features agree."""
    tokenizer = chat_tokenizer(side)
    pipeline = diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=None, text_encoder=oracle, tokenizer=tokenizer,
        transformer=None,
    )  # fmt: skip
    with torch.no_grad():
        want, _ = pipeline.encode_prompt(list(PROMPTS), "cpu", False, max_sequence_length=24)
    ids, mask = tokenize(tokenizer, PROMPTS, max_length=24)
    assert ids.shape == mask.shape == (3, 24) and mask.sum(1).tolist() == [len(w) for w in want] == [11, 5, 24]
    assert not (np.diff(mask.astype(int), axis=1) > 0).any(), "captions must come first"
    model, params = load(folder, -2)
    got = np.asarray(jax.jit(model.apply, compiler_options=QUICK)({"params": params}, ids, mask))
    for g, m, w in zip(got, mask, want, strict=True):
        assert_close(g[m], w)


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(InputError, match=f"tokenizer: cannot be read from {tmp_path}") as error:
        qwen_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


def test_a_tokenizer_that_brings_its_own_code_is_refused_and_nobody_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    (tmp_path / "own.py").write_text("raise SystemExit('the code of the folder ran')")
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["own.Tokenizer", null]}}')
    with pytest.raises(InputError, match=f"tokenizer: cannot be read from {tmp_path}"):
        qwen_tokenizer(tmp_path)


def test_tokenizer_without_template_is_refused():
    tokenizer = chat_tokenizer("right")
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="chat template"):
        tokenize(tokenizer, ["a cat"])
