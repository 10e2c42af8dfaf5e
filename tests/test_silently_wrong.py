"""Files that could be read and would have meant something else: each is refused in one line that names them."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")
import transformers as T  # noqa: E402

from didr_jax.rewards import REWARDS  # noqa: E402
from didr_jax.text.clip import clip_encoder  # noqa: E402
from didr_jax.text.qwen import qwen_encoder  # noqa: E402
from didr_jax.text.tokens import bert_tokenizer, clip_tokenizer  # noqa: E402
from didr_jax.types import InputError  # noqa: E402
from didr_jax.weights.engine import check_fit, to_flax  # noqa: E402
from didr_jax.weights.files import read_tensors, write_safetensors  # noqa: E402
from didr_jax.weights.rules import layer  # noqa: E402
from tests.parity.vocabularies import BERT_WORDS, CLIP_VOCAB, chat_tokenizer, save_bert_tokenizer, save_clip_tokenizer  # noqa: E402
from tests.text_to_image import tiny_sdxl, tiny_zimage  # noqa: E402


def refused(function, *arguments, **more) -> str:
    with pytest.raises(InputError) as error:
        function(*arguments, **more)
    assert "\n" not in str(error.value)
    return str(error.value)


# -------------------------------------------------------------------------------------------- tokens


def with_a_word_more(folder):
    """A tokenizer as textual inversion leaves it: its own tokens behind the others."""
    tokenizer = T.CLIPTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<my-cat>"])
    tokenizer.save_pretrained(folder)
    return f"has '<my-cat>' as number {CLIP_VOCAB}, and the text encoder that it is for has {CLIP_VOCAB} tokens"


@pytest.mark.parametrize("part", ["tokenizer", "tokenizer_2"])
def test_a_token_beyond_an_encoders_table_is_refused(part, tmp_path):
    tiny_sdxl.save_sdxl(tmp_path)
    clip_encoder(tmp_path, xl=True)
    says = with_a_word_more(tmp_path / part)
    assert says in (message := refused(clip_encoder, tmp_path, xl=True)) and f"tokenizer: {tmp_path}/{part} " in message


def test_a_token_beyond_a_rewards_table_is_refused(tmp_path):
    folder = tiny_sdxl.save_clip(tmp_path, 1)
    REWARDS["pickscore"].load(folder)
    assert with_a_word_more(folder) in refused(REWARDS["pickscore"].load, folder)


def test_a_token_beyond_the_language_models_table_is_refused(tmp_path):
    tiny_zimage.save_base(tmp_path)
    qwen_encoder(tmp_path, 40)
    tokenizer = chat_tokenizer()
    tokenizer.add_tokens(["<my-cat>"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert "has '<my-cat>' as number 11" in refused(qwen_encoder, tmp_path, 40)


@pytest.mark.parametrize(
    "save, load, says",
    [(save_bert_tokenizer, clip_tokenizer, "not a CLIP's"), (save_clip_tokenizer, bert_tokenizer, "not a BERT's")],
)
@pytest.mark.parametrize("slow", [False, True])
def test_a_tokenizer_of_another_model_is_refused(save, load, says, slow, tmp_path):
    save(tmp_path)
    if slow:
        _as_slow_files(tmp_path)
    with pytest.raises(InputError, match=f"{tmp_path} is {says}: its vocabulary lacks"):
        load(tmp_path)


def test_a_tokenizer_without_its_merges_is_refused(tmp_path):
    save_clip_tokenizer(tmp_path)
    _as_slow_files(tmp_path)
    assert clip_tokenizer(tmp_path)(["cat"])["ids"][0, 1] == 513
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(InputError, match=f"{tmp_path} makes pieces of .*cat, words of its own vocabulary"):
        clip_tokenizer(tmp_path)


def _as_slow_files(folder):
    """vocab.json and merges.txt, or vocab.txt, in place of tokenizer.json."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    if "merges" in model:
        (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
        (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model["merges"]))
    else:
        (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in sorted(model["vocab"], key=model["vocab"].get)))


def test_a_table_may_be_larger_than_the_vocabulary(tmp_path):
    save_bert_tokenizer(tmp_path)
    bert_tokenizer(tmp_path, rows=len(BERT_WORDS) + 2)  # as ImageReward's is
    assert "'.' as number 16" in refused(bert_tokenizer, tmp_path, rows=len(BERT_WORDS) - 1)
    clip_tokenizer(None, rows=1)  # blank, for plans


# --------------------------------------------------------------------------------------- projections


@pytest.mark.parametrize(
    "architectures, says",
    [
        (["CLIPTextModelWithProjection"], "is a CLIPTextModelWithProjection and has no text_projection.weight"),
        (None, "text_encoder_2 has no text_projection.weight, which makes SDXL's pooled embedding"),
    ],
)
def test_a_second_encoder_without_its_projection_is_refused(architectures, says, tmp_path):
    tiny_sdxl.save_sdxl(tmp_path)
    file, config = (tmp_path / "text_encoder_2" / name for name in ("model.safetensors", "config.json"))
    tensors = {name: np.array(value) for name, value in read_tensors(file).items()}
    del tensors["text_projection.weight"]
    write_safetensors(file, tensors)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"architectures": architectures}))
    assert says in refused(clip_encoder, tmp_path, xl=True)


def test_a_text_encoder_whose_config_is_another_models_is_refused(tmp_path):
    tiny_sdxl.save_sdxl(tmp_path)
    config = tmp_path / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "t5"}))
    assert "is not a CLIP's: it is of a model of type 't5'" in refused(clip_encoder, tmp_path, xl=True)


# ------------------------------------------------------------------------------------------- numbers

SHAPES = {"fc": {"kernel": jax.ShapeDtypeStruct((3, 2), jnp.float32), "bias": jax.ShapeDtypeStruct((2,), jnp.bfloat16)}}
TABLE = layer("fc", "fc")


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "int64", "bool"])
def test_integers_where_floating_point_numbers_belong_are_refused_naming_the_tensors(kind):
    tensors = {"fc.weight": np.ones((2, 3), kind), "fc.bias": np.ones(2, np.float16)}
    for read in (check_fit, to_flax):
        message = refused(read, tensors, TABLE, SHAPES)
        assert (
            f"1 of integers where floating-point numbers belong (a quantised file; give the plain one): fc.weight ({kind})"
            in message
        )


@pytest.mark.parametrize("kind", [np.float64, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_every_floating_point_type_is_read(kind):
    read = to_flax({"fc.weight": np.ones((2, 3), kind), "fc.bias": np.ones(2, kind)}, TABLE, SHAPES)
    assert np.all(np.asarray(read["fc"]["kernel"]) == 1)


def test_a_leaf_of_integers_takes_integers():
    shapes = {"fc": {"kernel": jax.ShapeDtypeStruct((3, 2), jnp.int32)}}
    assert to_flax({"fc.weight": np.full((2, 3), 7, np.int64)}, TABLE, shapes)["fc"]["kernel"].dtype == jnp.int32
