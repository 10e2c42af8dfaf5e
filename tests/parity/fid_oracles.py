"""Published FID code on random weights: torchvision, pytorch-fid (a copy is in clean-fid) and torch-fidelity.

They lie in a folder of their own, which the environment's FID_ORACLES names (docs/metrics.md): installed beside the CPU's
torch they would replace it.  Tests that want them skip without.
"""

import functools
import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from didr_jax.weights.engine import to_torch
from didr_jax.weights.inception import INCEPTION, inception_shapes

FOLDER = os.environ.get("FID_ORACLES", "")
_kept = []  # torch forgets a library that nobody holds


def import_torchvision():
    """torchvision, even a build whose compiled operators do not load here; skips without."""
    if FOLDER and FOLDER not in sys.path:
        sys.path.append(FOLDER)
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        pytest.skip("FID_ORACLES names no folder with torchvision (docs/metrics.md)")
    if not _kept and not _loads(Path(spec.origin).parent / "_C.so"):
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)
    return pytest.importorskip("torchvision")


def _loads(file: Path) -> bool:
    try:
        torch.ops.load_library(str(file))
    except OSError:
        return False
    return True


def import_oracle(name):
    """A module of torch_fidelity or cleanfid; skips without."""
    import_torchvision()
    return pytest.importorskip(name, reason=f"{name.split('.')[0]} is not in FID_ORACLES (docs/metrics.md)")


@functools.cache
def random_state(seed=0):
    """A state dict under the published names, numpy float32, through which signals neither vanish nor explode."""
    rng = np.random.default_rng(seed)
    shapes = {name: t.shape for name, t in to_torch(inception_shapes(), INCEPTION).items()}
    shapes |= {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    state = {}
    for name in sorted(shapes):
        shape, kind = shapes[name], name.rpartition(".")[2]
        x = rng.standard_normal(shape).astype(np.float32)
        if len(shape) > 1:  # kernels that sum to zero: what differs between pictures, not their mean, gets through
            x = (x - x.mean(axis=(1, 2, 3), keepdims=True) if x.ndim == 4 else x) * (2.5 / np.prod(shape[1:])) ** 0.5
        elif kind == "running_var":
            x = 0.5 + np.abs(x)
        else:
            x = 0.2 * x + (kind == "weight")
        state[name] = x.astype(np.float32)
    return state


def torch_state(seed=0):
    return {name: torch.from_numpy(x) for name, x in random_state(seed).items()}


def pytorch_fid_network(state, **options):
    """pytorch-fid's InceptionV3 up to the pooled features: torchvision's class with FID's changes."""
    module = import_oracle("cleanfid.inception_pytorch")
    download, module.load_state_dict_from_url = module.load_state_dict_from_url, lambda *_, **__: _counted(state)
    try:
        return module.InceptionV3([3], resize_input=False, **options).eval()
    finally:
        module.load_state_dict_from_url = download


def _counted(state):
    """With the batch counters that torchvision's classes keep."""
    counters = {name.replace("running_var", "num_batches_tracked"): torch.tensor(0) for name in state if "running_var" in name}
    return {**state, **counters}


def torch_fidelity_network(state, folder):
    """torch-fidelity's own Inception, from a file: uint8 NCHW to the pooled features."""
    module = import_oracle("torch_fidelity.feature_extractor_inceptionv3")
    file = Path(folder) / "inception.pth"
    torch.save(_counted(state), file)
    network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(file))
    return lambda x: network(x)[0]


def photographs():
    """Real photographs of scikit-learn and, where it is installed, scikit-image; uint8 RGB."""
    from sklearn.datasets import load_sample_images

    pictures = list(load_sample_images().images)
    try:
        from skimage import data
    except ImportError:
        return pictures
    return pictures + [getattr(data, name)() for name in ("astronaut", "coffee", "chelsea", "rocket")]


def two_folders(root, count=24, size=320, seed=0):
    """Two folders of crops of the photographs: as they are, and distorted (JPEG, noise, contrast)."""
    from PIL import Image

    rng, pictures = np.random.default_rng(seed), [p for p in photographs() if min(p.shape[:2]) >= 300]
    folders = [Path(root) / name for name in ("real", "distorted")]
    for folder in folders:
        folder.mkdir(parents=True)
        for i in range(count):
            picture = pictures[i % len(pictures)]
            h, w = (min(n, size + int(rng.integers(0, 60))) for n in picture.shape[:2])
            top, left = (int(rng.integers(0, n - m + 1)) for n, m in zip(picture.shape[:2], (h, w), strict=False))
            crop = picture[top : top + h, left : left + w]
            if folder.name == "distorted":
                crop = (0.8 * crop + rng.normal(20, 15, crop.shape)).clip(0, 255).astype(np.uint8)
            Image.fromarray(crop).save(folder / f"{i:03d}.png")
    return folders


def nuclear_norm_fid(x, y):
    """FID of features `[n, d]` without any matrix root: tr (Σ_x Σ_y)^½ is the nuclear norm of X_c Y_cᵀ / √((n−1)(m−1))."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    a, b = x - x.mean(0), y - y.mean(0)
    n, m = len(x) - 1, len(y) - 1
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum() / (n * m) ** 0.5
    return float(np.sum((x.mean(0) - y.mean(0)) ** 2) + (a**2).sum() / n + (b**2).sum() / m - 2 * root)
