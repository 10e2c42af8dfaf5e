"""The tables of docs/plans.md that need no compiler: what a training state takes on many machines.

    python benchmarks/plans.py --config=sdxl     # a minute: each variant's step is traced once

`held` is what lives between steps, per device; the step's temporaries come on top (--mode=compile tells them).
"""

import importlib

from absl import app, flags

CONFIG = flags.DEFINE_string("config", "sdxl", "a module of configs/")
MACHINES = flags.DEFINE_list(
    "machines",
    ["v5e:2x2", "v5e:2x4", "v5e:4x4", "v5e:8x8", "v6e:2x2", "v6e:4x4", "v5p:2x2x1", "v5p:2x2x2", "v5p:2x2x4",
     "h100:1", "h100:8", "h200:1", "h200:8"],
    "as config.compile.topology",
)  # fmt: skip
BATCH = flags.DEFINE_integer("batch", 128, "samples of a step")
REMAT = flags.DEFINE_string("remat", "blocks", "what all networks recompute")
UTILISATION = flags.DEFINE_float("utilisation", 0.4, "of the peak")


def main(argv):
    from didr_jax import recipes
    from didr_jax.planning.plan import main_stage, make_plan
    from didr_jax.planning.targets import target
    from didr_jax.training.chips import GIB

    print("| trained | machine | held, GiB | of | micro_batches | s/step | images/s |\n|---|---|--:|--:|--:|--:|--:|")
    for train in ("full", "lora"):
        config = importlib.import_module(f"configs.{CONFIG.value}").get_config()
        config.network.generator = config.network.ta = train
        config.network.remat = config.network.vae_remat = config.rewards.remat = REMAT.value
        config.align.batch_size = BATCH.value
        config.compile.only_shapes, config.mesh.data, config.mesh.fsdp = True, 1, -1
        stage, operations = main_stage(recipes.build(config).planned(), config), None
        for name in MACHINES.value:
            machine = target(name)
            config.align.micro_batches = config.align.batch_size // machine.size
            plan = make_plan(stage, config, machine, operations)
            operations = plan.operations
            seconds = plan.step_seconds(UTILISATION.value)
            held, room = sum(plan.parts.values()) / GIB, machine.chip.memory / GIB
            rate = plan.batch_size / seconds
            row = f"{held:.1f} | {room:.0f} | {plan.micro_batches} | {seconds:.3g} | {rate:.3g}"
            print(f"| {train} | {name} | {row} |", flush=True)
        print(f"{train}: {plan.flops / plan.batch_size / 1e12:.4g} TFLOP per image")


if __name__ == "__main__":
    app.run(main)
