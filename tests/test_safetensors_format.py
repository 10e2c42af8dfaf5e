"""Files that the safetensors format forbids are refused, each for its own reason; what it allows is read."""

import json

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from didr_jax.types import InputError
from didr_jax.weights.files import read_tensors


def write(path, header, data=bytes(16)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def spec(begin, end, shape=None, dtype="F32"):
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


FORBIDDEN = {
    "an overlap": ({"a": spec(0, 8), "b": spec(4, 16)}, "b overlaps another tensor"),
    "twice the same bytes": ({"a": spec(0, 16), "b": spec(0, 16)}, "overlaps another tensor"),
    "a hole": ({"a": spec(0, 4), "b": spec(8, 16)}, "b begins after a hole"),
    "a hole at the beginning": ({"a": spec(4, 16)}, "a begins after a hole"),
    "a remainder": ({"a": spec(0, 12)}, "12 bytes, but 16 are there"),
    "too little": ({"a": spec(0, 20)}, "20 bytes, but 16 are there"),
    "a negative size": ({"a": spec(0, 16, [-2, -2])}, r"a has the shape \[-2, -2\]"),
    "no shape": ({"a": spec(0, 16) | {"shape": None}}, "a has the shape None"),
    "a size that is null": ({"a": spec(0, 16, [None])}, r"a has the shape \[None\]"),
    "a size that is a fraction": ({"a": spec(0, 16, [4.0])}, r"a has the shape \[4.0\]"),
    "a size that is true": ({"a": spec(0, 4, [True])}, r"a has the shape \[True\]"),
    "a shape of too many entries": ({"a": spec(0, 16, [2**40, 2**40])}, "does not fit its 16 bytes"),
    "offsets backwards": ({"a": spec(16, 0, [0])}, "a, F32"),
    "one offset": ({"a": spec(0, 16) | {"data_offsets": [16]}}, "a has the shape"),
    "no dtype": ({"a": {"shape": [4], "data_offsets": [0, 16]}}, "a lacks a dtype"),
    "an unknown dtype": ({"a": spec(0, 16, dtype="F31")}, "a has the dtype F31"),
    "a list of dtypes": ({"a": spec(0, 16, dtype=["F32"])}, "a has the dtype"),
    "a number for a tensor": ({"a": 3}, "a lacks a dtype"),
    "metadata that is no text": ({"__metadata__": {"n": 1}, "a": spec(0, 16)}, "something else than text"),
    "a name twice": (b'{"a": %s, "a": %s}' % ((json.dumps(spec(0, 16)).encode(),) * 2), "the key 'a' stands twice"),
    "a dtype twice": (b'{"a": {"dtype": "I8", "dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}', "'dtype' stands twice"),
    "a list": (b"[]", "no JSON object"),
    "space before": (b' {"a": %s}' % json.dumps(spec(0, 16)).encode(), "no JSON object"),
    "no JSON": (b"{", "Expecting"),
    "no text": (b'{"\xff": 1}', "decode"),
    "half a character": (b'{"\\ud800": %s}' % json.dumps(spec(0, 16)).encode(), "surrogates"),
    "no number": (b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], "x": NaN}}', "NaN is no JSON"),
    "a nest": (b'{"a": ' + b"[" * 10**5, "nested too deep"),
}  # fmt: skip


@pytest.mark.parametrize("how", FORBIDDEN)
def test_a_forbidden_file_is_refused_for_its_reason(how, tmp_path):
    header, reason = FORBIDDEN[how]
    path = write(tmp_path / "m.safetensors", header)
    with pytest.raises(InputError, match=f"m.safetensors is not a whole safetensors file .*{reason}.*fetch it again") as error:
        read_tensors(path)
    assert "\n" not in str(error.value)
    if "twice" in how and "bytes" not in how or how == "space before":
        return  # the reference library's parser lets some of these pass
    with pytest.raises(SafetensorError), safe_open(path, framework="np") as file:
        file.keys()


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "cut short"),
        (bytes(7), "cut short"),
        ((10**6).to_bytes(8, "little") + b"{}", "cut short"),
        (b"\xff" * 8 + b"{}", "cut short"),
    ],
)
def test_a_piece_of_a_file_is_refused(data, reason, tmp_path):
    (tmp_path / "m.safetensors").write_bytes(data)
    with pytest.raises(InputError, match=reason):
        read_tensors(tmp_path / "m.safetensors")


def test_a_header_beyond_every_use_is_not_read(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes((2 * 10**8).to_bytes(8, "little"))
    with open(path, "ab") as file:
        file.truncate(3 * 10**8)  # a file of holes
    with pytest.raises(InputError, match="header has 200000000 bytes"):
        read_tensors(path)


def test_what_the_format_allows_is_read(tmp_path):
    tensors = {"a": np.float32([[1, 2], [3, 4]]), "none": np.zeros((0, 3), np.float16), "one": np.array(7, np.int64)}
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    for name, value in read_tensors(tmp_path / "m.safetensors").items():
        np.testing.assert_array_equal(value, tensors[name])
        assert value.shape == tensors[name].shape and value.dtype == tensors[name].dtype
    assert dict(read_tensors(write(tmp_path / "empty.safetensors", {}, b""))) == {}
    order = {"b": spec(8, 16), "a": spec(0, 8)}  # of the header is free, as are spaces behind it
    assert set(read_tensors(write(tmp_path / "o.safetensors", json.dumps(order).encode() + b"   "))) == {"a", "b"}
