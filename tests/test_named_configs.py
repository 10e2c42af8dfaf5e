"""The shipped recipes by name, and files of one's own by path."""

import ast
import os
import runpy
from pathlib import Path

import pytest

from didr_jax import recipes
from didr_jax.config import flatten
from didr_jax.named_configs import config_path, named_configs, with_paths
from didr_jax.types import InputError
from tests.test_cli import refuses, run

REPO = Path(__file__).resolve().parent.parent
FILES = sorted((REPO / "configs").glob("*.py"))


def test_every_file_of_configs_has_a_name():
    assert named_configs() == {file.stem: str(file) for file in FILES}


@pytest.mark.parametrize("given", ["configs/digits.py", "my.py", "./elsewhere/my.py", "/absolute/digits", "my.py:argument", ""])
def test_a_path_stays_as_it_was_written(given):
    assert config_path(given) == given


def test_a_file_without_py_is_a_path_and_a_folder_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine").write_text("")
    os.mkdir("digits")
    assert config_path("mine") == "mine"
    assert config_path("digits") == str(REPO / "configs" / "digits.py")


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(InputError, match="--config=digts: .*did you mean digits?"):
        config_path("digts")
    with pytest.raises(
        InputError,
        match="known: digits, mixture, sd15, sdxl, sprouts, sprouts_distill, sprouts_pipeline, "
        "sprouts_sdxl, sprouts_sdxl_distill, sprouts_sdxl_pipeline, zimage",
    ):
        config_path("flux")


def test_only_the_value_of_config_is_replaced():
    digits = f"--config={REPO / 'configs' / 'digits.py'}"
    rest = ["--config.align.beta=1", "--workdir=mixture", "mixture"]
    for written in (["--config=digits"], ["--config", "digits"], ["-config=digits"]):
        assert with_paths(["run.py", *written, *rest]) == ["run.py", digits, *rest]


def test_the_command_line_takes_names_and_refuses_unknown_ones_with_code_2(tmp_path):
    refuses(run("--config=digts", workdir=tmp_path / "run"), "--config=digts", "did you mean digits?")
    refuses(run("--config=digits", "--config.align.objectve=di", workdir=tmp_path / "run"), "did you mean align.objective")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_recipe_files_import_only_the_package_and_so_work_wherever_they_lie(file):
    for node in ast.walk(ast.parse(file.read_text())):
        module = getattr(node, "module", "") or "".join(alias.name for alias in getattr(node, "names", []))
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            assert module.split(".")[0] in ("didr_jax", "ml_collections"), f"{file.name} imports {module}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_recipe_files_give_a_config_of_a_known_recipe(file):
    config = runpy.run_path(str(file))["get_config"]()
    assert config.recipe in recipes.RECIPES and flatten(config)
