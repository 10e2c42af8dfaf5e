"""An export is a repository: diffusers opens it, its card tells what it is, and the card's snippet runs."""

import dataclasses
import json
import re

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from didr_jax.recipes.text_to_image.card import write_card, write_rewards  # noqa: E402
from didr_jax.recipes.text_to_image.export import ADAPTER, CHECKPOINT, write_export  # noqa: E402
from didr_jax.training.run import Run  # noqa: E402
from tests.text_to_image import runs  # noqa: E402
from tests.text_to_image.backbones import ROWS  # noqa: E402


@dataclasses.dataclass
class Made:
    """A backbone's row, its pipeline and settings, and what exports its initial generator."""

    row: object
    pipeline: object
    settings: dict
    root: object

    def export(self, folder, **more):
        """The task whose initial generator is then in folder/export, with its card."""
        task = runs.recipe_of(self.row.config, self.row.backbone, self.settings | dict(self.row.full), **more).task
        write_export(task, task.start("generator").load(), str(folder / "export"))
        run = Run(task.config, str(folder), None, None, picked={"align": (7, {})})
        rewards = {"hps": np.array([1.0, 2.0, 4.0]), "reward": np.array([0.0, np.nan, 1.0])}
        write_rewards(run, rewards, {name: values + 1 for name, values in rewards.items()})
        write_card(task, run, str(folder / "export"))
        return task


@pytest.fixture(scope="module", params=list(ROWS))
def made(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    return Made(ROWS[request.param], *ROWS[request.param].tiny.settings(root), root)


def test_the_whole_pipeline_is_there_and_visits_the_generators_timesteps(made, tmp_path, monkeypatch):
    task = made.export(tmp_path, export__pipeline=True)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "export", torch_dtype=torch.float32)
    assert type(pipeline) is type(made.pipeline)
    for name, part in made.pipeline.components.items():
        if isinstance(part, torch.nn.Module) and name != task.backbone.part:
            assert all(torch.equal(a, b) for a, b in zip(part.parameters(), getattr(pipeline, name).parameters(), strict=True))
    pipeline.scheduler.set_timesteps(1, sigmas=[1.0]) if made.row.name == "zimage" else pipeline.scheduler.set_timesteps(1)
    assert pipeline.scheduler.timesteps.tolist() == [{"zimage": 1000, "sdxl": 399}[made.row.name]]
    run_snippet(tmp_path / "export", monkeypatch)
    made.export(tmp_path, export__pipeline=True)  # over itself: what was linked is not written to
    assert (tmp_path / "export" / "vae" / "config.json").samefile(made.root / "base" / "vae" / "config.json")
    assert (made.root / "base" / "model_index.json").read_text() != (tmp_path / "export" / "model_index.json").read_text()


def snippet_of(folder):
    return re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]


def run_snippet(folder, monkeypatch):
    """In the export's folder, as its comment says."""
    monkeypatch.chdir(folder)
    exec(compile(snippet_of(folder), "README.md", "exec"), {})
    assert (folder / "sample.png").stat().st_size > 0


def test_the_card_tells_what_was_trained_on_what_and_how_it_scores(made, tmp_path, monkeypatch):
    made.export(tmp_path)
    text = (tmp_path / "export" / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\nlibrary_name: diffusers") and str(made.root) not in text.replace(
        snippet_of(tmp_path / "export"), ""
    )
    for words in ("| step | 7 of batch 2 |", "| objective | didr, β = 0.1", "| prompts | prompts.jsonl |", "one step at time"):
        assert words in text
    # means of 1, 2, 4 and their standard error; of what is finite
    assert "| hps | 2.333 ± 0.88 | 3.333 ± 0.88 | 1 ± 0 |" in text and "| reward | 0.5 ± 0.5 | 1.5 ± 0.5 | 1 ± 0 |" in text
    run_snippet(tmp_path / "export", monkeypatch)


def test_adapters_go_with_the_format(made, tmp_path):
    recipe = runs.recipe_of(
        made.row.config, made.row.backbone, made.settings | dict(made.row.adapters), export__format="single_file"
    )
    write_export(recipe.task, recipe.task.start("generator").load(), str(tmp_path))
    names = json.loads((raw := (tmp_path / ADAPTER).read_bytes())[8 : 8 + int.from_bytes(raw[:8], "little")])
    start = {"sdxl": "lora_unet_middle_block_1_transformer_blocks_", "zimage": "diffusion_model.layers."}[made.row.name]
    assert any(name.startswith(start) for name in names) and names["__metadata__"]["ss_network_alpha"] == "2"
    assert any(name.endswith(".alpha") for name in names)


def test_a_checkpoints_snippet_runs(made, tmp_path, monkeypatch):
    if made.row.name != "sdxl":
        pytest.skip("no whole checkpoints")
    made.export(tmp_path, export__pipeline=True, export__format="single_file")
    assert (tmp_path / "export" / CHECKPOINT).is_file()
    run_snippet(tmp_path / "export", monkeypatch)
