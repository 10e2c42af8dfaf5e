"""Named protocols: every choice that moves a published number, a row each.

A number is printed with its protocol's name (`Measured`), since numbers of two protocols do not compare.  A row of your
own is `dataclasses.replace(row, name=..., ...)`, under another name.
"""

import dataclasses
from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from didr_jax.checks import nearest
from didr_jax.evaluation.resize import Picture, Steps, prepare, to_8_bit
from didr_jax.types import InputError


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How pictures are prepared, and for which network.

    Attributes:
      name: printed with every number.
      network: whose features are taken, in words.
      steps: of `resize.prepare`, from 8-bit RGB to the network's size.
      pixels: how the network's input is made of values in [0, 255], a key of `PIXELS`.
      quantise: how a sampler's pictures in [-1, 1] become 8-bit, "truncate" or "round".
      source: where the protocol was read.
    """

    name: str
    network: str
    steps: Steps
    pixels: str
    source: str
    quantise: str = "round"

    def prepare(self, picture: Picture) -> Picture:
        """RGB `[h, w, 3]`, uint8 or float in [-1, 1], -> the network's size, uint8 or float32 in [0, 255]."""
        if np.issubdtype(picture.dtype, np.floating):
            picture = to_8_bit(picture, self.quantise)
        return prepare(picture, self.steps)

    def __str__(self) -> str:
        """Every field but the source, in one line."""
        steps = ", ".join(" ".join(map(str, step)) for step in self.steps) or "no resize"
        rest = [
            f"{field.name} {value:g}" if isinstance(value, float) else f"{field.name} {value!r}"
            for field in dataclasses.fields(self)
            if field.name not in ("name", "network", "steps", "source")
            for value in [getattr(self, field.name)]
        ]
        return f"{self.name}: {steps}; {self.network}; {', '.join(rest)}"


INCEPTION = "Inception 2015-12-05"
_TENSORFLOW, _TORCH = "(x-128)/128", "2x/255-1"

# How a network's input is made of values in [0, 255]: (offset, scale) of every channel, x -> (x - offset) / scale.
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP, for [0, 1]
PIXELS: dict[str, tuple] = {
    _TENSORFLOW: ((128.0,) * 3, (128.0,) * 3),
    _TORCH: ((127.5,) * 3, (127.5,) * 3),
    "clip": (tuple(255 * m for m in _MEAN), tuple(255 * s for s in _STD)),
}


@dataclasses.dataclass(frozen=True)
class InceptionProtocol(Protocol):
    """FID and KID.

    Attributes:
      root: of Σ_a Σ_b, a key of `frechet.ROOTS`.
      offset: of the diagonals, added if the root is not finite.
      ddof: of the covariances, 1: divided by n − 1.
      kid_subsets, kid_size: KID is a mean over so many subsets of so many pictures.
      kid_fewer: with fewer pictures than that, "refuse", or take subsets of "all" of the smaller set.
      kid_seed: of the subsets.
    """

    root: str = "sqrtm"
    offset: float = 1e-6
    ddof: int = 1
    kid_subsets: int = 100
    kid_size: int = 1000
    kid_fewer: str = "all"
    kid_seed: int = 2020


_DMD2 = "tianweiy/DMD2 main/coco_eval/coco_evaluator.py (with its copy of clean-fid), as one-step SDXL is measured"
FID: dict[str, InceptionProtocol] = {
    row.name: row
    for row in (
        InceptionProtocol(
            "dmd2", INCEPTION, (("square",), ("lanczos", 512), ("bicubic_float", 299)), _TENSORFLOW, _DMD2, "truncate"
        ),
        # The patch of 299² needs no resize: texture as it is, at the pictures' own resolution.
        InceptionProtocol("dmd2-patch", INCEPTION, (("centre", 299),), _TENSORFLOW, _DMD2, "truncate"),
        InceptionProtocol("clean-fid", INCEPTION, (("bicubic_float", 299),), _TENSORFLOW, "clean-fid 0.1.35, mode='clean'"),
        InceptionProtocol(
            "torch-fidelity", INCEPTION, (("tensorflow_bilinear", 299),), _TENSORFLOW, "torch-fidelity 0.4.0",
            root="symmetric", kid_fewer="refuse",
        ),
        InceptionProtocol(
            "pytorch-fid", INCEPTION, (("torch_bilinear", 299),), _TORCH, "pytorch-fid; clean-fid, mode='legacy_pytorch'"
        ),
    )
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class CmmdProtocol(Protocol):
    """CMMD.  `sigma` of the kernel exp(−‖x − y‖²/(2σ²)); the biased estimate, times `factor`."""

    sigma: float = 10.0
    factor: float = 1000.0


CMMD: dict[str, CmmdProtocol] = {
    "cmmd": CmmdProtocol(
        "cmmd", "ViT-L-14-336-quickgelu", (("square_floor",), ("bicubic", 336)), "clip", "google-research/cmmd; 2401.09603"
    )
}


@dataclasses.dataclass(frozen=True)
class ClipScoreProtocol(Protocol):
    """CLIP score: factor · cos(picture, prefix + prompt), at least 0 if `floor`."""

    prefix: str = ""
    factor: float = 100.0
    floor: bool = False


def _clip_steps(size: int) -> Steps:
    """The pre-processing of CLIP's own checkpoints."""
    return ("short_side", size), ("centre", size)


CLIP_SCORE: dict[str, ClipScoreProtocol] = {
    row.name: row
    for row in (
        ClipScoreProtocol(
            "dmd2", "ViT-g-14", (("square",), ("lanczos", 256), *_clip_steps(224)), "clip",
            _DMD2 + "; laion2b_s12b_b42k", "truncate", prefix="A photo depicts ", factor=1.0,
        ),
        ClipScoreProtocol("clip-l-14", "ViT-L-14-quickgelu", _clip_steps(224), "clip", "OpenAI's checkpoint"),
        ClipScoreProtocol("clip-l-14-336", "ViT-L-14-336-quickgelu", _clip_steps(336), "clip", "OpenAI's checkpoint"),
        ClipScoreProtocol(
            "hessel", "ViT-B-32-quickgelu", _clip_steps(224), "clip", "jmhessel/clipscore; 2104.08718",
            prefix="A photo depicts ", factor=2.5, floor=True,
        ),
    )
}  # fmt: skip

DIVERSITY: dict[str, Protocol] = {
    row.name: row
    for row in (
        Protocol("clip-l-14", "ViT-L-14-quickgelu", _clip_steps(224), "clip", "OpenAI's checkpoint; [ours]"),
        Protocol("clip-h-14", "ViT-H-14", _clip_steps(224), "clip", "LAION's checkpoint; [ours]"),
    )
}

Row = TypeVar("Row", bound=Protocol)


def named(table: Mapping[str, Row], row: str | Row) -> Row:
    """A row by its name; a row stays itself.  Raises `InputError` for an unknown name."""
    if not isinstance(row, str):
        return row
    if row not in table:
        raise InputError(f"protocol {row!r} is not known; {nearest(row, table)}")
    return table[row]


@dataclasses.dataclass(frozen=True)
class Measured:
    """A number and what it means.

    Attributes:
      metric: its name.
      protocol: the name of its protocol.
      value: as it is published, scaled as the protocol says.
      spread: standard deviation or half an interval, if the metric has one.
      notes: what a reader must know, e.g. how many pictures.
    """

    metric: str
    protocol: str
    value: float
    spread: float | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        spread = "" if self.spread is None else f" ± {self.spread:.4g}"
        return f"{self.metric} {self.value:.6g}{spread}  [{'; '.join((self.protocol, *self.notes))}]"
