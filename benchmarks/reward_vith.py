"""HPSv2.1's ViT-H reward, forward and gradient with respect to the image: JAX against torch, same machine, one run.

    python benchmarks/reward_vith.py   # full size, batch 8: about 10 GB and minutes on a CPU
    python benchmarks/reward_vith.py --depth=2 --batch=2 --image_size=256   # a try

Each side runs in its own process, so that peak memory is its own.  Random weights, float32 unless --dtype says else.
Torch is transformers' CLIPModel with torch's antialiased resize: the same network (tests/parity), the same work.
"""

import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import time

from absl import app, flags

BATCH = flags.DEFINE_integer("batch", 8, "images")
IMAGE_SIZE = flags.DEFINE_integer("image_size", 1024, "side of the images, before the reward's own resize")
DEPTH = flags.DEFINE_integer("depth", 0, "layers of both towers; 0: all of them")
REPEATS = flags.DEFINE_integer("repeats", 3, "timed calls; the median is reported")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of the weights and the computation")
REMAT = flags.DEFINE_enum("remat", "none", ["none", "products", "blocks"], "JAX: what a backward pass recomputes")
SIDE = flags.DEFINE_enum("side", None, ["jax", "torch"], "run one side only and print JSON")


def configs():
    from didr_jax.models.clip import architecture

    return tuple(dataclasses.replace(c, depth=DEPTH.value or c.depth) for c in architecture("ViT-H-14"))


def inputs():
    import numpy as np

    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (BATCH.value, IMAGE_SIZE.value, IMAGE_SIZE.value, 3)).astype(np.float32)
    return images, rng.integers(1, 49407, (BATCH.value, 77)).astype(np.int32)


def jax_side() -> dict:
    import jax
    import jax.numpy as jnp

    from didr_jax.rewards.cosine import clip_cosine
    from didr_jax.rewards.preprocess import resize_and_pad
    from didr_jax.weights.clip import clip_shapes

    vision, text = configs()
    dtype = jnp.dtype(DTYPE.value)
    cosine = clip_cosine(vision, text, dtype=dtype, remat=REMAT.value)
    leaves, tree = jax.tree.flatten(clip_shapes(vision, text, dtype))
    keys = jax.random.split(jax.random.key(0), len(leaves))
    params = tree.unflatten([0.02 * jax.random.normal(k, s.shape, s.dtype) for k, s in zip(keys, leaves, strict=False)])
    images, ids = inputs()

    def score(images, params, ids):
        return 100 * cosine(params, resize_and_pad(images), {"ids": ids}).sum()

    start = time.perf_counter()
    step = jax.jit(jax.value_and_grad(score)).lower(images, params, ids).compile()
    compiled = time.perf_counter() - start
    seconds = timed(lambda: jax.block_until_ready(step(images, params, ids)))
    return {
        "s": seconds,
        "compile s": compiled,
        "temporaries GiB": step.memory_analysis().temp_size_in_bytes / 2**30,
        "parameters M": sum(x.size for x in leaves) / 1e6,
        "device": jax.devices()[0].device_kind,
    }


def torch_side() -> dict:
    import torch
    import transformers as T
    from torch.nn import functional as F

    from didr_jax.rewards.preprocess import CLIP_MEAN, CLIP_STD

    def tower(c):
        return dict(hidden_size=c.width, intermediate_size=c.hidden, num_hidden_layers=c.depth,
                    num_attention_heads=c.heads, hidden_act=c.act, projection_dim=c.embed)  # fmt: skip

    vision, text = configs()
    image_tower = dict(tower(vision), patch_size=vision.patch)
    config = T.CLIPConfig(text_config=tower(text), vision_config=image_tower, projection_dim=vision.embed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = T.CLIPModel(config).to(getattr(torch, DTYPE.value)).eval().requires_grad_(False)
    images, ids = (torch.from_numpy(x).to(device) for x in inputs())
    images, ids = images.permute(0, 3, 1, 2).contiguous(), ids.long()
    mean, std = (torch.tensor(x, device=device)[:, None, None] for x in (CLIP_MEAN, CLIP_STD))

    def step():
        x = images.clone().requires_grad_()
        y = F.interpolate(x / 2 + 0.5, size=(224, 224), mode="bicubic", antialias=True)
        y = ((y - mean) / std).to(model.dtype)
        image = model.visual_projection(model.vision_model(y).pooler_output).float()
        prompt = model.text_projection(model.text_model(ids).pooler_output).float()
        (100 * F.cosine_similarity(image, prompt).sum()).backward()
        if device == "cuda":
            torch.cuda.synchronize()

    result = {"s": timed(step), "parameters M": sum(p.numel() for p in model.parameters()) / 1e6, "device": device}
    if device == "cuda":
        result["peak device GiB"] = torch.cuda.max_memory_allocated() / 2**30
    return result


def timed(call) -> float:
    """Median seconds of a call, after one to warm up."""
    call()
    laps = []
    for _ in range(REPEATS.value):
        start = time.perf_counter()
        call()
        laps.append(time.perf_counter() - start)
    return statistics.median(laps)


def main(argv):
    if SIDE.value:
        result = {"jax": jax_side, "torch": torch_side}[SIDE.value]()
        result["peak host GiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps(result))
        return
    for side in ("torch", "jax"):
        command = [sys.executable, os.path.abspath(__file__), *sys.argv[1:], f"--side={side}"]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
        result = json.loads(out.splitlines()[-1])
        numbers = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in result.items())
        print(f"{side:<6} images/s {BATCH.value / result['s']:.3g}, {numbers}")


if __name__ == "__main__":
    app.run(main)
