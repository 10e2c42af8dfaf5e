"""What the networks of a text-to-image step recompute where the config leaves it open: `remat=auto`, resolved.

It is resolved once, when a stage's step is first asked for, for the devices of the run or of the plan; the config keeps the word, so that a
run may go on elsewhere.
"""

import functools
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from didr_jax.builders import estimate_of
from didr_jax.diffused_reward import estimator_of
from didr_jax.models.remat import AUTO, REMAT
from didr_jax.objectives import OBJECTIVES
from didr_jax.planning.plan import held_parts
from didr_jax.planning.recompute import Part, choose, in_words
from didr_jax.planning.targets import target
from didr_jax.recipes.text_to_image.conditions import read_shapes
from didr_jax.recipes.text_to_image.task import Task
from didr_jax.training.chips import room_here, room_of
from didr_jax.training.parallel import mesh_sizes
from didr_jax.training.stages import Settled, Stage
from didr_jax.training.startup import from_first
from didr_jax.types import PyTree

KEYS = ("network.remat", "network.vae_remat", "rewards.remat")


def is_open(config) -> bool:
    """Whether the config leaves anything to the machine."""
    return AUTO in (_get(config, key) for key in KEYS)


def settled(config, make_backbone: Callable, planning: bool, stage: Stage) -> Settled:
    """What "auto" stands for, the same in every process.

    Args:
      config: with `align` resolved.
      make_backbone, planning: as of `Task`.
      stage: the stage, whose shapes are looked at.
    """
    flat = {key: _get(config, key) for key in KEYS}

    def choice() -> str:
        machine = target(config.compile.topology if planning else "", config.compile.effort)
        there = planning and config.compile.topology and machine.chip
        room = room_of(machine.chip.memory, machine.chip.name) if there and machine.chip else room_here()
        ways = math.prod(mesh_sizes(config.mesh, machine.size)[:2])  # data × fsdp, which rows are spread over
        found = choose(_parts(config, make_backbone, planning, ways), _fixed(stage, config, machine), room.size)
        words = {key: word for key, word in found.words.items() if flat[key] == AUTO}
        return json.dumps([words, in_words(found._replace(words=words), room)])

    return Settled(*json.loads(from_first(choice)))


def recomputes_steps(word: str) -> bool:
    """Whether the steps of a short denoising are recomputed whole: not where the network recomputes its blocks, which would
    then be computed three times."""
    return word not in ("blocks", AUTO)


def with_words(config, words: Mapping[str, str]):
    """A copy of the config."""
    copy = config.copy_and_resolve_references()
    copy.update_from_flattened_dict(dict(words))
    return copy


def _get(config, key: str) -> str:
    section, name = key.split(".")
    return config[section][name]


def _fixed(stage: Stage, config, machine) -> int:
    """Bytes a device needs besides activations (`planning.recompute`)."""
    parts, network, section = held_parts(stage, config, machine), config.network, config[stage.name]
    trained = {who: parts.get(f"state {who}", 0) for who in ("generator", "ta")}
    cast = {
        who: size * jnp.dtype(network.dtype).itemsize // jnp.dtype(network.param_dtype).itemsize
        for who, size in trained.items()
        if network[who] == "full" and network.dtype != network.param_dtype
    }
    gradients = max(trained.values()) * (2 if section.micro_batches > 1 else 1)
    return sum(parts.values()) + gradients + max(cast.values(), default=0)


def _parts(config, make_backbone: Callable, planning: bool, ways: int) -> list[Part]:
    section, network = config.align, config.network
    rows = max(section.batch_size // section.micro_batches // ways, 1)
    task = functools.cache(lambda word: Task(with_words(config, {key: word for key in KEYS}), make_backbone, planning))
    objective, estimate = OBJECTIVES[section.objective], estimate_of(section)
    row, k, n = estimator_of(estimate), estimate.num_steps, estimate.num_samples

    plain = task(REMAT[-1])
    rewarded = plain.mix is not None
    linear = objective.estimates and rewarded and row.differentiates_denoiser
    through = (2 + (section.guidance != 1)) * objective.through_scores
    of_network = section.ta_updates + 1 + through + (row.evaluations(k, n)[1] if linear else 0)
    of_reward = (
        row.rewards(k, n)[0] if objective.estimates and row.differentiates_reward else int(objective.differentiates_reward)
    )
    of_reward *= rewarded

    who = "ta" if network.ta == "full" else "generator"  # full training keeps more
    shapes = {name: weights.shapes for name, weights in plain.frozen().items()}
    trained = plain.start(who).shapes
    x0 = jax.ShapeDtypeStruct((rows, *plain.backbone.event_shape), jnp.float32)
    t = jax.ShapeDtypeStruct((rows,), jnp.float32)
    image = jax.ShapeDtypeStruct((rows, config.image.height, config.image.width, 3), jnp.float32)
    spread = lambda tree: jax.tree.map(lambda a: jax.ShapeDtypeStruct((rows, *a.shape[1:]), a.dtype), tree)
    text = spread(dict(plain.backbone.text_shapes))

    def network_gradient(word: str) -> tuple[Callable, tuple]:
        at = task(word)

        def total(trained, x_t, frozen, t, text):
            return jnp.sum(at.predict(*at.pair(who, frozen, trained), x_t, t, {"text": text}))

        return jax.grad(total, (0, 1)), (trained, x0, shapes, t, text)

    def decoder_gradient(word: str) -> tuple[Callable, tuple]:
        at = task(word)
        return jax.grad(lambda x0, frozen: jnp.sum(at.decode(frozen, x0, to_train=True))), (x0, shapes)

    def reward_gradient(word: str) -> tuple[Callable, tuple]:
        mix = task(word).judge
        assert mix is not None, "a reward that is differentiated is there"
        tokens = spread(read_shapes(plain.mix, not plain.in_loop))
        total = lambda image, params, tokens: jnp.sum(mix.apply(params, image, tokens).total)
        return jax.grad(total), (image, shapes["rewards"], tokens)

    words = {key: REMAT if _get(config, key) == AUTO else (_get(config, key),) for key in KEYS}
    weights: PyTree = (trained, shapes)
    chains = n if row.rewards(k, n)[0] > 1 else 1  # short denoisings that are differentiated side by side
    steps = lambda word: linear * chains * (1 if recomputes_steps(word) else k)
    rest: Any = (of_reward, lambda word: min(of_reward, 1), weights)
    return [
        Part(KEYS[0], words[KEYS[0]], network_gradient, of_network, lambda word: 1 + through + steps(word), weights),
        Part(KEYS[1], words[KEYS[1]], decoder_gradient, *rest),
        Part(KEYS[2], words[KEYS[2]], reward_gradient, *rest),
    ]
