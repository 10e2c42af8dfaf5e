"""Secrets in a config never reach a file or a message, and a run with one goes on like any other."""

import json

import jax.numpy as jnp
import pytest
from tiny_runs import tiny

from didr_jax.training.metrics import RunLog
from didr_jax.training.parallel import make_mesh
from didr_jax.training.redact import HIDDEN, is_secret, redacted
from didr_jax.training.run import Run
from didr_jax.types import InputError
from tests.tiny_runs import claim_workdir

SECRET = "s3cr3t-0123456789"


def with_secrets(seed=0):
    config = tiny(seed=seed)
    with config.unlocked():
        config.log.wandb_api_key = SECRET
        config.hub = {"token": SECRET, "names": ["a", f"https://me:{SECRET}@host/path"], "none": {"password": ""}}
    return config


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "HF_TOKEN", "password", "log.api_key", "my_secret", "AWS_SECRET_ACCESS_KEY"])
def test_names_of_secrets(name):
    assert is_secret(name)


@pytest.mark.parametrize("name", ["clip_tokenizer", "max_tokens", "key", "keep_every", "author", "tokens", "monkey"])
def test_names_of_other_things(name):
    assert not is_secret(name)


def test_no_file_of_a_run_holds_a_secret(tmp_path):
    config = with_secrets()
    claim_workdir(config, str(tmp_path))
    saves = Run(config, str(tmp_path), make_mesh(config.mesh), RunLog(str(tmp_path), config.log)).saves("pretrain")
    saves.save(1, {"state": {"w": jnp.zeros(2)}})
    saves.close()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any("meta" in str(path) for path in files) and not [path for path in files if SECRET.encode() in path.read_bytes()]
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["log"]["wandb_api_key"] == saved["hub"]["token"] == HIDDEN and saved["hub"]["none"]["password"] == ""
    assert saved["hub"]["names"] == ["a", f"https://{HIDDEN}@host/path"]


def test_the_same_run_goes_on_and_another_is_refused_without_telling(tmp_path):
    claim_workdir(with_secrets(), str(tmp_path))
    claim_workdir(with_secrets(), str(tmp_path))
    raw = json.loads((tmp_path / "config.json").read_text())
    raw["hub"]["token"] = SECRET  # as a version wrote it that hid nothing
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match="seed") as error:
        claim_workdir(with_secrets(seed=1), str(tmp_path))
    assert SECRET not in str(error.value) and "token" not in str(error.value)


def test_what_the_environment_keeps_secret_is_hidden_wherever_it_stands(monkeypatch):
    monkeypatch.setenv("MY_SERVICE_TOKEN", SECRET)
    monkeypatch.setenv("SHORT_TOKEN", "a")
    assert redacted({"x": [f"--key={SECRET}", "a b"], "n": 3}) == {"x": [f"--key={HIDDEN}", "a b"], "n": 3}
