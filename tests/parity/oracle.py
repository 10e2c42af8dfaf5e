"""Torch models with weights that would show any mistake, and comparison with them."""

import re

import jax
import numpy as np
import torch

torch.set_num_threads(2)
QUICK = {"xla_backend_optimization_level": 0}  # for jax.jit(compiler_options=): each program runs once


def randomise(module, seed=0):
    """Fills every parameter of a torch module so that none is neutral (no unit scales, no zero biases)."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if p.ndim > 1:
            p.data = noise * (p.numel() / p.shape[0]) ** -0.5
        else:
            p.data = 0.2 * noise + (1.0 if name.endswith("weight") else 0.0)
    return module.eval()


def nhwc(x):
    return np.asarray(x.detach()).transpose(0, 2, 3, 1)


def nchw(x):
    return torch.from_numpy(np.asarray(x).transpose(0, 3, 1, 2).copy())


def assert_close(got, want, rel=2e-5, what=""):
    """Largest error within `rel` of the largest value."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, torch has {want.shape}"
    error = np.abs(got - want).max() / np.abs(want).max()
    assert error <= rel, f"{what}: relative error {error:.1e}"


def record(module, kinds):
    """Hooks that keep the output of each submodule of a kind: {Flax path: array}."""
    seen = {}
    for name, m in module.named_modules():
        if isinstance(m, kinds):
            path = re.sub(r"\.(\d+)", r"_\1", name).replace(".", "/")

            def keep(_, __, out, path=path):
                out = out[0] if isinstance(out, tuple) else out
                out = getattr(out, "sample", out)  # dataclass outputs
                seen[path] = nhwc(out) if out.ndim == 4 else out.detach().numpy()

            m.register_forward_hook(keep)
    return seen


def captured(intermediates):
    """Flax's captured outputs as {path: array}; of a tuple, the first."""
    paths, _ = jax.tree_util.tree_flatten_with_path(intermediates, is_leaf=lambda x: isinstance(x, tuple))
    first = lambda x: first(x[0]) if isinstance(x, tuple) else x
    key = lambda path: jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/__call__")
    return {key(path): first(leaf) for path, leaf in paths}
