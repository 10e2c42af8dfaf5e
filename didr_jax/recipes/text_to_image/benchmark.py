"""`--mode=benchmark`: a published prompt set through the generator or the reference, and its tables.

Of `benchmark/NAME-MODEL/` in the workdir, `images/` is the set's own layout, `made.json` says what made them (others are not
mixed with them), `scores.jsonl` has a line a picture, and `benchmark.json` the tables.
"""

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from didr_jax.checks import require, require_choice
from didr_jax.recipes.text_to_image.benchmark_models import MODELS, claim, label, made_by, maker
from didr_jax.recipes.text_to_image.rewards import chosen, rewards_as_they_are
from didr_jax.recipes.text_to_image.task import Task
from didr_jax.rewards.kept import Kept
from didr_jax.suites import geneval, tables
from didr_jax.suites.grids import write_grids
from didr_jax.suites.produce import Picture, meet, produce
from didr_jax.suites.prompts import Prompt
from didr_jax.suites.score import find_pictures, score_suite
from didr_jax.suites.table import Suite, first, open_suite
from didr_jax.training.run import Products, Run
from didr_jax.training.startup import is_first_process, on_first
from didr_jax.types import InputError
from didr_jax.whole_files import whole_file, write_json


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be done.

    Attributes:
      suite: the prompt set.
      whole, prompts: all of its prompts, and those that are asked for.
      per_prompt: pictures of each.
      section: `config.benchmark`.
    """

    suite: Suite
    whole: Sequence[Prompt]
    prompts: Sequence[Prompt]
    per_prompt: int
    section: Any


def open_job(section) -> Job:
    """Raises InputError for what cannot be done."""
    suite, whole = open_suite(section.name, section.prompts)
    for knob, least in (("per_prompt", 0), ("limit", 0), ("batch_size", 1), ("steps", 1), ("score_batch_size", 1)):
        require(section[knob] >= least, f"benchmark.{knob}", section[knob], f"must be at least {least}")
    per_prompt = section.per_prompt or suite.per_prompt
    if suite.grid > 1:
        rule = f"the pictures of a prompt lie in one grid of {suite.grid} by {suite.grid}"
        require(per_prompt == suite.grid**2, "benchmark.per_prompt", per_prompt, rule)
    return Job(suite, whole, first(whole, section.limit), per_prompt, section)


def check(config) -> Job:
    """Raises InputError for a section that cannot be used, before anything is read that takes long."""
    section = config.benchmark
    require_choice("benchmark.model", section.model, MODELS)
    job = open_job(section)
    for knob in ("results", "detections"):
        if section[knob] and section.name != "geneval":
            raise InputError(f"config.benchmark.{knob} is for benchmark.name=geneval, not {section.name}")
    judged = bool(section.results or section.detections)
    if section.results:
        geneval.read_results(section.results)
    if section.detections:
        geneval.read_detections(section.detections)
    if section.images and not chosen(config.rewards) and not judged:
        raise InputError("--mode=benchmark has pictures and no reward to score them by: set config.rewards.hps or another")
    if section.images and not judged:
        find_pictures(job.suite, job.prompts, job.per_prompt, section.images)
    return job


def benchmark(task: Task, products: Products, run: Run) -> None:
    """Makes the pictures that are missing, scores them, and writes and prints the tables."""
    config = task.config
    job = check(config)
    section, elsewhere = job.section, bool(config.benchmark.images)
    name = Path(os.path.abspath(section.images)).name if elsewhere else label(config, run)
    folder = run.path("benchmark", f"{section.name}-{name}")
    images = section.images if elsewhere else os.path.join(folder, "images")
    _warn(job, run)
    with contextlib.ExitStack() as held:
        if not elsewhere:
            on_first(lambda: claim(folder, made_by(task, run, job.whole, job.per_prompt), held))
            _make(task, run, products, job, images)
        about = {"benchmark": section.name, "model": name, "images": os.path.abspath(images), "prompts": len(job.prompts)}
        about |= {"published_prompts": job.suite.count, "per_prompt": job.per_prompt, "seed": section.seed}
        found = about | _judged(job, run, images, folder) | _scored(task, job, run, images, folder)
        if is_first_process():
            write_json(os.path.join(folder, "benchmark.json"), found)
    meet("benchmark")
    run.log.say(f"wrote benchmark.json to {folder}" + (f"; {job.suite.note}" if job.suite.note else ""))


def _warn(job: Job, run: Run) -> None:
    wanted, count = job.suite.count, len(job.prompts)
    if wanted and count != wanted:
        run.log.say(f"warning: {count:,} prompts, and the published set has {wanted:,}: numbers do not compare with others'")
    if job.section.per_prompt not in (0, job.suite.per_prompt):
        run.log.say(f"warning: {job.per_prompt} pictures of a prompt, where the set asks for {job.suite.per_prompt}")


def _make(task: Task, run: Run, products: Products, job: Job, images: str) -> None:
    """The pictures and what lies beside them."""
    grid = job.suite.grid > 1
    place = functools.partial(os.path.join, os.path.join(os.path.dirname(images), "cells") if grid else images)
    single = lambda name, k: f"{name}_{k}.png" if grid else job.suite.names(name, k, job.per_prompt)[0]
    pictures = [
        Picture(i, prompt.number, k, place(single(prompt.name, k)))
        for i, prompt in enumerate(job.prompts)
        for k in range(job.per_prompt)
    ]
    run.log.say(
        f"{job.section.name}: {len(job.prompts):,} prompts × {job.per_prompt} by {label(task.config, run)}, into {images}"
    )
    produce(maker(task, run, products, job.prompts), pictures, job.suite.saved, run.mesh, job.section.batch_size, run.log.say)
    if grid:
        cells = [[place(single(prompt.name, k)) for k in range(job.per_prompt)] for prompt in job.prompts]
        write_grids(cells, [os.path.join(images, job.suite.names(p.name, 0, job.per_prompt)[0]) for p in job.prompts], job.suite)
    if is_first_process():
        for prompt in job.prompts:
            for name, text in job.suite.beside(prompt).items():
                with whole_file(os.path.join(images, name)) as file:
                    file.write(text)
        if job.section.name == "plain":
            _write_prompts(job, images)
    meet("layout")


def _write_prompts(job: Job, images: str) -> None:
    """prompts.jsonl, as `--mode=score` reads it."""
    names = lambda prompt: [job.suite.names(prompt.name, k, job.per_prompt)[0] for k in range(job.per_prompt)]
    lines = [{"image": name, "prompt": prompt.text} for prompt in job.prompts for name in names(prompt)]
    _write_lines(os.path.join(images, "prompts.jsonl"), lines)


def _scored(task: Task, job: Job, run: Run, images: str, folder: str) -> dict[str, Any]:
    """The rewards' tables, printed; nothing where there is no reward."""
    if task.mix is None:
        return {}
    files = find_pictures(job.suite, job.prompts, job.per_prompt, images)
    kept = Kept(os.path.join(folder, f"scores.partial.{jax.process_index()}.jsonl"), rewards_as_they_are(task.config.rewards))
    scores = score_suite(job.suite, job.prompts, files, task.mix, job.section.score_batch_size, kept)
    rows = tables.rows_of(job.prompts, scores, job.suite.chunks)
    for line in tables.text_of(rows):
        run.log.say(line)
    if is_first_process():
        lines = []
        for i, (prompt, row) in enumerate(zip(job.prompts, files, strict=True)):
            for k, file in enumerate(row):
                told = {"image": os.path.relpath(file, images), "k": k, "prompt": prompt.text, **prompt.groups}
                lines.append(told | {name: _plain(values[i, k]) for name, values in scores.items()})
        _write_lines(os.path.join(folder, "scores.jsonl"), lines)
    kept.remove()
    return {"rewards": [row.content() for row in rows]}


def _plain(value: np.floating) -> float | None:
    """As JSON has numbers."""
    return float(value) if np.isfinite(value) else None


def _judged(job: Job, run: Run, images: str, folder: str) -> dict[str, Any]:
    """GenEval's score, printed, of its program's results or by its rules; nothing where neither is given."""
    section = job.section
    if section.results:
        judged = geneval.read_results(section.results)
    elif section.detections:
        pictures = [
            (job.suite.names(prompt.name, k, job.per_prompt), prompt.row) for prompt in job.prompts for k in range(job.per_prompt)
        ]
        judged = geneval.judge_all(geneval.read_detections(section.detections), pictures)
        if is_first_process():
            _write_results(os.path.join(folder, "results.jsonl"), judged, [names[0] for names, _ in pictures])
    else:
        return {}
    if len(judged) != len(job.prompts) * job.per_prompt:
        run.log.say(f"warning: {len(judged):,} pictures were judged, of {len(job.prompts) * job.per_prompt:,} of the set")
    found = geneval.summary(judged)
    for line in geneval.text_of(found):
        run.log.say(line)
    return {"geneval": {name: mean._asdict() for name, mean in found.items()}}


def _write_results(path: str, judged: Sequence[geneval.Judged], names: Sequence[str]) -> None:
    """As GenEval's own program writes them."""
    lines = [
        {"filename": name, "tag": each.tag, "prompt": json.loads(each.prompt)["prompt"], "correct": each.correct,
         "reason": each.reason, "metadata": each.prompt}
        for name, each in zip(names, judged, strict=True)
    ]  # fmt: skip
    _write_lines(path, lines)


def _write_lines(path: str, lines: Sequence[dict]) -> None:
    with whole_file(path) as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
