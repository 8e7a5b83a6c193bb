"""Reading with the kernels made for a GPU, here in Triton's interpreter: what blockwise attention reads."""

import pytest
import torch
from memory_cases import layer_memory

from landmark.memory import window
from landmark.ops.fused import unsupported_reason
from landmark.ops.rotary import Rotation

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

pytest.importorskip("triton")


def rotation() -> Rotation:
    angles = torch.outer(torch.arange(200.0), 30.0 ** (-torch.arange(0, 16, 2) / 16)).to(DEVICE)
    angles = torch.cat((angles, angles), -1)
    return Rotation(angles.cos(), angles.sin(), "half")


def test_rows_of_different_lengths(monkeypatch):
    chunks = [torch.randn(3, 2, heads, 20, 16, device=DEVICE) for heads in (4, 2, 2)]
    monkeypatch.setattr(window, "is_few", lambda query: False)
    outputs = []
    for serves in (lambda query: unsupported_reason(query) is None, lambda query: False):
        monkeypatch.setattr(window, "_fused", serves)
        memory = layer_memory(block_size=5, retrieve=2, local_blocks=1)
        for step, lengths in enumerate(([20, 9], [13, 20], [20, 0])):
            out = memory.attend(*(x[step] for x in chunks), lengths=lengths, rotation=rotation())
            outputs.append([out[row, :, :length] for row, length in enumerate(lengths)])
    for fused, blockwise in zip(outputs[:3], outputs[3:], strict=True):
        for x, y in zip(fused, blockwise, strict=True):
            torch.testing.assert_close(x, y, atol=2e-6, rtol=1e-5)
