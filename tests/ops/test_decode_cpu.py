"""Attention for a few queries, looped and dense, against the blockwise one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from landmark.ops import parallel
from landmark.ops.blockwise import blockwise_attention
from landmark.ops.decode_cpu import dense, few_queries_attention
from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring

NONE = Rotation(torch.empty(0), torch.empty(0), "none")


@given(
    block_size=st.integers(1, 6),
    keys=st.integers(1, 25),
    queries=st.integers(1, 4),
    kv_heads=st.integers(1, 2),
    groups=st.integers(1, 3),
    softcap=st.sampled_from([None, 1.5]),
    with_sinks=st.booleans(),
)
def test_equals_blockwise(block_size, keys, queries, kv_heads, groups, softcap, with_sinks):
    query = torch.randn(2, kv_heads * groups, queries, 6, dtype=torch.float64)
    key, value = torch.randn(2, 2, kv_heads, keys, 6, dtype=torch.float64)
    positions = torch.randint(keys, (2, queries))
    sinks = torch.randn(kv_heads * groups).double() if with_sinks else None
    angles = torch.outer(torch.arange(25).double(), torch.tensor([1.0, 0.1])).repeat(1, 2)
    turning = Rotation(angles.cos(), angles.sin(), "half")
    options = {"scoring": Scoring(0.4, softcap, sinks)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "_WORTH_A_THREAD", 1)
        looped = few_queries_attention(query, key, value, positions, turning, block_size=block_size, **options)
    turned = turning.apply(query, positions[:, None])
    by_matrices = dense(turned, key, value, positions, block_size + 1, **options)
    expected = blockwise_attention(turned, key, value, block_size=block_size, query_positions=positions, **options)
    for x, y, z in zip(looped, by_matrices, expected, strict=True):
        torch.testing.assert_close(x, z, atol=1e-13, rtol=0)
        torch.testing.assert_close(y, z, atol=1e-13, rtol=0)


@pytest.mark.parametrize("with_sinks", [False, True])
def test_a_query_that_sees_nothing_gives_0(with_sinks):
    # With a stride of 1 every key is a landmark, and a query never sees that of its own block.
    query, key, value = torch.randn(3, 1, 1, 1, 4)
    scoring = Scoring(1.0, None, torch.zeros(1) if with_sinks else None)
    place = torch.zeros(1, 1, dtype=torch.long)
    for out, lse in (
        few_queries_attention(query, key, value, place, NONE, block_size=0, scoring=scoring),
        dense(query, key, value, place, 1, scoring),
    ):
        assert not out.any()
        assert lse.item() == (0.0 if with_sinks else -torch.inf)


def test_halves_are_scored_in_float32():
    query, key, value = (torch.randn(1, 2, n, 8).bfloat16() for n in (1, 20, 20))
    place = torch.tensor([[19]])
    options = {"block_size": 4, "scoring": Scoring(0.3)}
    out, lse = few_queries_attention(query, key, value, place, NONE, **options)
    exact, _ = few_queries_attention(query.double(), key.double(), value.double(), place, NONE, **options)
    assert out.dtype == torch.bfloat16
    assert lse.dtype == torch.float32
    torch.testing.assert_close(out.double(), exact, atol=1e-6, rtol=torch.finfo(torch.bfloat16).eps)
