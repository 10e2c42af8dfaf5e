"""The header of a safetensors file, refused wherever the format forbids it.

    8 bytes   n, little-endian
    n bytes   a JSON object {name: {"dtype", "shape", "data_offsets": [begin, end]}}, and "__metadata__": {text: text}
    the rest  the tensors' bytes, one after the other, without overlap, hole or remainder

Format: https://github.com/huggingface/safetensors#format; the rules are those of its reference library.
"""

import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from didr_jax.json_files import parse_object

DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
METADATA = "__metadata__"
MOST_BYTES = 100_000_000  # of a header


class Spec(NamedTuple):
    """A tensor of a file; `begin` and `end` count from the first byte after the header."""

    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: str | os.PathLike) -> tuple[int, dict[str, Spec]]:
    """Where the tensors' bytes begin, and the tensors by name.

    Raises:
      ValueError: the file breaks the format; OSError: it cannot be read.
    """
    start, header, _ = _parsed(path)
    tensors = {name: _spec(name, raw) for name, raw in header.items()}
    _require_seamless(tensors, Path(path).stat().st_size - start)
    return start, tensors


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """What a file says beside its tensors; raises as `read_header`."""
    return _parsed(path)[2]


def _parsed(path: str | os.PathLike) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Where the header ends, its entries, and the metadata among them."""
    size = Path(path).stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError("it is cut short in its header")
        if length > MOST_BYTES:
            raise ValueError(f"its header has {length} bytes")
        text = file.read(length)
    if not text.startswith(b"{"):
        raise ValueError("its header is no JSON object")
    header = parse_object(text, strict=True)
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"its {METADATA} holds something else than text")
    return 8 + length, header, metadata


def _spec(name: str, raw: Any) -> Spec:
    if not isinstance(raw, dict) or not raw.keys() >= {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name} lacks a dtype, a shape or offsets")
    kind, shape, offsets = raw["dtype"], raw["shape"], raw["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        raise ValueError(f"{name} has the dtype {str(kind)[:40]}; known are {', '.join(DTYPES)}")
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise ValueError(f"{name} has the shape {str(shape)[:80]} at {str(offsets)[:80]}")
    spec = Spec(np.dtype(DTYPES[kind]), tuple(shape), *offsets)
    if spec.end - spec.begin != math.prod(shape) * spec.dtype.itemsize:
        raise ValueError(f"{name}, {kind} {shape}, does not fit its {spec.end - spec.begin} bytes")
    return spec


def _counts(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 64 and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _require_seamless(tensors: dict[str, Spec], size: int) -> None:
    at = 0
    for name, spec in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if spec.begin != at:
            raise ValueError(f"{name} {'overlaps another tensor' if spec.begin < at else 'begins after a hole'}")
        at = spec.end
    if at != size:
        raise ValueError(f"its tensors have {at} bytes, but {size} are there")
