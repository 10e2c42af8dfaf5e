"""--mode=compile: shapes of published pipelines, plans against what is really allocated, and its refusals."""

import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import pytest

from configs import sd15, sdxl, zimage
from didr_jax import recipes
from didr_jax.config import flatten
from didr_jax.models.published import PIPELINES
from didr_jax.planning import plan, targets
from didr_jax.planning.partitioned import Collective
from didr_jax.planning.plan import main_stage
from didr_jax.planning.proposals import PROPOSALS
from didr_jax.planning.report import FIRST, LAST, advice
from didr_jax.planning.report import report as whole_report
from didr_jax.recipes.text_to_image.advice import REMEDIES
from didr_jax.recipes.text_to_image.recipe import TextToImage
from didr_jax.recipes.text_to_image.recompute import KEYS
from didr_jax.recipes.text_to_image.stable_diffusion import StableDiffusion
from didr_jax.training import chips
from didr_jax.training.flops import count
from didr_jax.training.validate import validate
from didr_jax.types import InputError

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TINY = {
    "unet": dict(
        block_out_channels=[8], layers_per_block=1, norm_num_groups=4, down_block_types=["DownBlock2D"],
        up_block_types=["UpBlock2D"], transformer_layers_per_block=[2], attention_head_dim=[2],
        cross_attention_dim=24, use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=6, projection_class_embeddings_input_dim=56,
    ),
    "vae": dict(
        block_out_channels=[8, 8], down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2, norm_num_groups=4,
    ),
}  # fmt: skip


def redness(images, tokens):
    return images[..., 0].mean((1, 2)) - images.mean((1, 2, 3))


def tiny(**more):
    """A config for the tiny pipeline, which must be among PIPELINES."""
    config = sdxl.get_config()
    config.update_from_flattened_dict(
        {
            "compile.pipeline": "tiny", "image.height": 16, "image.width": 16, "rewards.custom": "test_plan:redness",
            "rewards.custom_differentiable": True, "align.batch_size": 8, "align.ta_updates": 1, **{key: "blocks" for key in KEYS},
        } | {key.replace("__", "."): value for key, value in more.items()}
    )  # fmt: skip
    return config


@pytest.fixture
def tiny_pipeline(monkeypatch):
    monkeypatch.setitem(PIPELINES, "tiny", TINY)
    monkeypatch.syspath_prepend(os.path.join(REPO, "tests"))


def planned(config):
    recipe = recipes.build(config).planned()
    recipe.check("compile")
    return main_stage(recipe, config)


def size(tree):
    return sum(math.prod(a.shape) for a in jax.tree.leaves(tree))


def test_the_published_architectures_have_the_published_numbers_of_parameters():
    stage = planned(sdxl.get_config())
    assert size(stage.frozen["base"].shapes) == size(stage.shapes.ta) == 2_567_463_684
    assert size(stage.frozen["vae"].shapes) == 49_490_199  # of 83,653,863: the encoder is not loaded
    assert size(stage.frozen["rewards"].shapes["hps"]) == 632_076_801  # of 986,109,441: the step has no text tower
    assert stage.batch_shapes["tokens"]["hps"]["direction"].shape == (6, 128, 1024)
    batch = stage.batch_shapes
    assert batch["text"]["prompt"].shape == (6, 128, 77, 2048) and batch["text"]["pooled"].shape == (6, 128, 1280)
    stage = planned(sd15.get_config())
    assert size(stage.frozen["base"].shapes) == 859_520_964 and size(stage.frozen["vae"].shapes) == 49_490_199
    stage = planned(zimage.get_config())
    assert size(stage.frozen["base"].shapes) == 6_154_908_736  # published as 6.155 B


def test_all_rewards_have_shapes():
    config = sdxl.get_config()
    section = config.rewards
    for name in ("hps", "pickscore", "imagereward", "clipscore", "aesthetic"):
        section[name] = "anywhere"
    params = TextToImage(config, StableDiffusion).planned().task.mix.params.shapes
    # ViT-H/14 twice, BLIP ViT-L with BERT and a head, ViT-L/14 whole, its image tower with a head
    assert {name: round(size(tree) / 1e6) for name, tree in params.items()} == {
        "hps": 986, "pickscore": 986, "imagereward": 446, "clipscore": 428, "aesthetic": 305,
    }  # fmt: skip


def test_full_size_networks_cost_what_is_known():
    """6.63 TFLOP an evaluation of SDXL's UNet, 8.93 a decoding, 0.51 one by the tiny VAE, at 1024²."""
    backbone = StableDiffusion(sdxl.get_config())
    backbone.config.network.reward_vae = "published"
    x, t = jax.ShapeDtypeStruct((1, 128, 128, 4), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    assert count(backbone.network, backbone.shapes, x, t, backbone.text_shapes) == pytest.approx(6.63e12, rel=1e-3)
    assert count(backbone.image.decode, {"vae": backbone.image.weights.shapes}, x) == pytest.approx(8.92e12, rel=1e-3)
    small = backbone.reward_image
    assert count(small.decode, {"reward_vae": small.weights.shapes}, x) == pytest.approx(0.51e12, rel=2e-3)


PROGRAM = """
    import json, sys
    import jax
    from didr_jax import recipes
    from didr_jax.models.published import PIPELINES
    from didr_jax.training.parallel import create, make_mesh, put, put_batch, shardings
    from didr_jax.planning.plan import main_stage, make_plan
    from didr_jax.planning.targets import target
    import jax.numpy as jnp
    from test_plan import TINY, tiny

    PIPELINES["tiny"] = TINY
    config = tiny(mesh__data=2, mesh__fsdp=4, mesh__min_size=64)
    stage = main_stage(recipes.build(config).planned(), config)
    config.compile.only_shapes = True
    plan = make_plan(stage, config, target(""))
    zeros = lambda tree: jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), tree)
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        state, frozen = zeros(stage.shapes), {name: zeros(weights.shapes) for name, weights in stage.frozen.items()}
        state, frozen = (put(tree, shardings(tree, config, mesh)) for tree in (state, frozen))
        batch = put_batch(zeros(stage.batch_shapes), mesh, stage.batch_axis)
    device = jax.devices()[3]
    here = lambda tree: sum(
        shard.data.nbytes for a in jax.tree.leaves(tree) for shard in a.addressable_shards if shard.device == device
    )
    real = {f"state {k}": here(v) for k, v in vars(state).items() if k not in ("step", "skipped", "streak")}
    real |= {f"frozen {k}": here(v) for k, v in frozen.items()} | {"batch": here(batch)}
    json.dump({"plan": plan.parts, "real": real, "counters": here((state.step, state.skipped, state.streak))},
              open(sys.argv[1], "w"))
"""


def test_the_parts_are_what_eight_devices_really_hold(tmp_path):
    environment = os.environ | {"PYTHONPATH": f"{REPO}:{REPO}/tests", "JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path / "facts.json")]
    subprocess.run(command, cwd=REPO, env=environment, check=True, timeout=300)
    facts = json.loads((tmp_path / "facts.json").read_text())
    # The optimisers' own counters are arrays of theirs; ours are told apart.
    assert facts["plan"] == facts["real"] | {"counters": facts["counters"]}
    assert facts["real"]["state ta"] < 0.3 * size_of_tiny() and facts["real"]["frozen rewards"] == 0


def size_of_tiny():
    """Bytes of the tiny UNet in float32."""
    from didr_jax.models.unet import UNet
    from didr_jax.models.unet_config import UNetConfig

    unet = UNet(UNetConfig.from_json(TINY["unet"]))
    added = {"text_embeds": jnp.zeros((1, 20)), "time_ids": jnp.zeros((1, 6))}
    init = lambda: unet.init(jax.random.key(0), jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), jnp.zeros((1, 1, 24)), added)
    return 4 * size(jax.eval_shape(init))


def machine(name="v5e", size=16):
    return targets.Target(f"{name}:test", chips.CHIPS[name], size, lambda: pytest.fail("nothing is compiled"))


def made(needed, refused="", **parts):
    return plan.Plan(
        "align", machine(), {"data": 16, "fsdp": 1, "tensor": 1}, 128, 1, parts or {"state ta": 2 * chips.GIB},
        operations={"bfloat16": 217e12 * 128, "float32": 37e12 * 128},
        temporaries=needed and needed - 2 * chips.GIB, needed=needed, refused=refused, seconds=1.0,
    )  # fmt: skip


def test_the_verdict_and_what_to_change():
    config = sdxl.get_config()
    assert made(3 * chips.GIB).fits and made(17 * chips.GIB).fits is False and made(None).fits is None
    assert made(None, big=17 * chips.GIB).fits is False and made(None, "Ran out of memory").fits is False
    config.network.remat = "blocks"
    first, second, *_, last = advice((*FIRST, *REMEDIES, *LAST), made(17 * chips.GIB), config)
    assert "mesh.fsdp=-1" in first and "micro_batches=8" in second and "larger machine" in last
    report = lambda plan, config: whole_report(plan, config, TextToImage(config, StableDiffusion))
    text = report(made(17 * chips.GIB), config)
    assert "does NOT fit" in text and "254 TFLOP" in text
    assert "remat=products" in report(made(11 * chips.GIB), config)
    assert "remat=products" not in text + report(made(12 * chips.GIB), config)
    seconds = 254e12 * 128 / (16 * 197e12 * 0.4)  # a TPU multiplies float32 as bfloat16
    on_gpu = dataclasses.replace(made(1), machine=machine("h100", 8))
    assert on_gpu.step_seconds(0.4) == pytest.approx((217e12 + 2 * 37e12) * 128 / (8 * 989e12 * 0.4))
    assert "float32             37 TFLOP, at 1/2 of the peak" in report(on_gpu, config)
    assert made(1).step_seconds(0.4) == pytest.approx(seconds) and f"{seconds:.3g} s" in text


def test_communication_is_told_beside_the_products():
    """A gather of 16 GiB over the sixteen chips of an open v5e torus: 15 GiB at 100 GB/s."""
    config, gather = sdxl.get_config(), Collective("all-gather", (), 16.0 * chips.GIB, 1, "", tuple(range(16)))
    report = lambda plan: whole_report(plan, config, TextToImage(config, StableDiffusion))
    counted = dataclasses.replace(made(chips.GIB), collectives=(gather,))
    products, sent = counted.step_seconds(config.compile.utilisation), 15 * chips.GIB / 100e9
    assert counted.communication is None and "16 GiB pass through a device's collectives" in report(counted)
    known = dataclasses.replace(counted, machine=dataclasses.replace(machine(), island=targets.ISLANDS["v5e"]))
    assert known.communication.seconds == pytest.approx(sent)
    said = f"15 GiB sent by a device: {sent:.3g} s, {sent / products:.0%} of the products'; a step then takes {products:.3g} s"
    assert said in report(known)
    assert "communication         not known" in report(made(chips.GIB))


def on_gpus(size=8, fsdp=8, held=2.0, temporaries=9.0, batch=128, micro_batches=16):
    """A plan on H100s (79 GiB); GiB of a device's share of the parameters, and of temporaries."""
    where = targets.Target(
        f"h100:{size}", chips.CHIPS["h100"], size, lambda: pytest.fail("nothing is compiled"), island=targets.ISLANDS["h100"]
    )
    mesh = {"data": size // fsdp, "fsdp": fsdp, "tensor": 1}
    parts = {"state ta": int(held * chips.GIB), "batch": chips.GIB // 8}
    needed = sum(parts.values()) + int(temporaries * chips.GIB)
    return plan.Plan(
        "align", where, mesh, batch, micro_batches, parts, 1e15, temporaries=int(temporaries * chips.GIB), needed=needed
    )


@pytest.mark.parametrize(
    "planned, proposed",
    [
        # adapters: sixteen gibibytes whole, beside nine of temporaries; eight samples at a time are seventy-two
        (on_gpus(), ["mesh.data=-1 mesh.fsdp=1", "align.micro_batches=2 "]),
        (on_gpus(temporaries=9.5), ["mesh.data=-1 mesh.fsdp=1", "align.micro_batches=4 "]),
        (on_gpus(temporaries=20.0), ["mesh.data=-1 mesh.fsdp=1", "align.micro_batches=8 "]),
        (on_gpus(held=9.0, temporaries=40.0), []),  # seventy-two gibibytes whole, and twice forty
        (on_gpus(held=9.0, temporaries=9.0, batch=120, micro_batches=15), ["align.micro_batches=3 "]),  # 15 = 3 × 5
        (on_gpus(size=64, fsdp=64, held=2.0, batch=256, micro_batches=4), ["mesh.data=8 mesh.fsdp=-1", "align.micro_batches=1 "]),
        (on_gpus(size=64, fsdp=8, held=9.0, batch=64, micro_batches=1), []),  # as it should be
        (on_gpus(fsdp=1, held=16.0, batch=8, micro_batches=1), []),
    ],
)  # fmt: skip
def test_a_plan_that_fits_proposes_to_send_less(planned, proposed):
    lines = advice(PROPOSALS, planned, sdxl.get_config())
    assert len(lines) == len(proposed) and all(words in line for words, line in zip(proposed, lines, strict=True)), lines


def test_what_a_compiler_says_of_a_program_that_is_too_large():
    message = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 23.51G of 15.75G hbm. Exceeds by 7.76G."
    said, wanted = plan.refusal(message)
    assert said.startswith("Ran out of memory") and wanted == pytest.approx(23.51 * chips.GIB)
    message = (  # what libtpu 0.0.42 said of Z-Image on v6e:4x4
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (89.21G) exceeds "
        "available HBM (31.25G)"
    )
    said, wanted = plan.refusal(message, held=2 * chips.GIB)
    assert said.startswith("Ran out of memory") and wanted == pytest.approx(91.21 * chips.GIB)
    assert plan.refusal("INTERNAL: something else") == ("", None)


@pytest.mark.parametrize(
    "name, fragments",
    [("v9:2x2", ["no such chip"]), ("v5e", ["like v5e:4x4"]), ("v5p:2x2", ["like v5p:2x2x4"]), ("h100:0", ["h100:8"])],
)
def test_machines_that_there_are_not(name, fragments):
    with pytest.raises(InputError) as refused:
        targets.target(name)
    for fragment in [name, *fragments]:
        assert fragment in str(refused.value)


def test_the_effort_is_for_the_compiler_of_tpus_alone():
    """At JAX's own effort a full-size step takes it many times as long; a plan is not worth that."""
    key = "jax_exec_time_optimization_effort"
    effort = lambda: jax.config.values[key]
    before = effort()
    try:
        targets.target("h100:8", -0.5)
        assert effort() == before
        targets.target("v5e:2x2", -0.5)
        assert effort() == -0.5
    finally:
        jax.config.update(key, before)
    config = sdxl.get_config()
    assert config.compile.effort == -1
    config.compile.effort = -2.0
    with pytest.raises(InputError, match="compile.effort"):
        validate(config)


@pytest.mark.parametrize(
    "name, module, package",
    [("v5e:2x2", "libtpu", "jax[tpu]"), ("h100:8", "jax_cuda13_plugin", "jax[cuda13]")],
)
def test_a_compiler_that_is_not_installed_is_named(name, module, package):
    if importlib.util.find_spec(module):
        pytest.skip(f"{module} is installed")
    with pytest.raises(InputError, match="pip install") as refused:
        targets.target(name).devices()
    assert package in str(refused.value)


def test_only_shapes_needs_no_compiler_and_checks_the_batch(tiny_pipeline):
    config = tiny(compile__only_shapes=True, mesh__fsdp=4, mesh__data=-1)
    made = plan.make_plan(planned(config), config, machine(size=8))
    assert made.mesh == {"data": 2, "fsdp": 4, "tensor": 1} and made.flops > 0 and made.needed is None
    config.align.batch_size = 6
    with pytest.raises(InputError, match="multiple of 8"):
        plan.make_plan(planned(config), config, machine(size=8))


@pytest.mark.parametrize("key", ["network.remat", "network.vae_remat", "rewards.remat"])
def test_words_for_what_to_recompute_are_checked(tiny_pipeline, key):
    with pytest.raises(InputError, match=f"config.{key} = 'product' is not known; did you mean products"):
        planned(tiny(rewards__custom="", rewards__hps="yes", **{key.replace(".", "__"): "product"}))


COMMAND = """
    from didr_jax import cli
    from didr_jax.models.published import PIPELINES
    from test_plan import TINY

    PIPELINES["tiny"] = TINY
    cli.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v5e:2x2", "h100:2"])
def test_a_tiny_step_compiles_for_machines_that_are_not_here(name):
    """From the command line, in a process that no test has told its platform, and with `remat=auto`."""
    module = "jax_cuda13_plugin" if name.startswith("h100") else "libtpu"
    if not importlib.util.find_spec(module):
        pytest.skip(f"{module} is not installed")
    auto = {key.replace(".", "__"): "auto" for key in KEYS}
    away = dict(mesh__host=("^ema/", "/(mu|nu)/"), mesh__min_size=16)  # a GPU that is only described has no memories of its own
    knobs = flatten(tiny(mesh__data=1, mesh__fsdp=-1, compile__topology=name, align__estimator="drp", **auto, **away))
    before = flatten(sdxl.get_config())
    changed = [f"--config.{key}={value}" for key, value in knobs.items() if value != before[key]]
    path = os.pathsep.join([REPO, os.path.join(REPO, "tests")])
    environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"} | {"PYTHONPATH": path}
    command = [sys.executable, "-c", textwrap.dedent(COMMAND), "--config=configs/sdxl.py", "--mode=compile", *changed]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    for words in (
        "   fits",
        "activations and other temporaries",
        "of the host's memory besides",
        "network.remat=none, network.vae_remat=none",
        "(auto)",
        "sent by a device",
    ):
        assert words in done.stdout, done.stdout
