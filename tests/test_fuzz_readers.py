"""Every reader of files that others wrote, on damaged ones: it reads them or says in one line why not.

No traceback, no hang, nothing written.  Seeds are fixed; the slow suite tries a thousand of each.
"""

import contextlib
import json
import os
import shutil
import warnings

import jax
import numpy as np
import pytest
from fuzz import damaged_bytes, damaged_json, no_hang, unlogged, writes
from PIL import Image
from safetensors import safe_open
from test_cache_builds import Build, stop
from tiny_runs import tiny

from didr_jax.evaluation.statistics import Statistics, read_statistics, write_statistics
from didr_jax.images import read_rgb, size_of
from didr_jax.models.qwen3 import Qwen3Config
from didr_jax.models.unet_config import UNetConfig
from didr_jax.models.vae import AutoencoderKL, VAEConfig
from didr_jax.models.zimage_config import ZImageConfig
from didr_jax.rewards.people import read_rankings
from didr_jax.rewards.scoring import read_pairs
from didr_jax.suites.geneval import judge, read_detections, read_results, summary
from didr_jax.suites.table import open_suite
from didr_jax.text.leftovers import JOURNAL
from didr_jax.text.prompts import read_prompts
from didr_jax.text.tokens import bert_tokenizer, clip_tokenizer
from didr_jax.training.metrics import read_metrics
from didr_jax.types import InputError
from didr_jax.weights.clip import load_text
from didr_jax.weights.files import read_tensors, write_safetensors
from tests.parity.vocabularies import CLIP_EOS, CLIP_VOCAB, save_bert_tokenizer, save_clip_tokenizer
from tests.tiny_runs import claim_workdir

TENSORS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.float16([1, 2]), "c": np.zeros((0, 3), np.int64),
    "d": np.array(5, np.uint8),
}  # fmt: skip


def tensors(path) -> None:
    for value in read_tensors(path).values():
        np.array(value)


# -------------------------------------------------------------------- what there is to damage, and who reads it


def safetensors_of(folder):
    """Its header changed as JSON, or its bytes as they come."""
    write_safetensors(folder / "model.safetensors", TENSORS)
    data = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])

    def damage(rng):
        if rng.random() < 0.4:
            return damaged_bytes(data, rng)
        text = damaged_json(header, rng)
        return len(text).to_bytes(8, "little") + text + data[8 + size :]

    return "model.safetensors", damage, tensors


def json_case(content, name, read):
    return name, lambda rng: damaged_json(content, rng), read


def bytes_case(folder, name, read):
    data = (folder / name).read_bytes()
    return name, lambda rng: damaged_bytes(data, rng), read


def index_of(folder):
    write_safetensors(folder / "model.safetensors", TENSORS, max_bytes=40)
    name = "model.safetensors.index.json"
    return json_case(json.loads((folder / name).read_text()), name, tensors)


def image_of(kind):
    def case(folder):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 7, 3), np.uint8))
        image.save(folder / f"a.{kind}")
        return bytes_case(folder, f"a.{kind}", lambda path: (size_of(path), read_rgb(path)))

    return case


def both(path):
    """Of prompts alone, and with images."""
    try:
        for prompt in read_prompts(path):
            prompt.encode()
    finally:
        if path.suffix != ".txt":
            read_pairs(path)


PROMPTS = {
    "p.txt": "a cat\ntschüß, du\n\nred\n",
    "p.jsonl": '{"image": "3.png", "text": "tschüß, du"}\n\n{"image": "0.png", "text": "b", "n": [1, {"a": null}]}\n',
    "p.csv": 'prompt,image\n"tschüß, ""du""",3.png\nb,0.png\n',
    "p.tsv": "file\tcaption\tseed\n3.png\ttschüß\t1\n0.png\tb\t2\n",
}


def prompts_of(name):
    def case(folder):
        (folder / name).write_text(PROMPTS[name], encoding="utf-8")
        return bytes_case(folder, name, both)

    return case


def json_rows_of(folder):
    """Rows that are JSON, and odd."""
    row = {"image": "3.png", "text": "a cat"}
    whole = json.dumps(row).encode()
    damage = lambda rng: b"\n".join([whole, damaged_json(row, rng).replace(b"\n", b" "), whole])
    return "rows.jsonl", damage, both


def parquet_of(folder):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"caption": ["tschüß", "b"], "path": ["3.png", "0.png"]}), folder / "p.parquet")
    return bytes_case(folder, "p.parquet", both)


def claim_of(folder):
    claim_workdir(tiny(), str(folder))
    content = json.loads((folder / "config.json").read_text())
    return json_case(content, "config.json", lambda path: claim_workdir(tiny(), str(path.parent)))


def metrics_of(folder):
    lines = [{"stage": "align", "step": i, "reward": 0.1 * i, "grad_norm": float("nan")} for i in range(3)]
    damage = lambda rng: b"\n".join(damaged_json(line, rng) for line in lines)

    def read(path):
        for record in read_metrics(str(path.parent)):
            assert isinstance(record["stage"], str) and "/" not in record["stage"] and isinstance(record["step"], int)
            assert all(isinstance(value, (int, float)) for name, value in record.items() if name != "stage")

    return "metrics.jsonl", damage, read


def clip_tokenizer_of(folder):
    save_clip_tokenizer(folder)
    return json_case(json.loads((folder / "tokenizer.json").read_text()), "tokenizer.json", words_of(clip_tokenizer))


def tokenizer_config_of(folder):
    save_clip_tokenizer(folder)
    name = "tokenizer_config.json"
    return json_case(json.loads((folder / name).read_text()), name, words_of(clip_tokenizer))


def bert_tokenizer_of(folder):
    save_bert_tokenizer(folder)
    return bytes_case(folder, "tokenizer.json", words_of(bert_tokenizer))


def words_of(make):
    def read(path):
        ids = make(path.parent, 12)(["a cat", ""])["ids"]
        assert ids.shape == (2, 12) and ids.dtype == np.int32

    return read


def statistics_of(folder):
    features = np.random.default_rng(0).normal(size=(9, 3))
    write_statistics(folder / "s.npz", Statistics(None, None, features, 9, "clean"))
    return bytes_case(folder, "s.npz", read_statistics)


def cache_of(name, stop=lambda: None):
    """A file of the text cache, of an entry or of a build that was stopped: whatever stands in it, the embeddings are right."""

    def case(folder):
        left, want = Build(folder / "left"), Build(folder / "whole")()
        with contextlib.suppress(KeyboardInterrupt):
            left.until(9, stop)
        (file,) = left.folder.glob(f"*/{name}")

        def read(path):
            shutil.rmtree(folder / "cache", ignore_errors=True)
            shutil.copytree(left.folder, folder / "cache")
            shutil.copy(path, folder / "cache" / file.relative_to(left.folder))
            jax.tree.map(np.testing.assert_array_equal, Build(folder / "cache")(), want)

        if name != JOURNAL:
            return json_case(json.loads(file.read_text()), "damaged", read)
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        return "damaged", lambda rng: b"\n".join(damaged_json(line, rng) for line in lines) + b"\n", read

    return case


VAE = {
    "_class_name": "AutoencoderKL", "block_out_channels": [8, 8], "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2, "latent_channels": 4, "norm_num_groups": 4, "scaling_factor": 0.13025,
    "layers_per_block": 1, "shift_factor": 0.1, "use_quant_conv": False, "mid_block_add_attention": True, "act_fn": "silu",
}  # fmt: skip
UNET = {
    "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": [2, 4],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2], "cross_attention_dim": 40, "use_linear_projection": True, "in_channels": 4,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 6, "projection_class_embeddings_input_dim": 56,
}  # fmt: skip
ZIMAGE = {
    "dim": 24, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 16, "in_channels": 4,
    "axes_dims": [4, 4, 4], "axes_lens": [96, 16, 16], "all_patch_size": [2], "qk_norm": True, "rope_theta": 256.0,
}  # fmt: skip
QWEN = {
    "vocab_size": 11, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "rms_norm_eps": 1e-6, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
    "layer_types": ["full_attention"] * 2, "hidden_act": "silu", "tie_word_embeddings": True,
}  # fmt: skip


def architecture_of(kind, content):
    from didr_jax.weights.folder import part_json

    return lambda folder: json_case(content, "config.json", lambda path: kind.from_json(part_json(path.parent, "")))


def clip_config_of(folder):
    """The folder's weights are not damaged: what remains is a configuration that does not fit them."""
    content = dict(
        architectures=["CLIPTextModel"], model_type="clip_text_model", hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, vocab_size=CLIP_VOCAB, max_position_embeddings=77, projection_dim=16, layer_norm_eps=1e-5,
        hidden_act="quick_gelu", eos_token_id=CLIP_EOS, bos_token_id=515, pad_token_id=1,
    )  # fmt: skip
    write_safetensors(folder / "model.safetensors", TENSORS)
    return json_case(content, "config.json", lambda path: load_text(path.parent))


ASKED = {
    "tag": "position",
    "prompt": "a",
    "include": [{"class": "a", "count": 1}, {"class": "b", "count": 2, "position": ["above", 0]}],
}
BOXES = [{"class": "a", "box": [0, 0, 4, 4.5], "score": 0.9, "color": "red"}, {"class": "b", "box": [0, 9, 4, 12], "score": 0.95}]
LINES = {  # of a file whose lines are JSON, and who reads it
    "metadata": (ASKED, lambda path: [judge([], prompt.row) for prompt in open_suite("geneval", str(path))[1]]),
    "boxes": ({"filename": "00000/samples/0000.png", "detections": BOXES}, read_detections),
    "results": (
        {"filename": "x", "tag": "a", "prompt": "p", "correct": True, "reason": ""},
        lambda path: summary(read_results(path)),
    ),
}


def lines_of(name):
    row, read = LINES[name]
    damage = lambda rng: b"\n".join([json.dumps(row).encode(), damaged_json(row, rng).replace(b"\n", b" ")])
    return lambda folder: (f"{name}.jsonl", damage, read)


def suite_of(name, content):
    return lambda folder: json_case(content, "prompts.json", lambda path: open_suite(name, str(path)))


def rankings_of(folder):
    rows = [
        {"prompt": "a", "generations": ["0.png", "1.png"], "ranking": [2, 1]},
        {"prompt": "b", "image_path": ["2"], "rank": [1]},
    ]
    return json_case(rows, "test.json", read_rankings)


CASES = {
    "safetensors": safetensors_of,
    **{f"geneval.{name}": lines_of(name) for name in LINES},
    "suite.imagereward": suite_of("imagereward", [{"id": "a-1", "prompt": "a"}, {"id": "b-2", "prompt": "b"}]),
    "rankings": rankings_of,
    "index": index_of,
    **{f"image.{kind}": image_of(kind) for kind in ("png", "jpg", "webp", "bmp", "tif", "ppm")},
    **{f"prompts.{name}": prompts_of(name) for name in PROMPTS},
    "prompts.rows": json_rows_of,
    "prompts.parquet": parquet_of,
    "workdir": claim_of,
    "metrics": metrics_of,
    "tokenizer.clip": clip_tokenizer_of,
    "tokenizer.config": tokenizer_config_of,
    "tokenizer.bert": bert_tokenizer_of,
    "statistics": statistics_of,
    "cache.entry": cache_of("entry.json"),
    "cache.progress": cache_of(JOURNAL, stop),
    "config.vae": architecture_of(VAEConfig, VAE),
    "config.unet": architecture_of(UNetConfig, UNET),
    "config.zimage": architecture_of(ZImageConfig, ZIMAGE),
    "config.qwen": architecture_of(Qwen3Config, QWEN),
    "config.clip": clip_config_of,
}


MENDED = ("metrics", "cache.entry", "cache.progress")  # what is damaged is left out, or made again


def attack(case: str, folder, count: int, seed: int = 0) -> dict[str, int]:
    """How many damaged files were read, and how many refused; anything else fails, and the file is left to look at."""
    (folder / case).mkdir()
    name, damage, read = CASES[case](folder / case)
    path, told = folder / case / name, {"read": 0, "refused": 0}
    for i in range(count):
        path.write_bytes(damage(np.random.default_rng([seed, i])))
        with writes() as written, no_hang(), unlogged(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                read(path)
                told["read"] += 1
            except InputError as error:
                assert "\n" not in str(error) and str(error).strip(), f"input {i} of {path}: {error!r}"
                told["refused"] += 1
        outside = [file for file in written if not file.startswith(str(folder)) and file != os.devnull]
        assert not outside, f"input {i} of {path} made it write {outside}"
    return told


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_file_is_read_or_refused_in_one_line(case, tmp_path):
    told = attack(case, tmp_path, 12)
    assert told["refused"] or case in (*MENDED, "prompts.p.txt", "image.ppm", "image.bmp"), told


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_thousand_damaged_files_are_read_or_refused_in_one_line(case, tmp_path, capsys):
    told = attack(case, tmp_path, 1000, seed=1)
    with capsys.disabled():
        print(f"\n{case}: {told}")
    assert told["refused"] > 0 or case in MENDED


def agreement(folder, count: int, seed: int) -> int:
    """Nothing is read that the reference library refuses, and what both read is the same; how many that were."""
    name, damage, _ = safetensors_of(folder)
    same = 0
    for i in range(count):
        (folder / name).write_bytes(damage(np.random.default_rng([seed, i])))
        try:
            ours = read_tensors(folder / name)
        except InputError:
            continue
        with safe_open(folder / name, framework="np") as theirs:  # raises where it refuses
            assert set(theirs.keys()) == set(ours)
            for key in ours:
                np.testing.assert_array_equal(np.array(ours[key]), theirs.get_tensor(key), err_msg=f"input {i}: {key}")
        same += 1
    return same


def test_nothing_is_read_that_the_reference_library_refuses(tmp_path):
    assert agreement(tmp_path, 300, seed=2) > 5


@pytest.mark.slow
def test_nothing_is_read_that_the_reference_library_refuses_in_three_thousand(tmp_path):
    assert agreement(tmp_path, 3000, seed=3) > 50


@pytest.mark.slow
def test_an_odd_vae_config_that_is_read_can_be_built_or_is_refused(tmp_path):
    from didr_jax.models.config import building

    built = 0
    for i in range(300):
        try:
            with no_hang():
                config = VAEConfig.from_json(json.loads(damaged_json(VAE, np.random.default_rng([4, i]))))
                with building("AutoencoderKL"):
                    image = jax.ShapeDtypeStruct((1, 16, 16, 3), np.float32)
                    jax.eval_shape(AutoencoderKL(config).init, jax.random.key(0), image)
                built += 1
        except (InputError, ValueError) as error:
            assert isinstance(error, (InputError, json.JSONDecodeError, UnicodeDecodeError)), f"input {i}: {error!r}"
    assert 0 < built < 300
