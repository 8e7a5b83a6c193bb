"""Every wrong argument of landmark_attention is refused, by name."""

import pytest
import torch

from landmark.ops.attention import landmark_attention

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
