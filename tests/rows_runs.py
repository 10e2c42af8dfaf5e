"""Programs for eight devices, of tests/test_rows.py: what the partitioner makes of steps and of single networks.

python tests/rows_runs.py '{"run": "networks", "pinned": true, "out": "facts.json"}'
"""

import json
import os
import subprocess
import sys

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ROWS = 101  # per device and micro-batch: divides no other dimension, so that activations are known by it
DEVICES = 8

TINY_ZIMAGE = {
    "transformer": dict(
        dim=48, n_layers=2, n_refiner_layers=1, n_heads=6, cap_feat_dim=16, in_channels=4, axes_dims=[4, 2, 2],
        axes_lens=[96, 16, 16],
    ),
    "vae": dict(
        block_out_channels=[8, 8], down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
        norm_num_groups=4, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False,
    ),
}  # fmt: skip
COMMON = {
    "image.height": 16, "image.width": 16, "align.ta_updates": 1, "align.micro_batches": 2, "lora.rank": 2,
    "align.batch_size": 2 * DEVICES * ROWS, "mesh.data": 1, "mesh.fsdp": DEVICES, "mesh.min_size": 32,
    "network.dtype": "float32", "network.frozen_dtype": "float32",
}  # fmt: skip
CUSTOM = {"rewards.custom": "test_plan:redness", "rewards.custom_differentiable": True}
ZIMAGE = {"compile.pipeline": "tiny_zimage", "data.max_length": 40}
ADAPTERS = {"network.generator": "lora", "network.ta": "lora"}
# name -> (file of configs/, settings): a backbone joins by a row
STEPS = {
    "sdxl": ("sdxl", {"compile.pipeline": "tiny", "rewards.hps": "yes"}),
    "sdxl_adapters": ("sdxl", CUSTOM | ADAPTERS | {"compile.pipeline": "tiny", "network.generator_timesteps": (999, 749)}),
    "zimage_adapters": ("zimage", CUSTOM | ZIMAGE),
    "zimage": ("zimage", CUSTOM | ZIMAGE | {"network.generator": "full", "network.ta": "full", "network.remat": "products"}),
}


def run(folder, name: str, pinned: bool = True) -> dict:
    """The facts of a step, or of all "networks", found in a process of its own."""
    out = os.path.join(folder, f"{name}.json")
    environment = os.environ | {
        "PYTHONPATH": f"{REPO}:{REPO}/tests", "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(DEVICES),
        "JAX_ENABLE_COMPILATION_CACHE": "0",
    }  # fmt: skip
    command = [sys.executable, os.path.abspath(__file__), json.dumps({"run": name, "pinned": pinned, "out": out})]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    with open(out) as file:
        return json.load(file)


def facts(whole, part) -> dict:
    """`share` of the work: products of a device × devices / products of the whole; collectives that `moved` activations,
    `bytes` of all collectives, and shapes of what was `reduced` over devices."""
    moved = [f"{c.kind} {c.shapes} for {c.operation}" for c in part.moving(ROWS)]
    reduced = {shape for c in part.collectives if c.kind in ("all-reduce", "reduce-scatter") for shape in c.shapes}
    return {"share": part.products * DEVICES / whole.products, "moved": moved, "bytes": part.bytes, "reduced": sorted(reduced)}


def of_step(name: str) -> dict:
    """Of a tiny pipeline's whole training step; ends without the machine code."""
    import importlib

    import jax
    from test_plan import TINY

    from didr_jax import recipes
    from didr_jax.models import clip
    from didr_jax.models.published import PIPELINES
    from didr_jax.planning import plan
    from didr_jax.planning.partitioned import split
    from didr_jax.training.parallel import make_mesh

    PIPELINES |= {"tiny": TINY, "tiny_zimage": TINY_ZIMAGE}
    clip.ARCHITECTURES["ViT-H-14"] = (
        clip.VisionConfig(16, 2, 2, 24, patch=7, image_size=28, embed=12), clip.TextConfig(16, 2, 2, 24, vocab=40, embed=12),
    )  # fmt: skip
    file, settings = STEPS[name]
    config = importlib.import_module(f"configs.{file}").get_config()
    config.update_from_flattened_dict(COMMON | settings)
    recipe = recipes.build(config).planned()
    recipe.check("compile")
    stage, mesh = plan.main_stage(recipe, config), make_mesh(config.mesh)
    arguments = plan._placed(stage, config, mesh)
    with jax.set_mesh(mesh):
        step = stage.compiled(jax.tree.map(lambda a: a.sharding, arguments[0]), mesh)
        return facts(*split(step.lower(*arguments), wait=False))


def of_networks() -> dict:
    """Of the gradient of each network by itself, all parameters split; `free`: rows not pinned."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from configs import digits
    from didr_jax import lora
    from didr_jax.models import rows
    from didr_jax.models.blip import BertConfig, ImageReward
    from didr_jax.models.clip import TextConfig, TextTower, VisionConfig, VisionTower
    from didr_jax.models.dit import DiT
    from didr_jax.models.qwen3 import Qwen3, Qwen3Config
    from didr_jax.models.vae import AutoencoderKL, VAEConfig
    from didr_jax.planning.partitioned import split
    from didr_jax.training.parallel import make_mesh, shardings, with_places

    b = DEVICES * ROWS
    shape = lambda *sizes, dtype=jnp.float32: jax.ShapeDtypeStruct(sizes, dtype)
    pixels, ids, mask = shape(b, 28, 28, 3), shape(b, 7, dtype=jnp.int32), shape(b, 7, dtype=bool)
    vision, text = VisionConfig(16, 2, 2, 32, patch=7, image_size=28, embed=24), TextConfig(16, 2, 2, 32, vocab=40, embed=24)
    tower = VisionTower(vision, remat="blocks")
    networks = {  # as one calls them: (module, arguments)
        "image tower": (tower, (pixels,)),
        "text tower": (TextTower(text), (ids,)),
        "Qwen3": (Qwen3(Qwen3Config(40, 16, 32, 2, 4, 2, 8)), (ids, mask)),
        "ImageReward": (
            ImageReward(vision, BertConfig(16, 2, 2, 32, vocab=40, positions=16), remat="blocks"),
            (pixels, ids, mask),
        ),
        "autoencoder": (AutoencoderKL(VAEConfig(channels=(8, 16), groups=4), remat="blocks"), (shape(b, 8, 8, 3),)),
        "DiT": (DiT(10, width=16, depth=2), (shape(b, 8, 8, 1), shape(b), shape(b, dtype=jnp.int32))),
    }
    config = digits.get_config()

    def of(function, params, arguments, axis=0, rules=(), **sizes):
        config.mesh.update({"data": 1, "fsdp": DEVICES, "tensor": 1, "min_size": 32, "rules": rules} | sizes)
        mesh = make_mesh(config.mesh)
        params = with_places(params, shardings(params, config, mesh))
        spread = NamedSharding(mesh, PartitionSpec(*[None] * axis, ("data", "fsdp")))
        arguments = with_places(arguments, jax.tree.map(lambda _: spread, arguments))
        loss = lambda params, *args: sum(jnp.sum(out**2) for out in jax.tree.leaves(function(params, *args)))
        with jax.set_mesh(mesh):
            gradient = jax.jit(jax.grad(loss), out_shardings=jax.tree.map(lambda a: a.sharding, params))
            return facts(*split(gradient.lower(params, *arguments)))

    params = {name: jax.eval_shape(net.init, jax.random.key(0), *inputs) for name, (net, inputs) in networks.items()}
    found = {name: of(net.apply, params[name], inputs) for name, (net, inputs) in networks.items()}

    base, dit = params["image tower"]["params"], networks["DiT"]
    both = {"base": base, "lora": jax.eval_shape(lambda: lora.init(jax.random.key(0), base, ["attn/(q|k|v|out)$"], 8))}
    adapted = lora.applied(lambda p, x: tower.apply({"params": p}, x), 16.0)
    found["adapters"] = of(lambda p, x: adapted(p["base"], p["lora"], x), both, (pixels,))
    many = jax.tree.map(lambda a: shape(3, *a.shape, dtype=a.dtype), dit[1])
    found["samples"] = of(lambda p, *args: jax.vmap(lambda *args: dit[0].apply(p, *args))(*args), params["DiT"], many, axis=1)
    heads = (r"(q|k|v|fc1)/kernel$=fsdp,tensor", r"(out|fc2)/kernel$=tensor,fsdp")
    found["tensor"] = of(tower.apply, params["image tower"], (pixels,), rules=heads, fsdp=4, tensor=2)

    rows.row_axes = lambda _: ()
    found["Qwen3, free"] = of(networks["Qwen3"][0].apply, params["Qwen3"], (ids, mask))
    return found


def main() -> None:
    request = json.loads(sys.argv[1])
    if not request["pinned"]:
        from didr_jax.models import rows

        rows.row_axes = lambda rows: ()
    found = of_networks() if request["run"] == "networks" else of_step(request["run"])
    with open(request["out"], "w") as file:
        json.dump(found, file)
    os._exit(0)


if __name__ == "__main__":
    main()
