"""Compiled programs are kept where the config says, or in the user's cache, and a run that cannot keep them does without."""

import os

import jax
import pytest
from tiny_runs import tiny

from didr_jax.training import startup

KEYS = ("jax_compilation_cache_dir", "jax_enable_compilation_cache", "jax_exec_time_optimization_effort")


@pytest.fixture
def start(monkeypatch, tmp_path):
    """`start(**knobs of compiler) -> (what it says, where JAX keeps programs)`; nothing of it outlives the test."""
    before = {key: jax.config.values[key] for key in KEYS}
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", None)

    def call(planning=False, **knobs):
        told = startup.start(tiny(**{f"compiler__{key}": value for key, value in knobs.items()}), planning)
        return told, jax.config.jax_compilation_cache_dir

    yield call
    for key, value in before.items():
        jax.config.update(key, value)


def test_by_default_programs_are_kept_in_the_users_cache(start, tmp_path):
    told, folder = start()
    assert told == f"compiled programs are kept in {folder}"
    assert os.path.dirname(folder) == str(tmp_path / "didr_jax" / "compiled") and os.path.isdir(folder)


@pytest.mark.parametrize("how", [{"cache": ""}, {"planning": True}])
def test_an_empty_word_and_a_plan_keep_nothing(how, start, tmp_path):
    assert start(**how) == ("", None) and os.listdir(tmp_path) == []


def test_a_folder_that_is_named_is_taken_and_what_jax_was_told_goes_before_the_default(start, tmp_path):
    assert start(cache=str(tmp_path / "here"))[1] == str(tmp_path / "here")
    told, folder = start()
    assert folder == str(tmp_path / "here") and told.endswith(folder)


def test_where_nothing_can_be_written_a_run_does_without(start, tmp_path):
    (tmp_path / "file").write_text("")
    told, folder = start(cache=str(tmp_path / "file" / "cache"))
    assert (
        folder is None and "compiled programs are not kept: cannot write" in told and "(Not a directory); choose another" in told
    )


def test_the_effort_is_for_what_runs(start):
    start(effort=-0.5)
    assert jax.config.values["jax_exec_time_optimization_effort"] == -0.5
