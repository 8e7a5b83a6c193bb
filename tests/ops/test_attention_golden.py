"""Exact cases, computed in float64 by the method's original code: outputs and every gradient."""

from pathlib import Path

import numpy as np
import pytest
import torch

from landmark.ops.attention import landmark_attention

_FOLDER = Path(__file__).parents[1] / "golden" / "op"
_NAMES = sorted(path.stem for path in _FOLDER.glob("*.npz"))


def test_golden_files_are_present():
    assert len(_NAMES) == 5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("backend", ["reference", "blockwise"])
@pytest.mark.parametrize("name", _NAMES)
def test_golden(name, backend, dtype):
    with np.load(_FOLDER / f"{name}.npz") as file:
        case = {key: torch.from_numpy(file[key]) for key in file.files if key not in ("is_mem", "block")}
        landmarks, stride = np.flatnonzero(file["is_mem"]), int(file["block"])
    block_size = stride - 1
    phase = block_size - int(landmarks[0]) if len(landmarks) else 0
    inputs = [case[key].to(dtype).requires_grad_() for key in ("q", "k", "v")]
    out = landmark_attention(*inputs, block_size=block_size, phase=phase, backend=backend)
    grads = torch.autograd.grad(out, inputs, case["do"].to(dtype))
    exact = dtype == torch.float64
    torch.testing.assert_close(out.double(), case["o"], rtol=0, atol=1e-12 if exact else 2e-6)
    for grad, key in zip(grads, ("dq", "dk", "dv"), strict=True):
        torch.testing.assert_close(grad.double(), case[key], rtol=0, atol=1e-12 if exact else 5e-6)


@pytest.mark.parametrize("name", _NAMES)
def test_golden_with_landmarks_given_by_place(name):
    with np.load(_FOLDER / f"{name}.npz") as file:
        query, key, value, expected = (torch.from_numpy(file[x]).double() for x in ("q", "k", "v", "o"))
        is_landmark = torch.from_numpy(file["is_mem"])
    out = landmark_attention(query, key, value, is_landmark=is_landmark)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
