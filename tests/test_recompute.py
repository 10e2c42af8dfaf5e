"""`remat=auto`: as little recomputation as fits, by shapes."""

import jax
import jax.numpy as jnp
import pytest
from test_plan import tiny, tiny_pipeline  # noqa: F401

from didr_jax import recipes
from didr_jax.models.remat import POLICIES, REMAT
from didr_jax.planning.liveness import most_alive
from didr_jax.planning.plan import main_stage, make_plan
from didr_jax.planning.recompute import Part, choose, in_words, measure
from didr_jax.planning.report import report
from didr_jax.planning.targets import target
from didr_jax.recipes.text_to_image.recipe import TextToImage
from didr_jax.training import flops
from didr_jax.training.chips import GIB, Room, room_here

KIB = 2**10


def shape(*dims):
    return jax.ShapeDtypeStruct(dims, jnp.float32)


def alive(f, *shapes):
    return most_alive(jax.make_jaxpr(f)(*shapes).jaxpr)


def test_a_chain_has_two_results_alive_and_a_sum_of_all_has_all():
    def chain(x):
        for _ in range(5):
            x = jnp.sin(x)
        return x

    def together(x):
        return sum(jax.lax.optimization_barrier([jnp.sin(x + i) for i in range(5)]))

    assert alive(chain, shape(256)) == 2 * KIB
    assert 6 * KIB <= alive(together, shape(256)) <= 11 * KIB  # five, and what they are made of


def test_a_gradient_keeps_what_it_needs_and_rematerialised_blocks_keep_their_inputs():
    def layers(wrap):
        def total(x):
            for _ in range(8):
                x = wrap(lambda x: jnp.sin(jnp.sin(jnp.sin(x))))(x)
            return x.sum()

        return jax.grad(total)

    kept, recomputed = alive(layers(lambda f: f), shape(256)), alive(layers(jax.checkpoint), shape(256))
    assert kept >= 3 * 8 * KIB and recomputed < kept / 2


def test_what_a_loop_returns_and_what_its_body_makes_are_there_together():
    def loop(x):
        return jax.lax.scan(lambda x, _: (jnp.sin(jnp.cos(x)), x), x, length=10)[1]

    assert 11 * KIB < alive(loop, shape(256)) <= 14 * KIB


ROWS, WIDTH = 32, 8


def gradient(word):
    """Of eight blocks: products with parameters, products of rows among themselves as attention has, activations."""

    def block(w, x):
        x = jnp.sin(jnp.sin(jnp.tanh(x @ w) @ w))
        return jnp.sin(jnp.einsum("bi,bij->bj", x, x[:, :, None] * x[:, None, :]))

    if word != "none":
        block = jax.checkpoint(block, policy=POLICIES[word])

    def total(w, x):
        for i in range(8):
            x = block(w[i], x)
        return x.sum()

    return jax.grad(total), (shape(8, WIDTH, WIDTH), shape(ROWS, WIDTH))


def part(words=REMAT, key="network.remat", passes=3, seen=None):
    def of(word):
        if seen is not None:
            seen.append((key, word))
        return gradient(word)

    return Part(key, words, of, passes, lambda word: 2, shape(8, WIDTH, WIDTH))


def test_the_fewest_operations_that_fit_are_chosen():
    operations, size = zip(*(measure(part(), word) for word in REMAT), strict=True)
    assert list(operations) == sorted(set(operations)) and list(size) == sorted(size, reverse=True)
    assert operations[0] == 3 * flops.count(gradient("none")[0], *gradient("none")[1])
    none, products, blocks = size
    chosen = {room: choose([part()], KIB, room + KIB) for room in (none, products, blocks, blocks - 1)}
    assert [choice.words["network.remat"] for choice in chosen.values()] == [*REMAT, "blocks"]
    assert [choice.fits for choice in chosen.values()] == [True, True, True, False]
    assert chosen[none].less_needs is None and chosen[products].less_needs == none + KIB
    assert choose([part(("blocks",))], 0, 2 * none).words == {"network.remat": "blocks"}  # a word that was given holds
    unknown = choose([part()], 0, None)
    assert unknown.words == {"network.remat": "blocks"}  # where memory is not known
    assert "not known" in in_words(unknown, Room(None, "an abacus"))


def test_memory_goes_where_it_saves_most_and_no_more_is_measured_than_needed():
    seen = []
    few, many = part(key="rewards.remat", passes=1, seen=seen), part(passes=9, seen=seen)
    none, products, blocks = (measure(part(), word)[1] for word in REMAT)
    assert choose([few, many], 0, none + products).words == {"rewards.remat": "products", "network.remat": "none"}
    assert choose([few, many], 0, none + blocks).words == {"rewards.remat": "blocks", "network.remat": "none"}
    seen.clear()
    assert set(choose([few, many], 0, 2 * none).words.values()) == {"none"} and len(seen) == 2


AUTO = {"network__remat": "auto", "network__vae_remat": "auto", "rewards__remat": "auto"}


def planned(**settings):
    config = tiny(compile__only_shapes=True, compile__topology="v5e:4x4", align__batch_size=16, **AUTO | settings)
    recipe = recipes.build(config).planned()
    recipe.check("compile")
    return config, recipe, main_stage(recipe, config)


def operations(stage):
    frozen = {name: weights.shapes for name, weights in stage.frozen.items()}
    return flops.count(stage.step, stage.shapes, frozen, stage.batch_shapes)


@pytest.mark.slow
def test_a_recipe_settles_what_the_config_leaves_open_and_says_so(tiny_pipeline):  # noqa: F811
    config, recipe, stage = planned(network__vae_remat="blocks")
    found = stage.settled()
    assert found.words == {"network.remat": "none", "rewards.remat": "none"}  # a word that was given holds
    assert recipe.config.network.remat == config.network.remat == "auto"  # the config keeps the word
    assert "network.remat=none, rewards.remat=none (auto)" in found.why and "TPU v5e" in found.why
    plan = make_plan(stage, config, target("v5e:4x4"))
    assert plan.words == found.words and found.why in report(plan, config, recipe)

    _, _, most = planned(network__vae_remat="blocks", network__remat="blocks", rewards__remat="blocks")
    assert most.settled() == ({}, "") and plan.flops < operations(most)


@pytest.mark.slow
def test_a_stage_is_put_together_of_shapes_and_before_its_step_is_traced(tiny_pipeline, monkeypatch):  # noqa: F811
    """Among the devices of a plan nothing can be computed, shapes neither; and zeros of full size may not fit those that are here."""
    _, _, stage = planned(network__vae_remat="blocks", rewards__remat="blocks")
    made, stage_of = [], TextToImage._stage

    def watched(*arguments):
        jax.eval_shape(lambda: made.append(jnp.zeros(())))
        return stage_of(*arguments)

    monkeypatch.setattr(TextToImage, "_stage", watched)
    stage.settled()
    assert made and all(isinstance(zeros, jax.core.Tracer) for zeros in made)  # the optimisers' are not allocated
    monkeypatch.setattr("didr_jax.recipes.text_to_image.recipe.Task", None)
    assert operations(stage) > 0


@pytest.mark.slow
def test_a_step_more_of_a_short_denoising_is_recomputed_once(tiny_pipeline):  # noqa: F811
    """By the blocks of its network; not by the step as well."""
    given = dict(network__vae_remat="none", network__remat="blocks", rewards__remat="none", align__estimator="drp")
    stages = {k: planned(align__num_steps=k, **given) for k in (2, 3)}
    recipe, stage = stages[2][1], stages[2][2]
    base, frozen = recipe.task.networks().reference, {name: weights.shapes for name, weights in stage.frozen.items()}
    c = {"text": jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), stage.batch_shapes["text"])}
    gradient = jax.grad(lambda x_t, t, c, frozen: base(frozen, x_t, t, c).sum())
    once = flops.count(gradient, shape(16, *recipe.task.backbone.event_shape), shape(16), c, frozen)
    more = operations(stages[3][2]) - operations(stage)
    assert 0.95 * once < more <= once  # what depends on the text alone is not computed again; twice would be a third more


def test_the_processor_has_the_hosts_memory():
    room = room_here()
    assert room.size is not None and 0.1 * GIB < room.size < 2**50 and "host" in room.what
