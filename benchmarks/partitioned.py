"""What each of N devices does of a full-size step, and what it sends to the others: read off the partitioned program.

    python benchmarks/partitioned.py --config=sdxl --train=lora --devices=8             # four minutes, 3 GB
    python benchmarks/partitioned.py --config=zimage --train=lora --devices=8 --free    # half a minute; rows not pinned

Nothing is allocated and no machine code is made.  Bytes are those of a collective's larger side on one device, as often
as a step runs it.  With --rows (a large prime) samples per device and micro-batch instead of --batch, collectives of
activations are told apart.  Any knob of the config is set by further arguments: network.remat=products
--out=FILE.json keeps what was counted, for benchmarks/scaling.py.
"""

import collections
import functools
import importlib
import operator
import os

from absl import app, flags

CONFIG = flags.DEFINE_string("config", "sdxl", "a module of configs/")
TRAIN = flags.DEFINE_enum("train", "lora", ["lora", "full"], "what is trained of both networks")
DEVICES = flags.DEFINE_integer("devices", 8, "over which rows are split, and parameters too (mesh.fsdp)")
COPIES = flags.DEFINE_integer("data", 1, "copies of the parameters, each split over a part of the devices (mesh.data)")
OUT = flags.DEFINE_string("out", "", "a .json for what was counted")
BATCH = flags.DEFINE_integer("batch", 32, "samples of a step")
MICRO = flags.DEFINE_integer("micro_batches", 4, "parts of the batch")
ROWS = flags.DEFINE_integer("rows", 0, "samples per device and micro-batch; 0: as --batch says")
FREE = flags.DEFINE_bool("free", False, "leave the rows to the partitioner (models.rows)")


def main(argv):
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(DEVICES.value), "JAX_ENABLE_COMPILATION_CACHE": "0"}
    import jax

    from didr_jax import recipes
    from didr_jax.models import rows
    from didr_jax.planning import plan
    from didr_jax.planning.compiler_log import caught
    from didr_jax.planning.partitioned import Partitioned, split
    from didr_jax.training import flops
    from didr_jax.training.chips import GIB
    from didr_jax.training.parallel import make_mesh
    from didr_jax.whole_files import write_json

    if FREE.value:
        rows.row_axes = lambda _: ()
    config = importlib.import_module(f"configs.{CONFIG.value}").get_config()
    config.network.generator = config.network.ta = TRAIN.value
    config.align.micro_batches = MICRO.value
    config.align.batch_size = ROWS.value * DEVICES.value * MICRO.value or BATCH.value
    config.mesh.data, config.mesh.fsdp = COPIES.value, DEVICES.value // COPIES.value
    config.network.remat = config.network.vae_remat = config.rewards.remat = "blocks"
    for knob in argv[1:]:
        key, value = knob.split("=", 1)
        config.update_from_flattened_dict({key: type(functools.reduce(operator.getitem, key.split("."), config))(value)})

    recipe = recipes.build(config).planned()
    recipe.check("compile")
    stage, mesh = plan.main_stage(recipe, config), make_mesh(config.mesh)
    arguments = plan._placed(stage, config, mesh)
    with jax.set_mesh(mesh), caught() as log:
        traced = stage.compiled(jax.tree.map(lambda a: a.sharding, arguments[0]), mesh).trace(*arguments)
        one = Partitioned(sum(flops.count_jaxpr(traced.jaxpr.jaxpr).values()), ())
        whole, part = split(traced.lower(), wait=False) if DEVICES.value > 1 else (one, one)

    n = DEVICES.value
    if OUT.value:
        rows = collections.Counter()
        for c in part.collectives:
            rows[c.kind, c.group, c.bytes] += c.times
        kept = [dict(kind=kind, group=group, bytes=size, times=times) for (kind, group, size), times in rows.items()]
        counted = dict(devices=n, batch=config.align.batch_size, products=part.products, whole=whole.products, collectives=kept)
        write_json(OUT.value, counted)
    ratio = part.products * n / whole.products
    print(f"products     {part.products / 1e12:,.0f} TFLOP a device; × {n} / those of one device {ratio:.4f}")
    print(f"collectives  {part.bytes / GIB:,.1f} GiB a device")
    moving = {id(c) for c in part.moving(ROWS.value)} if ROWS.value else set()
    kinds = collections.Counter()
    for c in part.collectives:
        kinds[c.kind + (" of activations" if id(c) in moving else "")] += c.bytes * c.times
    for kind, size in kinds.most_common():
        print(f"  {kind:<36}{size / GIB:>10,.1f} GiB")
    print("largest")
    for c in sorted(part.collectives, key=lambda c: -c.bytes * c.times)[:8]:
        print(f"  {c.bytes * c.times / GIB:>8.1f} GiB = {c.times} × {c.kind} {c.shapes[-1]}  {c.operation[-100:]}")
    print(*log.lines(), sep="\n", flush=True)
    os._exit(0)


if __name__ == "__main__":
    app.run(main)
