"""The state of a commit, read where it lies."""

import json

import pytest
import safetensors.torch
import torch

from landmark.contexts.fields import Malformed
from landmark.contexts.manifest import Layout, Manifest
from landmark.contexts.state import decode_state, encode_state

EMPTY = Manifest(0, {}, Layout((), ()))
TENSORS = {
    "codes": torch.arange(-8, 8).to(torch.int8).view(2, 4, 2),
    "norms": torch.randn(3, dtype=torch.float64),
    "window": torch.randn(2, 3).bfloat16(),
    "counts": torch.tensor([1, 2]),
    "one": torch.tensor(3.0),
    "none": torch.empty(0, 4),
}


def test_tensors_lie_in_the_bytes():
    data = bytearray(encode_state(TENSORS, {"step": 1}))
    found, metadata = decode_state(data, EMPTY)
    assert metadata == {"step": 1}
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    found["codes"].fill_(7)
    assert safetensors.torch.load(bytes(data))["codes"].unique().tolist() == [7]


def test_tensors_that_are_not_aligned_are_copied():
    data = encode_state({"norms": TENSORS["norms"]}, {})
    length = int.from_bytes(data[:8], "little") + 1
    shifted = bytearray(length.to_bytes(8, "little") + data[8 : 7 + length] + b" " + data[7 + length :])
    assert torch.equal(decode_state(shifted, EMPTY)[0]["norms"], TENSORS["norms"])


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [4], "data_offsets": [0, 15]},
        {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]},
        {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [0, 2**53, 2**53], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [16, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]},
        {"dtype": "F32", "shape": 4, "data_offsets": [0, 16]},
        {"dtype": "F32", "data_offsets": [0, 16]},
        {"dtype": "C128", "shape": [1], "data_offsets": [0, 16]},
        {"dtype": ["F32"], "shape": [4], "data_offsets": [0, 16]},
        7,
    ],
)
def test_a_header_that_does_not_fit_is_refused(entry):
    header = json.dumps({"__metadata__": {"metadata": "{}"}, "x": entry}).encode()
    with pytest.raises(Malformed, match=r"^x"):
        decode_state(bytearray(len(header).to_bytes(8, "little") + header + bytes(16)), EMPTY)
