"""How a text-to-image run is judged: rewards and pictures, for the same prompts and noise every time."""

import functools
import json
import os
from collections.abc import Callable, Mapping

import jax
import numpy as np

from didr_jax.checks import named_function
from didr_jax.recipes.text_to_image.card import write_rewards
from didr_jax.recipes.text_to_image.conditions import PromptTable
from didr_jax.recipes.text_to_image.task import Task
from didr_jax.reporting.curves import curves
from didr_jax.reporting.page import write_report
from didr_jax.reporting.pairs import write_pairs
from didr_jax.text.prompts import read_prompts
from didr_jax.training.evaluation import Verdict, over_rows
from didr_jax.training.hacking import Tolerance, Watched
from didr_jax.training.reports import picture_grid, save_picture, to_bytes, write_summary
from didr_jax.training.run import Products, Run
from didr_jax.training.startup import is_first_process
from didr_jax.types import PyTree, Weights
from didr_jax.whole_files import whole_file

Generator = tuple[PyTree, PyTree | None]  # (parameters, adapter)


def first_prompts(task: Task, n: int) -> list[str]:
    """The first n prompts of `config.eval.prompts`, or of the training file where that is empty."""
    section = task.config.eval
    if section.prompts:
        return read_prompts(section.prompts, task.config.data.column, n)
    return task.prompts[:n]


class PromptJudge:
    """Images, and reward terms, of a generator on the first n evaluation prompts.

    Args:
      task: what is judged.
      n: how many prompts.
      seed: of the noise.
      with_rewards: score the images; otherwise no reward is read.

    Attributes:
      weights: what `run` reads.
    """

    def __init__(self, task: Task, n: int, seed: int, with_rewards: bool = True):
        self._task, self._n, self._seed = task, n, seed
        self._scored = with_rewards and task.mix is not None
        self.weights: dict[str, Weights] = task.finishing(with_rewards) | task.under_adapters()
        # Parameters are arguments: a program must not hold a copy of a model as a constant.
        self._latents = jax.jit(lambda generator, rows: task.generate(generator[0], generator[1], rows["z"], rows["c"]))
        self._finish = jax.jit(self._image_and_scores)

    @functools.cached_property
    def table(self) -> PromptTable:
        return self._task.table(first_prompts(self._task, self._n), self._scored)

    def _image_and_scores(self, frozen, x0, c):
        if not self._scored:
            return {"image": self._task.decode(frozen, x0)}
        score = self._task.score(frozen, x0, c)
        return {"image": self._task.decode(frozen, x0), "total": score.total, "terms": score.terms}

    def run(self, frozen: PyTree, generator: Generator) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Images `[n, H, W, 3]` in [-1, 1] and `{reward: [n]}`, each in its published units and their mix, `reward`."""
        n, key = len(self.table.prompts), jax.random.key(self._seed)
        z = np.stack([jax.random.normal(jax.random.fold_in(key, i), self._task.backbone.noise_shape) for i in range(n)])

        def draw(params, rows):
            return self._finish(params["frozen"], self._latents(params["generator"], rows), rows["c"])

        params = {"frozen": {name: frozen[name] for name in self.weights}, "generator": generator}
        drawn = over_rows(draw, params, {"z": z, "c": self.table.everything}, self._task.config.eval.batch_size)
        scores = {"reward": drawn["total"], **drawn["terms"]} if self._scored else {}
        return drawn["image"], scores

    def grid(self, images: np.ndarray) -> np.ndarray:
        """A picture of the first images."""
        section = self._task.config.eval
        return picture_grid(to_bytes(images[: section.pictures or None]), section.columns)

    def figures(self, images: np.ndarray, scores: Mapping[str, np.ndarray]) -> dict[str, float]:
        """What `run` returned as numbers: the mean of every reward, and what `config.eval.judge` says of the images."""
        path, known = self._task.config.eval.judge, np.isfinite
        means = {name: float(np.nanmean(values)) if known(values).any() else np.nan for name, values in scores.items()}
        if not path:
            return means
        said = named_function(path, "config.eval.judge =")(to_bytes(images), list(self.table.prompts))
        return means | {name: float(value) for name, value in said.items()}


def _judge(task: Task) -> PromptJudge:
    return PromptJudge(task, task.config.eval.num, task.config.eval.seed)


def trained(task: Task, frozen: PyTree, products: Products, run: Run) -> Generator:
    """The generator that training left."""
    return task.pair("generator", frozen, run.load({"generator": products["align"]["generator"]})["generator"])


def initial(task: Task, frozen: PyTree, run: Run) -> Generator:
    """The generator that training began with."""
    if task.config.network.generator == "lora":
        return task.pair("generator", frozen, run.load({"generator": task.start("generator")})["generator"])
    weights = task.initial.cast(task.config.network.frozen_dtype)
    return run.load({"generator": weights})["generator"], None


def watched(task: Task) -> Watched | None:
    """Rewards that are held out, which may fall by a quarter of their spread, and what `config.eval.judge` calls diversity."""
    if task.mix is None:
        return None
    held_out = {name: model.spread for name, model in task.mix.models.items() if name not in task.mix.weights}
    kept = {name: Tolerance(fall=spread / 4) for name, spread in held_out.items()}
    return Watched("reward", kept | {"diversity": Tolerance(share=0.1)})


def in_the_loop(task: Task) -> Callable:
    """An evaluator's judge: the mean of every reward, and a grid of the same prompts and noise every time."""
    judge = functools.cache(lambda: _judge(task))

    def verdict(products, frozen) -> Verdict:
        images, scores = judge().run(frozen, task.pair("generator", frozen, products["generator"]))
        return Verdict(judge().figures(images, scores), {"samples": judge().grid(images)})

    return verdict


def figures(task: Task, products: Products, run: Run) -> dict[str, float]:
    """Mean of every reward, trained and held out, on the evaluation prompts."""
    judge = _judge(task)
    frozen = run.load(judge.weights)
    return judge.figures(*judge.run(frozen, trained(task, frozen, products, run)))


def evaluate(task: Task, products: Products, run: Run) -> None:
    """summary.json (a row before, one after); grids and pairs before and after for the same noise; curves, report.html."""
    config, judge = task.config, _judge(task)
    frozen, steps = run.load(judge.weights), task.backbone.few_step.label
    rows, pictures, drawn, rewards, scored = {}, {}, {}, {}, {}
    for file, label, generator in (
        ("before", f"{steps}, initial", lambda: initial(task, frozen, run)),
        ("after", f"{steps}, {config.align.objective}", lambda: trained(task, frozen, products, run)),
    ):
        images, scores = judge.run(frozen, generator())
        rows[label], pictures[file] = judge.figures(images, scores), judge.grid(images)
        drawn[file], rewards[file], scored[file] = to_bytes(images), scores.get("reward"), scores
    if is_first_process():
        write_summary(run.workdir, rows, run.log)
        write_rewards(run, scored["before"], scored["after"])
        for file, picture in pictures.items():
            save_picture(run.path(f"{file}.png"), picture)
        write_pairs(
            run.workdir, drawn["before"], drawn["after"], judge.table.prompts, rewards["before"], rewards["after"]
        )  # fmt: skip
        curves(run.workdir)
        write_report(run.workdir)
    run.log.say(f"wrote summary.json, before.png, after.png, curves_align.png and report.html to {run.workdir}")


def sample(task: Task, products: Products, run: Run) -> None:
    """A PNG per evaluation prompt in workdir/samples, and prompts.jsonl beside them, as `--mode=score` reads it."""
    judge = PromptJudge(task, task.config.sample.num, task.config.sample.seed, with_rewards=False)
    frozen = run.load(judge.weights)
    images, _ = judge.run(frozen, trained(task, frozen, products, run))
    folder = run.path("samples")
    if is_first_process():
        for i, image in enumerate(to_bytes(images)):
            save_picture(os.path.join(folder, f"{i:05d}.png"), image)
        with whole_file(os.path.join(folder, "prompts.jsonl")) as file:
            for i, prompt in enumerate(judge.table.prompts):
                file.write(json.dumps({"image": f"{i:05d}.png", "prompt": prompt}, ensure_ascii=False) + "\n")
    run.log.say(f"wrote {len(images)} images and prompts.jsonl to {folder}")
