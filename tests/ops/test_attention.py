"""Grouped softmax attention: cases worked out by hand, refused arguments, and golden values of the original code."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from landmark.ops.attention import landmark_attention

# Cases small enough to work out by hand, and the rules that hold for any backend.

BACKENDS = ["reference", "blockwise"]


def attend(scores, values, **options):
    """One query at the last position, of head_dim 1, so that `scores` are its scores against every key."""
    query = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    key = torch.tensor(scores, dtype=torch.float64).view(1, 1, -1, 1)
    value = torch.tensor(values, dtype=torch.float64).view(1, 1, -1, 1)
    return landmark_attention(query, key, value, scale=1.0, **options).item()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gate_shares_its_weight_inside_the_block(backend):
    # Block (0, 0, landmark log 3), then the query itself with score 0: gate 3/4, own weight 1/4.
    out = attend([0.0, 0.0, math.log(3), 0.0], [4.0, 8.0, 1e6, 100.0], block_size=2, backend=backend)
    assert out == pytest.approx(3 / 8 * 4 + 3 / 8 * 8 + 1 / 4 * 100, abs=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_inside_a_block_do_not_open_it(backend):
    # The first block's tokens score high, yet only its landmark decides how much of them is read.
    out = attend([500.0, 500.0, 0.0, 0.0], [2.0, 4.0, 1e6, 10.0], block_size=2, backend=backend)
    assert out == pytest.approx((3.0 + 10.0) / 2, abs=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_blocks_of_very_different_scores_keep_their_precision(backend):
    out = attend(
        [-900.0, -900.0, 0.0, 900.0, 900.0, 0.0, 0.0],
        [1.0, 3.0, 0, 5.0, 7.0, 0, 0.0],
        block_size=2,
        backend=backend,
    )
    assert out == pytest.approx((2.0 + 6.0 + 0.0) / 3, abs=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_landmark_row_reads_its_block_but_not_itself(backend):
    out = attend([0.0, math.log(3), 9.0], [4.0, 8.0, 1e6], block_size=2, backend=backend)
    assert out == pytest.approx(1 / 4 * 4 + 3 / 4 * 8, abs=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_landmark_of_an_empty_block_keeps_its_gate(backend):
    # phase = block_size: position 0 is a landmark of nothing; half of the weight is lost.
    out = attend([0.0, 0.0], [1e6, 6.0], block_size=2, phase=2, backend=backend)
    assert out == pytest.approx(3.0, abs=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padded_block_with_a_real_landmark_keeps_its_gate(backend):
    mask = torch.tensor([[False, False, True, True]])
    out = attend([0.0] * 4, [1.0, 1.0, 1.0, 6.0], block_size=2, key_mask=mask, backend=backend)
    assert out == pytest.approx(3.0, abs=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_other_documents_and_their_blocks_are_hidden(backend):
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 1]])
    values = [1e6, 1e6, 1e6, 1e6, 4.0, 1e6, 8.0]
    out = attend([0.0] * 7, values, block_size=2, document_ids=documents, backend=backend)
    # Landmark 5 opens block 1, of which only token 4 belongs to the query's document.
    assert out == pytest.approx((4.0 + 8.0) / 2, abs=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sink_takes_weight_and_gives_nothing(backend):
    sinks = torch.tensor([math.log(3)], dtype=torch.float64)
    out = attend([0.0], [8.0], block_size=2, sinks=sinks, backend=backend)
    assert out == pytest.approx(2.0, abs=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_softcap_comes_before_the_gates(backend):
    high = math.tanh(10.0 / 2.0) * 2.0
    out = attend([0.0, 0.0, 10.0, 0.0], [1.0, 1.0, 1e6, 0.0], block_size=2, softcap=2.0, backend=backend)
    assert out == pytest.approx(math.exp(high) / (math.exp(high) + 1), abs=1e-12)


def test_two_landmarks_in_a_row():
    is_landmark = torch.tensor([False, True, True, False])
    out = attend([0.0] * 4, [3.0, 1e6, 1e6, 9.0], is_landmark=is_landmark)
    assert out == pytest.approx((3.0 + 0.0 + 9.0) / 3, abs=1e-12)


def test_rows_of_a_batch_may_place_landmarks_differently():
    query, key, value = (torch.randn(2, 2, 9, 4, dtype=torch.float64) for _ in range(3))
    places = torch.rand(2, 9) < 0.3
    both = landmark_attention(query, key, value, is_landmark=places)
    for row in range(2):
        one = landmark_attention(*(x[row : row + 1] for x in (query, key, value)), is_landmark=places[row])
        torch.testing.assert_close(both[row : row + 1], one)


@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_see_nothing_are_zero_with_zero_gradients(backend, with_sinks):
    inputs = [torch.randn(2, 2, 11, 4).requires_grad_() for _ in range(3)]
    sinks = torch.randn(2, requires_grad=True) if with_sinks else None
    mask = torch.ones(2, 11, dtype=torch.bool)
    mask[0] = False  # a row of nothing but padding
    mask[1, :5] = False  # left padding beyond the first block
    out = landmark_attention(*inputs, block_size=3, key_mask=mask, sinks=sinks, backend=backend)
    assert out[0].eq(0).all()
    assert out[1, :, :5].eq(0).all()
    wanted = inputs if sinks is None else [*inputs, sinks]
    grads = torch.autograd.grad(out.square().sum() + out.sum(), wanted)
    assert all(grad.isfinite().all() for grad in grads)
    assert all(grad[0].eq(0).all() and grad[1, :, :5].eq(0).all() for grad in grads[:3])
    assert grads[0][1, :, 6:].ne(0).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_keeps_the_mean_and_repeats_with_the_seed(backend):
    inputs = [torch.randn(1, 2, 30, 4, dtype=torch.float64) for _ in range(3)]

    def run(dropout):
        return landmark_attention(*inputs, block_size=3, dropout=dropout, backend=backend)

    torch.manual_seed(3)
    first = run(0.3)
    assert not torch.equal(first, run(0.3))
    torch.manual_seed(3)
    assert torch.equal(first, run(0.3))
    mean = torch.stack([run(0.3) for _ in range(400)]).mean(0)
    torch.testing.assert_close(mean, run(0.0), rtol=0, atol=0.25)
    assert (mean - run(0.0)).mean().abs() < 0.02


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_does_not_lower_the_precision(backend):
    inputs = [torch.randn(1, 2, 20, 8).requires_grad_() for _ in range(3)]
    expected = landmark_attention(*inputs, block_size=3, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = landmark_attention(*inputs, block_size=3, backend=backend)
    assert torch.equal(out, expected)
    grads = torch.autograd.grad(out.sum(), inputs)
    assert all(map(torch.equal, grads, torch.autograd.grad(expected.sum(), inputs)))


# Wrong arguments are refused by name.

X = torch.randn(2, 2, 6, 4)
LONG = torch.zeros(2, 6, dtype=torch.long)
BOOL = torch.zeros(2, 6, dtype=torch.bool)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of block_size and is_landmark; neither"),
        ({"block_size": 3, "is_landmark": BOOL}, "exactly one of block_size and is_landmark; both"),
        ({"block_size": 0}, "block_size=0"),
        ({"block_size": 3, "phase": 4}, r"phase=4 is not in 0\.\.3"),
        ({"block_size": 3, "phase": -1}, r"phase=-1 is not in 0\.\.3"),
        ({"is_landmark": BOOL, "phase": 1}, "phase=1 needs block_size"),
        ({"is_landmark": LONG}, "is_landmark is torch.int64"),
        ({"is_landmark": BOOL[:, :5]}, r"is_landmark is torch.bool of \(2, 5\)"),
        ({"block_size": 3, "dropout": 1.0}, "dropout=1.0"),
        ({"block_size": 3, "dropout": -0.1}, "dropout=-0.1"),
        ({"block_size": 3, "softcap": 0.0}, "softcap=0.0"),
        ({"block_size": 3, "scale": float("nan")}, "scale=nan"),
        ({"block_size": 3, "sinks": torch.zeros(3)}, r"sinks is torch.float32 of \(3,\)"),
        ({"block_size": 3, "key_mask": LONG}, "key_mask is torch.int64"),
        ({"block_size": 3, "key_mask": BOOL[:1]}, r"key_mask is torch.bool of \(1, 6\)"),
        ({"block_size": 3, "document_ids": BOOL}, "document_ids is torch.bool"),
        ({"block_size": 3, "document_ids": LONG[:, 1:]}, r"document_ids is torch.int64 of \(2, 5\)"),
        ({"block_size": 3, "backend": "flash"}, "backend='flash'; choose one of auto, reference"),
        ({"block_size": 3, "backend": "fused"}, "'fused' (serves|needs).*; use backend='blockwise'"),
        ({"is_landmark": BOOL, "backend": "blockwise"}, "use backend='reference'"),
        ({"is_landmark": BOOL, "backend": "fused"}, "'fused' needs block_size; use backend='reference'"),
    ],
)
def test_options(options, message):
    with pytest.raises(ValueError, match=message):
        landmark_attention(X, X, X, **options)


@pytest.mark.parametrize(
    ("query", "key", "value", "message"),
    [
        (X[0], X, X, r"query \(2, 6, 4\).*each must be \[batch, heads"),
        (X, X[:, :, :0], X[:, :, :0], "without empty dimensions"),
        (X, X, X[..., :3], "key and value must have the same shape"),
        (X, X[:1], X[:1], "batch and head_dim must be the same"),
        (X, X[..., :3], X[..., :3], "batch and head_dim must be the same"),
        (X, X.repeat(1, 2, 1, 1), X.repeat(1, 2, 1, 1), "multiple of the 4 key heads"),
        (X, X[:, :, :5], X[:, :, :5], "pass a key for each"),
        (X, X.double(), X, "convert them to one floating dtype"),
        (X.long(), X.long(), X.long(), "convert them to one floating dtype"),
    ],
)
def test_tensors(query, key, value, message):
    with pytest.raises(ValueError, match=message):
        landmark_attention(query, key, value, block_size=3)


def test_auto_is_blockwise_on_a_grid_and_the_reference_elsewhere():
    grid = landmark_attention(X, X, X, block_size=2)
    assert torch.equal(grid, landmark_attention(X, X, X, block_size=2, backend="blockwise"))
    places = torch.arange(6) % 3 == 2
    placed = landmark_attention(X, X, X, is_landmark=places)
    assert torch.equal(placed, landmark_attention(X, X, X, is_landmark=places, backend="reference"))
    torch.testing.assert_close(grid, placed)


# Exact cases, computed in float64 by the method's original code: outputs and every gradient.

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
