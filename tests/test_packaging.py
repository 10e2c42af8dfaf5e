"""What `pip install .` gives: every package and recipe file, the command, and dependencies that are declared once."""

import ast
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email.parser import Parser
from importlib import metadata
from pathlib import Path

import pytest

import didr_jax
from tests.tiny_runs import TINY

REPO = Path(__file__).resolve().parent.parent
OPTIONAL = {"torch", "pyarrow", "wandb", "trackio", "dicebear", "resvg_py"}  # asked for with a line that says how to install them
PARTS = {"jaxlib": "jax"}  # what another distribution always brings along


def requirements() -> list[str]:
    lines = (line.split("#")[0].strip() for line in (REPO / "requirements.txt").read_text().splitlines())
    return [line for line in lines if line]


def pip(*arguments, **options) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built offline from a copy of the checkout, in which the build may leave what it likes."""
    for module in ("setuptools", "pip"):
        pytest.importorskip(module, reason="a wheel is built by setuptools and pip (requirements-dev.txt)")
    source, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("wheel")
    for folder in ("didr_jax", "configs"):
        shutil.copytree(REPO / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "requirements.txt"):
        shutil.copy(REPO / name, source)
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", out, source)
    return next(out.glob("didr_jax-*.whl"))


def described(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(f"didr_jax-{didr_jax.__version__}.dist-info/{name}").decode()


def test_the_wheel_holds_every_module_template_and_recipe_file_and_nothing_else(wheel):
    wanted = {str(file.relative_to(REPO)) for file in (REPO / "didr_jax").rglob("*.py")}
    wanted |= {str(file.relative_to(REPO)) for file in (REPO / "didr_jax" / "reporting" / "template").iterdir()}
    wanted |= {str(file.relative_to(REPO)) for file in (REPO / "didr_jax" / "assets").rglob("*") if file.is_file()}
    wanted |= {f"didr_jax/configs/{file.name}" for file in (REPO / "configs").glob("*.py")}
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == wanted


def test_version_command_and_dependencies_are_those_of_the_checkout(wheel):
    header = Parser().parsestr(described(wheel, "METADATA"))
    assert header["Version"] == didr_jax.__version__
    assert header["License-Expression"] == "Apache-2.0" and "Apache License" in described(wheel, "licenses/LICENSE")
    assert header.get_all("Requires-Dist") == requirements()
    assert "didr-jax = didr_jax.cli:main" in described(wheel, "entry_points.txt")


def test_whatever_the_package_imports_is_declared():
    declared = {line.split(">")[0].split("=")[0].strip().replace("-", "_").lower() for line in requirements()}
    providers = metadata.packages_distributions()
    for file in (REPO / "didr_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in {name.split(".")[0] for name in names} - sys.stdlib_module_names - OPTIONAL - {"didr_jax"}:
                given = providers.get(module, [module])
                found = {PARTS.get(name, name).replace("-", "_").lower() for name in given} & declared
                assert found, f"{file.relative_to(REPO)} imports {module}: not in requirements.txt"


@pytest.mark.slow
def test_an_installed_package_trains_a_named_recipe_from_any_directory(wheel, tmp_path):
    venv.create(tmp_path / "env", symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    pip("--python", python, "install", "--no-index", "--no-deps", wheel)
    site = sysconfig.get_path("purelib", vars={"base": str(tmp_path / "env")})
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # those of this environment: nothing is downloaded
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*command) -> subprocess.CompletedProcess:
        return subprocess.run([*map(str, command)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    where = run(python, "-c", "import didr_jax; print(didr_jax.__file__, didr_jax.__version__)").stdout
    assert where.split() == [str(Path(site, "didr_jax", "__init__.py")), didr_jax.__version__]

    tiny = [f"--config.{key}={value}" for key, value in TINY.items()] + ["--config.align.steps=5", "--config.eval.samples=64"]
    tiny = [flag.replace("('pretrain', 'distill')", "('pretrain', 'distill', 'align')") for flag in tiny]
    done = run(tmp_path / "env" / "bin" / "didr-jax", "--config=mixture", "--workdir=run", *tiny)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())
    refused = run(python, "-m", "didr_jax", "--config=mixtur", "--workdir=other")
    assert refused.returncode == 2 and "did you mean mixture?" in refused.stderr
