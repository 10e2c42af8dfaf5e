"""The weights of FID's Inception: `pt_inception-2015-12-05-6726825d` and DiffSynth's `FID/model.safetensors`.

Both have torchvision's names.  torchvision's and timm's own Inception weights have them too, and are another network:
they are refused, and so is the TorchScript file of StyleGAN and clean-fid, which holds code instead of a state dict.
"""

import os
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp

from didr_jax.models.inception import SIZE, Inception
from didr_jax.types import InputError, PyTree, Weights
from didr_jax.weights.engine import unfilled, weights_of
from didr_jax.weights.files import Tensors, read_tensors
from didr_jax.weights.rules import Rule, ignore, norm

CLASSES = 1008  # of the classifier in the files of FID's network; ImageNet's have 1000


def _conv_norm(pattern: str, target: str) -> list[Rule]:
    return [
        Rule(f"{pattern}.conv.weight", f"{target}/conv/kernel", "kernel"),
        *norm(f"{pattern}.bn", target),
        Rule(f"{pattern}.bn.running_mean", f"{target}/mean"),
        Rule(f"{pattern}.bn.running_var", f"{target}/var"),
        *ignore(f"{pattern}.bn.num_batches_tracked"),
    ]


INCEPTION = [
    *_conv_norm(r"(Conv2d_\w+)", "{}"),
    *_conv_norm(r"(Mixed_\w+).(branch\w+)", "{}/{}"),
    *ignore("fc.(weight|bias)"),
]

REMEDY = (
    "take pt_inception-2015-12-05-6726825d.pth, and convert it once where torch is: "
    "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'inception.safetensors')"
)


def inception_shapes() -> PyTree:
    """Shapes of `Inception`'s parameters, nothing allocated."""
    pictures = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    return jax.eval_shape(Inception().init, jax.random.key(0), pictures)["params"]


def load_inception(path: str | os.PathLike | None) -> Weights:
    """A file or folder -> parameters of `models.inception.Inception`, read when they are loaded.

    `path` None: shapes, for plans.

    Its `check` and `load` refuse TorchScript and other Inceptions than FID's by name.
    """
    shapes = inception_shapes()
    return unfilled(shapes) if path is None else weights_of(lambda: _read(path), INCEPTION, shapes, where=str(path))


def _read(path: str | os.PathLike) -> Tensors:
    if Path(path).is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any("/code/" in name for name in archive.namelist()):
                raise InputError(f"weights: {path} is TorchScript, code that only torch runs; {REMEDY}")
    tensors = {name.removeprefix("model."): tensor for name, tensor in read_tensors(path).items()}
    classes = tensors["fc.weight"].shape[0] if "fc.weight" in tensors else CLASSES
    if classes != CLASSES or any(name.startswith("AuxLogits.") for name in tensors):
        raise InputError(f"weights: {path} holds an Inception trained on ImageNet, which is not FID's; {REMEDY}")
    return tensors
