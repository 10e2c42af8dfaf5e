"""The recipe of every text-to-image backbone: one stage, `align`; what is checked before it; and its modes."""

import dataclasses
import functools
import sys
from collections.abc import Mapping

import jax

from didr_jax.checks import named_function, require_choice
from didr_jax.models.published import PIPELINES
from didr_jax.models.remat import WORDS
from didr_jax.objectives import OBJECTIVES
from didr_jax.recipes.text_to_image import advice, benchmark, benchmark_models, export, recompute, report
from didr_jax.recipes.text_to_image.conditions import read_shapes
from didr_jax.recipes.text_to_image.doubts import doubts
from didr_jax.recipes.text_to_image.files import files
from didr_jax.recipes.text_to_image.rewards import chosen, require_reward, resolve_estimator, rewards_as_they_are
from didr_jax.recipes.text_to_image.task import Task
from didr_jax.rewards.custom import OWN, try_out
from didr_jax.rewards.fit import fit_weights
from didr_jax.rewards.kept import Kept
from didr_jax.rewards.scoring import pairs_in, score_folder
from didr_jax.rewards.tac import agreements, rankings_in, score_rankings, table
from didr_jax.training.evaluation import Evaluator
from didr_jax.training.recipe import Recipe
from didr_jax.training.reports import write_agreements
from didr_jax.training.run import Products, Run
from didr_jax.training.stages import Settled, Stage, game_stage
from didr_jax.training.startup import is_first_process
from didr_jax.training.step import Networks
from didr_jax.types import InputError
from didr_jax.weights.files import require_variant
from didr_jax.weights.hub import Files
from didr_jax.whole_files import write_json

TRAIN = ("full", "lora")
# Where things are kept, and what computes the same in another way: no part of what is trained.
FREE = (
    "data.cache",
    "data.batch_size",
    "data.encode",
    "network.remat",
    "network.vae_remat",
    "network.attention",
    "network.cross_attention",
    "network.vae_attention",
    "rewards.remat",
)
# mode -> what of a pipeline folder it reads besides the network's config; "text": the encoder's own folders.
PARTS = {
    "train": ("{network}", "vae", "text"),
    "eval": ("vae", "text"),
    "sample": ("vae", "text"),
    "benchmark": ("vae", "text"),
    "export": (),
    "compile": (),
}


class TextToImage(Recipe):
    """The recipe of a backbone.

    Args:
      config: of `configs/sdxl.py` or one like it.
      make_backbone: `config -> Backbone`.
      planning: see `Task`.
    """

    free = ("eval", "sample", "benchmark", "export", "score", "tac", *FREE)
    remedies = advice.REMEDIES
    luxuries = advice.LUXURIES

    def __init__(self, config, make_backbone, planning: bool = False):
        self.config, self._make_backbone = config, make_backbone
        self.task = Task(config, make_backbone, planning)
        self._found: Settled | None = None  # for all stages that are made: training makes a second one
        self.alone = ("score", "tac", *(["benchmark"] if benchmark_models.alone(config.benchmark) else []))
        self.stages = {"align": self.align}
        self.modes = {
            "eval": functools.partial(report.evaluate, self.task),
            "sample": functools.partial(report.sample, self.task),
            "benchmark": functools.partial(benchmark.benchmark, self.task),
            "export": functools.partial(export.export, self.task),
            "score": self.score,
            "tac": self.tac,
        }

    def planned(self) -> "TextToImage":
        """With HPSv2.1 if the objective needs a reward and none is chosen."""
        config = self.config.copy_and_resolve_references()
        if OBJECTIVES[config.align.objective].needs_reward and not chosen(config.rewards):
            config.rewards.hps = "published"
        return TextToImage(config, self._make_backbone, planning=True)

    def files(self, mode: str) -> Mapping[str, Files]:
        return files(self.config, self.task.backbone, mode)

    def check(self, mode: str) -> None:
        config = self.config
        for part, knob in (("network", "remat"), ("network", "vae_remat"), ("rewards", "remat")):
            require_choice(f"{part}.{knob}", config[part][knob], WORDS)
        if mode in ("score", "tac"):
            if not chosen(config.rewards):
                raise InputError(f"--mode={mode} has no reward: set config.rewards.hps or another")
            for key in ("images", "prompts") if mode == "score" else ("rankings",):
                _require_path(f"{mode}.{key}", config[mode][key])
            if mode == "tac" and config.tac.fit and len(set(chosen(config.rewards)) - set(config.rewards.held_out)) < 2:
                raise InputError("--fit weighs two or more rewards that are not in config.rewards.held_out; configure them")
            self._check_scoring(mode)
            return
        if mode == "benchmark":
            benchmark.check(config)
            if config.benchmark.images:
                return
        require_choice("data.encode", config.data.encode, ("cache", "in_loop"))
        if self.task.in_loop and mode == "compile" and not config.weights.base:
            raise InputError("config.data.encode=in_loop: the plan needs the text encoders' configs; give config.weights.base")
        for who in ("generator", "ta"):
            require_choice(f"network.{who}", config.network[who], TRAIN)
        if mode == "compile" and not config.weights.base:
            require_choice("compile.pipeline", config.compile.pipeline, PIPELINES)
        elif mode != "compile":
            _require_path("weights.base", config.weights.base)
        if config.eval.judge:
            named_function(config.eval.judge, "config.eval.judge =")
        self._check_pipeline(mode)
        if mode == "train":
            self._check_training()

    def _check_scoring(self, mode: str) -> None:
        section = self.config[mode]
        if mode == "score":
            pairs_in(section.images, section.prompts, section.outside)
        else:
            rankings_in(section.rankings, section.images, section.limit)
        assert self.task.mix is not None, "checked"
        for model in self.task.mix.models.values():
            model.weights.check()
            model.tokenize([""])

    def _check_pipeline(self, mode: str) -> None:
        backbone, config = self.task.backbone, self.config
        backbone.require([f"{backbone.part}/config.json", *backbone.config_parts])
        wanted = {"{network}": [backbone.part], "text": backbone.text_parts}
        backbone.require([name for part in PARTS[mode] for name in wanted.get(part, [part])])
        if config.weights.variant and backbone.given:
            networks = [backbone.part, "vae", *backbone.text_parts]
            require_variant(config.weights.variant, [*(backbone.folder / part for part in networks), backbone.generator_source()])
        if mode == "export":
            backbone.few_step, backbone.scheduler_json  # noqa: B018  (they raise)
            export.check_export(self.task)
            return
        backbone.check()
        backbone.prediction, backbone.few_step, backbone.event_shape, backbone.shapes  # noqa: B018  (they raise)
        if mode in ("train", "compile"):
            backbone.reward_image  # noqa: B018  (it raises)
        if mode in ("sample", "eval") and not config.eval.prompts or mode == "train":
            _require_path("data.prompts", config.data.prompts)
        if mode in ("sample", "eval"):
            report.first_prompts(self.task, config.sample.num if mode == "sample" else config.eval.num)
        if mode in ("sample", "eval", "benchmark"):
            backbone.image.weights.check()
            backbone.encoder().weights.check()
        for weights in benchmark_models.weights_of_model(self.task) if mode == "benchmark" else ():
            weights.check()

    def _check_training(self) -> None:
        task, config, backbone = self.task, self.config, self.task.backbone
        require_reward(config.align.objective, config.rewards)
        for who in ("generator", "ta"):
            task.start(who).check()
        prompts = task.prompts
        if config.eval.prompts:
            report.first_prompts(task, config.eval.num)
        for name in (name for name in OWN if config.rewards[name]):
            size, prefix = (config.image.height, config.image.width), config.rewards.prefix[name]
            some = [prefix + prompt for prompt in [*prompts, ""][:2]]
            try_out(config.rewards[name], config.rewards[f"{name}_differentiable"], size, some, name)
        resolve_estimator(config.align, task.mix)
        for weights in task.frozen().values():
            weights.check()
        if task.mix is not None:
            task.mix.params.check()  # with the text towers
        task.encoder.weights.check()
        for line in (*backbone.warnings, *doubts(config)) if is_first_process() else ():
            print(f"didr_jax: warning: {line}", file=sys.stderr, flush=True)

    def align(self, _products: Products) -> Stage:
        config = self.config.copy_and_resolve_references()
        config.align = resolve_estimator(config.align, self.task.mix)
        stage, make = self._stage(config, self.task.networks()), (self._make_backbone, self.task.planning)
        if not recompute.is_open(config):
            return stage

        @functools.cache
        def found() -> tuple[Settled, Stage]:
            # It may be asked for while a program is traced.  `ensure_compile_time_eval` would do as well, but where shapes
            # are made it would allocate what is constant: the optimisers' zeros, as large as the network several times.
            with jax.core.eval_context():
                self._found = self._found or recompute.settled(config, *make, stage)
                words = recompute.with_words(config, self._found.words)
                return self._found, self._stage(words, Task(words, *make).networks())

        measures = {name: (lambda *rows, name=name: found()[1].measures[name](*rows)) for name in stage.measures}
        step = lambda state, frozen, batch: found()[1].step(state, frozen, batch)
        return dataclasses.replace(stage, step=step, measures=measures, settled=lambda: found()[0])

    def _stage(self, config, networks: Networks) -> Stage:
        task = self.task

        return game_stage(
            "align",
            config,
            networks=networks,
            generator=task.start("generator"),
            ta=task.start("ta"),
            conditions=lambda rng, n: rng.integers(len(task.prompts), size=n),
            read=lambda some, drawn: task.conditions.rows(some, drawn),  # not before: it may have to embed all prompts
            condition_shapes=self._condition_shapes() if task.planning else None,
            frozen=task.frozen(),
            recompute_steps=recompute.recomputes_steps(config.network.remat),
            evals={"samples": Evaluator(config.eval.every, report.in_the_loop(task), watched=report.watched(task))},
            about=self._about,
        )

    def _about(self) -> list[str]:
        section, mix = self.config.rewards, self.task.mix
        lines = [f"{len(self.task.prompts):,} prompts of {self.config.data.prompts}"]
        if mix is not None:
            held_out = [name for name in mix.models if name in section.held_out]
            weighted = " + ".join(f"{section.weights[name]:g} {name}" for name in mix.models if name not in held_out)
            lines.append(f"reward {weighted or 'none'}" + (f"; held out: {', '.join(held_out)}" if held_out else ""))
        return lines

    def _condition_shapes(self):
        task, shape = self.task, lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype)
        tokens = {"tokens": read_shapes(task.mix, not task.in_loop)}
        if task.in_loop:
            return tokens | {"prompt": jax.tree.map(shape, task.encoder.tokenize([""]))}
        return tokens | {"text": task.backbone.text_shapes}

    def figures(self, products: Products, run: Run) -> dict[str, float]:
        return report.figures(self.task, products, run)

    def score(self, _products: Products, run: Run) -> None:
        """scores.csv: any images, by the configured rewards."""
        section = self.config.score
        models = list(self.task.mix.models.values()) if self.task.mix else []
        if is_first_process():
            out = run.path("scores.csv")
            options = dict(batch_size=section.batch_size, outside=section.outside, of=rewards_as_they_are(self.config.rewards))
            score_folder(section.images, section.prompts, models, out, **options)

    def tac(self, _products: Products, run: Run) -> None:
        """tac.json: how far every configured reward, and the mix, agrees with people's rankings; tac_fit.json: with which weights
        the mix would agree best."""
        section, mix = self.config.tac, self.task.mix
        assert mix is not None, "checked"
        if not is_first_process():
            return
        kept = Kept(run.path("tac.partial.jsonl"), rewards_as_they_are(self.config.rewards))
        options = dict(limit=section.limit, batch_size=section.batch_size, kept=kept)
        score = lambda path: score_rankings(path, section.images, mix, **options)
        scored = score(section.rankings)
        found = agreements(scored, score(section.validation) if section.validation else None)
        print(table(found))
        write_agreements(run.workdir, found)
        kept.remove()
        if section.fit:
            fit = fit_weights(scored, mix)
            print("\n".join(fit.lines()))
            write_json(run.path("tac_fit.json"), dataclasses.asdict(fit))


def _require_path(key: str, value: str) -> None:
    if not value:
        raise InputError(f"config.{key} is empty; give --config.{key}=PATH")
