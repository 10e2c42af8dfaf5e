"""One DIDR step on SDXL at 1024² with random weights: JAX and torch, the same networks and losses, one call.

    python benchmarks/step_gpu.py                          # one GPU of 80 GB: adapters (LoRA), batch 4
    python benchmarks/step_gpu.py --train=full --batch=8   # one GPU of 141 GB
    python benchmarks/step_gpu.py --tiny                   # a minute on a CPU: does it run?
    python benchmarks/step_gpu.py --sides=jax --budget=540 # one side a call, in ten minutes; then --sides=torch

A step is `--ta_updates` updates of the TA and one of the generator: guidance with two reference evaluations, the diffused
reward (K = 1) through VAE and HPSv2.1, decoding and scoring for the log, AdamW, moving average.  UNets compute in
bfloat16 (--tiny: float32), VAE and reward in float32 (TF32 products), recomputing as --remat says.  Torch runs diffusers' and transformers'
networks, compiled, channels last (torch_step.py).  Each side runs in its own process, tells each step as it ends, and keeps
what it found in --out, where the other side of the same settings is found by a later call.  Compiled programs of both are
kept (JAX's where `compiler.cache` says, torch's beside them), so that a call whose budget went to compiling is not lost.

By default both sides recompute blocks; the best of each is another call: --remat=products (JAX), --remat=none.

Utilisation is operations (`didr_jax.training.flops`) over the rate of a large bfloat16 product of random numbers measured in
the same process (that of a float32 one is told as well): `useful` without what rematerialisation computes again, `done` with it.
"""

import json
import os
import statistics
import subprocess
import sys
import time

from absl import app, flags
from checkout import ROOT

BATCH = flags.DEFINE_integer("batch", 4, "samples of a step")
MICRO = flags.DEFINE_integer("micro_batches", 1, "JAX: parts of the batch, one after the other")
TRAIN = flags.DEFINE_enum("train", "lora", ["lora", "full"], "of generator and TA")
TA_UPDATES = flags.DEFINE_integer("ta_updates", 5, "per step")
STEPS = flags.DEFINE_integer("steps", 5, "timed, after three to warm up; the median is reported")
BUDGET = flags.DEFINE_float("budget", float("inf"), "seconds of a side after which it ends with the steps that it has")
OUT = flags.DEFINE_string("out", "", "a .json for what was found, by settings and side; empty: none")
ATTENTION = flags.DEFINE_string("attention", "", "JAX: backend; empty: cudnn on a GPU, xla elsewhere")
REMAT = flags.DEFINE_enum(
    "remat", "blocks", ["none", "products", "blocks"], "what UNet and reward recompute; torch knows blocks and none"
)
TINY = flags.DEFINE_bool("tiny", False, "a pipeline of a few thousand weights at 64²")
SIDES = flags.DEFINE_list("sides", ["jax", "torch"], "what to run")
CHILD = flags.DEFINE_enum("child", None, ["jax", "torch"], "run one side in this process and print JSON")


WARM = 3
STARTED = time.perf_counter()


def settings():
    """The config of the run."""
    from benchmarks import tiny_sdxl
    from configs import sdxl

    config = sdxl.get_config()
    config.align.batch_size, config.align.micro_batches = BATCH.value, MICRO.value
    config.align.ta_updates = TA_UPDATES.value
    config.network.generator = config.network.ta = TRAIN.value
    config.network.remat = config.rewards.remat = REMAT.value
    config.network.vae_remat = "blocks"
    config.network.vae_attention = "xla" if TINY.value else "chunked"
    if TINY.value:
        tiny_sdxl.use(config)
        config.image.height = config.image.width = 64
        config.unroll = True  # XLA's convolutions are slow inside of loops on a CPU
        for key in ("dtype", "frozen_dtype", "reward_vae_dtype"):
            config.network[key] = "float32"
    return config


def jax_side() -> dict:
    import jax
    import jax.numpy as jnp

    from didr_jax import recipes
    from didr_jax.planning.plan import main_stage
    from didr_jax.training import flops, startup
    from didr_jax.training.parallel import make_mesh, shardings

    config = settings()
    config.compiler.flags = "gpu" if not TINY.value else "default"
    startup.start(config)
    on_gpu = jax.default_backend() == "gpu"
    config.network.attention = ATTENTION.value or ("cudnn" if on_gpu else "xla")
    config.mesh.data, config.mesh.fsdp = 1, 1
    stage = main_stage(recipes.build(config).planned(), config)
    mesh = make_mesh(config.mesh, jax.devices()[:1])

    def random(path, shapes):
        """Optimisers and counters begin at zero, everything else is small noise."""
        zero = path.startswith(("opt", "step", "skipped", "streak"))
        leaves, tree = jax.tree.flatten(shapes)

        def make(i, a):
            if zero or not jnp.issubdtype(a.dtype, jnp.floating):
                return jnp.zeros(a.shape, a.dtype)
            return 0.02 * jax.random.normal(jax.random.fold_in(jax.random.key(len(path)), i), a.shape, a.dtype)

        return jax.jit(lambda: tree.unflatten([make(i, a) for i, a in enumerate(leaves)]))()

    with jax.set_mesh(mesh):
        shapes = stage.shapes
        state = type(shapes)(**{name: random(name, tree) for name, tree in vars(shapes).items()})
        frozen = {name: random(name, weights.shapes) for name, weights in stage.frozen.items()}
        batch = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), stage.batch_shapes)
        begin = time.perf_counter()
        step = stage.compiled(shardings(shapes, config, mesh), mesh).trace(state, frozen, batch)
        done = sum(flops.count_jaxpr(step.jaxpr.jaxpr).values())
        step = step.lower().compile()
        compiled = time.perf_counter() - begin
        tell(f"jax    compiled in {compiled:.0f} s")
        held = {"state": state}

        def one():
            held["state"], held["metrics"] = step(held["state"], frozen, batch)
            jax.block_until_ready(held["metrics"])

        del state
        laps = timed_steps("jax", one)
        state, metrics = held["state"], held["metrics"]

    config.network.remat = config.network.vae_remat = config.rewards.remat = "none"
    useful = flops.count(main_stage(recipes.build(config).planned(), config).step, *abstract((state, frozen, batch)))
    n = 512 if TINY.value else 8192
    product = jax.jit(lambda a, b: a @ b)
    rates = {}
    for kind in (jnp.bfloat16, jnp.float32):
        a = jax.random.normal(jax.random.key(0), (n, n), kind)
        rates[jnp.dtype(kind).name] = 2 * n**3 / timed(lambda a=a: product(a, a).block_until_ready()) / 1e12
    memory = jax.devices()[0].memory_stats() or {}
    return {
        "s": statistics.median(laps), "steps": len(laps), "compile s": compiled,
        "product TFLOP/s": rates["bfloat16"], "float32 product TFLOP/s": rates["float32"],
        "done TFLOP": done / 1e12, "useful TFLOP": useful / 1e12,
        "peak GiB": memory.get("peak_bytes_in_use", 0) / 2**30, "device": jax.devices()[0].device_kind,
        "skipped updates": int(metrics["skipped"]),
    }  # fmt: skip


def abstract(tree):
    import jax

    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)


def torch_side() -> dict:
    from benchmarks.torch_step import Step, matmul_rate, peak_memory

    step = Step(settings(), compiled=not TINY.value)
    begin = time.perf_counter()
    step()
    compiled = time.perf_counter() - begin
    tell(f"torch  compiled and stepped in {compiled:.0f} s")
    laps, n = timed_steps("torch", step), 512 if TINY.value else 8192
    return {
        "s": statistics.median(laps), "steps": len(laps), "compile s": compiled,
        "product TFLOP/s": matmul_rate(n) / 1e12, "float32 product TFLOP/s": matmul_rate(n, "float32") / 1e12,
        "peak GiB": peak_memory(), "device": step.device_name,
    }  # fmt: skip


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def timed_steps(side: str, step) -> list[float]:
    """Seconds of the steps after three to warm up, each told as it ends; one at least, and then until the budget is spent."""
    laps: list[float] = []
    for i in range(WARM + STEPS.value):
        begin = time.perf_counter()
        step()
        laps.append(time.perf_counter() - begin)
        tell(f"{side:<6} step {i + 1}: {laps[-1]:.3f} s{' (to warm up)' if i < WARM else ''}")
        if time.perf_counter() - STARTED + laps[-1] > BUDGET.value:
            tell(f"{side:<6} the budget is spent")
            break
    return laps[WARM:] or laps[-1:]


def timed(call) -> float:
    """Median seconds of twenty calls, after three to warm up."""
    laps = []
    for _ in range(23):
        begin = time.perf_counter()
        call()
        laps.append(time.perf_counter() - begin)
    return statistics.median(laps[3:])


def main(argv):
    from didr_jax.json_files import read_object
    from didr_jax.whole_files import write_json

    if CHILD.value:
        print(json.dumps({"jax": jax_side, "torch": torch_side}[CHILD.value]()))
        return
    cache = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "didr_jax", "inductor")
    environment = (
        {"TORCHINDUCTOR_CACHE_DIR": cache, "XLA_PYTHON_CLIENT_MEM_FRACTION": ".95"} | os.environ | {"PYTHONPATH": str(ROOT)}
    )
    key = " ".join(f"{f.name}={f.value}" for f in (BATCH, MICRO, TRAIN, TA_UPDATES, REMAT, TINY))
    known = read_object(OUT.value, "remove it") if OUT.value and os.path.exists(OUT.value) else {}
    results = known.setdefault(key, {})
    for side in SIDES.value:
        command = [sys.executable, os.path.abspath(__file__), *sys.argv[1:], f"--child={side}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, cwd=ROOT, env=environment)
        if done.returncode:
            print(f"{side:<6} failed, exit code {done.returncode}")
            continue
        results[side] = result = json.loads(done.stdout.splitlines()[-1])
        if OUT.value:
            write_json(OUT.value, known)
        numbers = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in result.items())
        print(f"{side:<6} images/s {BATCH.value / result['s']:.4g}, {numbers}", flush=True)
    for kind in ("useful", "done"):
        if "jax" in results:  # both do the same work; torch's own recomputation is not counted
            work, peak = results["jax"][f"{kind} TFLOP"], results["jax"]["product TFLOP/s"]
            shares = ", ".join(f"{side} {work / r['s'] / peak:.1%}" for side, r in results.items())
            print(f"utilisation of the measured product rate, {kind} operations: {shares}")
    if len(results) == 2:
        print(f"jax is {results['torch']['s'] / results['jax']['s']:.2f} times as fast as torch")
    sys.exit(any(side not in results for side in SIDES.value))


if __name__ == "__main__":
    app.run(main)
