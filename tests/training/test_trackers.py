"""What trackers are told of a run, and that a run that goes on is the same run there."""

import json
import sys
import types

import numpy as np
import pytest
from tiny_runs import tiny

from didr_jax.training.metrics import RunLog
from didr_jax.training.redact import redacted
from didr_jax.training.reports import write_summary
from didr_jax.types import InputError

PICTURE = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
ROWS = {"before": {"reward": 0.25}, "after": {"reward": 0.5, "fid": 3.0}}


def service_of(told, **more):
    return types.SimpleNamespace(
        init=lambda **settings: told.append(settings) or service_of(told, **more),
        log=told.append,
        Image=lambda picture: ("picture", picture.shape),
        finish=lambda: told.append("finished"),
        **more,
    )


def a_run(workdir, service):
    config = tiny(log__service=service, log__project="ours")
    with config.unlocked():
        config.wandb_api_key = "not for others"
    log = RunLog(str(workdir), config.log, redacted(config.to_dict()))
    log.write("align", 3, {"reward": 0.5})
    log.show("align", 3, {"colour": PICTURE})
    write_summary(str(workdir), ROWS, log)
    log.close()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_service_is_told_the_config_figures_pictures_and_the_summary_without_secrets(name, tmp_path, monkeypatch):
    told: list = []
    monkeypatch.setitem(sys.modules, name, service_of(told))
    (tmp_path / "my_run").mkdir()
    a_run(tmp_path / "my_run", name)
    begun, *rest = told
    assert begun["project"] == "ours" and begun["resume"] == "allow" and begun["name"].startswith("my_run")
    assert begun["config"]["align"]["beta"] == 1.0 and "not for others" not in json.dumps(begun["config"])
    assert rest == [
        {"align/reward": 0.5, "align/step": 3},
        {"align/colour": ("picture", (4, 6, 3)), "align/step": 3},
        {"summary/before/reward": 0.25, "summary/after/reward": 0.5, "summary/after/fid": 3.0},
        "finished",
    ]


@pytest.mark.parametrize("name, key", [("wandb", "id"), ("trackio", "name")])
def test_a_run_that_goes_on_is_the_same_run_and_one_of_another_workdir_is_not(name, key, tmp_path, monkeypatch):
    told: list = []
    monkeypatch.setitem(sys.modules, name, service_of(told))
    for folder in ("one/run", "one/run", "other/run"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        a_run(tmp_path / folder, name)
    first, again, other = (each[key] for each in told if isinstance(each, dict) and "project" in each)
    assert first == again != other
    (tmp_path / "one" / "run" / "tracker.json").write_text("[]")
    with pytest.raises(InputError, match="tracker.json .*remove it"):
        a_run(tmp_path / "one" / "run", name)


def test_wandb_draws_over_a_stages_own_steps_and_keeps_the_summary_as_one(tmp_path, monkeypatch):
    told: list = []
    axes: list = []
    summary: dict = {}
    more = {"define_metric": lambda name, step_metric: axes.append((name, step_metric)), "summary": summary}
    monkeypatch.setitem(sys.modules, "wandb", service_of(told, **more))
    a_run(tmp_path, "wandb")
    assert axes == [("align/*", "align/step")] and summary["summary/after/reward"] == 0.5


def test_tensorboard_holds_the_config_and_the_summary_as_text(tmp_path):
    config = tiny(log__tensorboard=True)
    log = RunLog(str(tmp_path), config.log, redacted(config.to_dict()))
    write_summary(str(tmp_path), ROWS, log)
    log.close()
    data = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert b"config" in data and b"objective" in data and b"| after | 0.5 | 3 |" in data
