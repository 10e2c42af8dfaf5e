"""Names on the hub: found in the cache, fetched where there is a network, and refused with the command that fetches."""

import json
import subprocess
import sys

import ml_collections
import numpy as np
import pytest
from hub_server import COMMIT, in_cache, serving
from huggingface_hub import constants

from didr_jax.training.fetch import fetched
from didr_jax.training.workdir import write_config
from didr_jax.types import InputError
from didr_jax.weights.files import read_tensors, write_safetensors
from didr_jax.weights.hub import Files, HubName, command, hub_name, local, pinned

REPO = "maker/a-pipeline_1.0"
WANTED = Files(weights=("unet", "vae", "text_encoder_2"), texts=("scheduler", "tokenizer"), pipeline=True)
TENSORS = {"w": np.arange(6, dtype=np.float32)}


@pytest.fixture
def pipeline(tmp_path):
    """A repository with two parts, a variant, shards and much that nobody reads."""
    root = tmp_path / "source"
    for part in ("unet", "vae", "scheduler"):
        (root / part).mkdir(parents=True)
        (root / part / "config.json").write_text(json.dumps({"part": part}))
    for name in ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors", "model.onnx"):
        write_safetensors(root / "vae" / name.replace("onnx", "safetensors"), {name: TENSORS["w"]})
    (root / "vae" / "model.safetensors").rename(root / "vae" / "model.onnx")
    write_safetensors(root / "unet" / "diffusion_pytorch_model.safetensors", {**TENSORS, "v": TENSORS["w"]}, max_bytes=30)
    (root / "tokenizer").mkdir()
    (root / "tokenizer" / "vocab.json").write_text("{}")
    (root / "tokenizer" / "merges.txt").write_text("#version")
    write_safetensors(root / "whole.safetensors", TENSORS)
    index = {"_class_name": "P", **{part: ["diffusers", "X"] for part in ("unet", "vae", "scheduler", "tokenizer")}}
    (root / "model_index.json").write_text(json.dumps(index | {"image_encoder": [None, None]}))
    return root


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def online(monkeypatch, address):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + template[template.index("/{repo_id}") :])


@pytest.mark.parametrize(
    "text, name",
    [
        ("maker/name", HubName("maker/name")),
        ("maker/name@v1.0", HubName("maker/name", "v1.0")),
        ("maker/name:unet/file.safetensors", HubName("maker/name", "", "unet/file.safetensors")),
        ("maker/name@refs/pr/3:vae", HubName("maker/name", "refs/pr/3", "vae")),
        ("name", None),
        ("/somewhere/name", None),
        ("./runs/name", None),
        ("~/name", None),
        ("a/b/c", None),
        ("runs/file.safetensors", None),
        ("models/HPS_v2.1.pt", None),
    ],
)
def test_what_is_a_name(text, name):
    assert hub_name(text) == name
    assert name is None or str(name) == text


def test_a_path_that_exists_wins(tmp_path, monkeypatch, cache):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "maker" / "name").mkdir(parents=True)
    assert hub_name("maker/name") is None and local("maker/name", WANTED, "key") == "maker/name"
    assert local("~/maker", WANTED, "key") == str(tmp_path / "maker")


def test_a_name_is_found_in_the_cache(cache, pipeline):
    snapshot = in_cache(cache, REPO, pipeline)
    name = f"{REPO}@{COMMIT}"
    assert pinned(REPO, "key") == pinned(name, "key") == name
    assert local(REPO, WANTED, "key") == local(name, WANTED, "key") == str(snapshot)
    assert local(f"{REPO}:vae", Files(weights=("",)), "key") == str(snapshot / "vae")
    assert local(f"{name}:whole.safetensors", Files(), "key") == str(snapshot / "whole.safetensors")
    folder = cache / "models--maker--a-pipeline_1.0"
    assert local(str(folder), WANTED, "key") == str(snapshot)
    assert local(f"{folder}:unet", WANTED, "key") == str(snapshot / "unet")
    read = read_tensors(local(f"{REPO}:unet", Files(weights=("",)), "key"))  # shards, behind links
    np.testing.assert_array_equal(read["v"], TENSORS["w"])


def test_what_is_not_whole_is_refused_with_the_command_that_fetches_it(cache, pipeline):
    with pytest.raises(InputError, match="config.weights.base = 'maker/a-pipeline_1.0': no such path here") as refused:
        pinned(REPO, "config.weights.base")
    assert f"hf download {REPO}" in str(refused.value) and "HF_HUB_OFFLINE" in str(refused.value)
    snapshot = in_cache(cache, REPO, pipeline)
    (snapshot / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError) as refused:
        local(f"{REPO}@{COMMIT}", WANTED, "config.weights.base")
    assert "\n" not in str(refused.value)
    for words in (f"hf download {REPO} --include", '"unet/*.safetensors"', '"tokenizer/*.txt"', f"--revision {COMMIT}"):
        assert words in str(refused.value)
    assert local(f"{REPO}@{COMMIT}", Files(weights=("vae",), pipeline=True), "key") == str(snapshot)
    assert command(HubName(REPO, "", "a.safetensors")) == f"hf download {REPO} a.safetensors"
    assert '"vae/*fp16*"' in command(HubName(REPO), WANTED, "fp16")


def test_only_what_is_read_is_fetched_and_only_once(cache, pipeline, monkeypatch):
    with serving(REPO, pipeline) as (address, sent):
        online(monkeypatch, address)
        assert pinned(REPO, "key") == f"{REPO}@{COMMIT}"
        folder = local(REPO, WANTED, "key")
        assert sorted(sent) == [
            "model_index.json", "scheduler/config.json", "tokenizer/merges.txt", "tokenizer/vocab.json", "unet/config.json",
            "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
            "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
            "unet/diffusion_pytorch_model.safetensors.index.json", "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors",
        ]  # fmt: skip
        sent.clear()
        assert local(f"{REPO}@{COMMIT}", WANTED, "key") == folder and not sent
        local(REPO, Files(weights=("vae",), pipeline=True), "key", "fp16")
        assert sent == ["vae/diffusion_pytorch_model.fp16.safetensors"]
        with pytest.raises(InputError, match="not to be had .*; where there is a network: hf download maker/other"):
            local("maker/other", WANTED, "key")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert local(REPO, WANTED, "key") == folder


def config(base):
    return ml_collections.ConfigDict({"weights": {"base": base, "variant": ""}})


def test_a_run_goes_on_with_the_commit_that_it_began_with(cache, pipeline, tmp_path):
    snapshot = in_cache(cache, REPO, pipeline)
    first = config(REPO)
    here = fetched(first, str(tmp_path / "run"), {"weights.base": WANTED})
    assert here.weights.base == str(snapshot) and first.weights.base == f"{REPO}@{COMMIT}"
    write_config(str(tmp_path / "run"), first)

    newer = "f" * 40
    (cache / "models--maker--a-pipeline_1.0" / "refs" / "main").write_text(newer)
    again, other = config(REPO), config(REPO)
    fetched(again, str(tmp_path / "run"), {"weights.base": WANTED})
    assert again.weights.base == first.weights.base
    with pytest.raises(InputError, match=newer):  # a new run has the new one
        fetched(other, str(tmp_path / "new"), {"weights.base": WANTED})


def test_an_empty_knob_has_its_own_repository(cache, pipeline, tmp_path):
    snapshot = in_cache(cache, REPO, pipeline)
    empty = config("")
    here = fetched(empty, "", {"weights.base": Files(("vae",), pipeline=True, otherwise=REPO)})
    assert here.weights.base == str(snapshot) and empty.weights.base == f"{REPO}@{COMMIT}"
    untouched = config("")
    assert fetched(untouched, "", {"weights.base": WANTED}).weights.base == "" == untouched.weights.base


def test_no_name_no_library():
    """Whoever has paths only need not wait for huggingface_hub."""
    program = "import sys; from didr_jax.weights.hub import local, Files; local('/x', Files(), ''); print('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "False\n"
