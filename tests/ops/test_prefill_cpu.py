"""Attention for many queries in compiled loops, against the blockwise one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from landmark.ops import parallel
from landmark.ops.blockwise import blockwise_attention
from landmark.ops.prefill_cpu import many_queries_attention, serves
from landmark.ops.scoring import Scoring


@given(
    block_size=st.integers(1, 6),
    keys=st.integers(1, 90),
    queries=st.integers(1, 70),
    kv_heads=st.integers(1, 2),
    groups=st.integers(1, 3),
    softcap=st.sampled_from([None, 1.5]),
    with_sinks=st.booleans(),
    in_order=st.booleans(),
    threads=st.integers(1, 3),
)
def test_equals_blockwise(block_size, keys, queries, kv_heads, groups, softcap, with_sinks, in_order, threads):
    query = torch.randn(2, kv_heads * groups, queries, 6, dtype=torch.float64)
    key, value = torch.randn(2, 2, kv_heads, keys, 6, dtype=torch.float64)
    positions = torch.randint(keys, (2, queries))
    positions = positions.sort(1).values if in_order else positions
    scoring = Scoring(0.4, softcap, torch.randn(kv_heads * groups).double() if with_sinks else None)
    value[:, :, block_size :: block_size + 1] = torch.nan  # a landmark's value is never read
    assert serves(value, block_size)
    options = {"block_size": block_size, "scoring": scoring}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "_WORTH_A_THREAD", 1)
        patch.setattr(torch, "get_num_threads", lambda: threads)
        found = many_queries_attention(query, key, value, positions, **options)
    expected = blockwise_attention(query, key, value, query_positions=positions, **options)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, atol=1e-13, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scores_are_computed_in_float32(dtype):
    query, key, value = (torch.randn(1, heads, 150, 16).to(dtype) for heads in (4, 2, 2))
    positions, options = torch.arange(150)[None], {"block_size": 15, "scoring": Scoring()}
    out, lse = many_queries_attention(query, key, value, positions, **options)
    wide = [x.double() for x in (query, key, value)]
    exact, logarithms = blockwise_attention(*wide, query_positions=positions, **options)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(out.double(), exact, atol=4e-6, rtol=torch.finfo(dtype).eps)
    torch.testing.assert_close(lse.double(), logarithms, atol=2e-6, rtol=0)


def test_a_query_gets_the_same_bits_whatever_queries_lie_beside_it():
    query, key, value = (torch.randn(1, heads, 150, 16) for heads in (4, 2, 2))
    positions, options = torch.arange(150)[None], {"block_size": 15, "scoring": Scoring()}
    whole = many_queries_attention(query, key, value, positions, **options)
    for some in (slice(7, 8), slice(3, 140), slice(100, 133)):
        parts = many_queries_attention(query[:, :, some], key, value, positions[:, some], **options)
        for x, y in zip(parts, whole, strict=True):
            assert torch.equal(x, y[:, :, some])


def test_tensors_of_any_layout():
    tensors = [torch.randn(1, 40, heads, 16) for heads in (4, 2, 2)]
    positions, options = torch.arange(40)[None], {"block_size": 15, "scoring": Scoring()}
    query, key, value = (x.transpose(1, 2) for x in tensors)
    found = many_queries_attention(query, key, value, positions, **options)
    expected = many_queries_attention(query.contiguous(), key.contiguous(), value.contiguous(), positions, **options)
    for x, y in zip(found, expected, strict=True):
        assert torch.equal(x, y)


def test_a_query_that_sees_nothing_gives_0():
    # With a stride of 1 every key is a landmark, and a query never sees that of its own block.
    query, key, value = torch.randn(3, 1, 1, 1, 4)
    options = {"block_size": 0, "scoring": Scoring(1.0)}
    out, lse = many_queries_attention(query, key, value, torch.zeros(1, 1, dtype=torch.long), **options)
    assert not out.any()
    assert lse.item() == -torch.inf


def test_nan_keeps_to_the_queries_that_see_it():
    query, key, value = (torch.randn(1, 2, 60, 6) for _ in range(3))
    positions, options = torch.arange(60)[None], {"block_size": 9, "scoring": Scoring()}
    wanted, _ = many_queries_attention(query, key, value, positions, **options)
    query[:, :, 20], key[:, :, 57] = torch.nan, torch.nan
    found, _ = many_queries_attention(query, key, value, positions, **options)
    assert found[:, :, [20, 57, 58]].isnan().all()
    seen = [i for i in range(57) if i != 20]
    assert torch.equal(found[:, :, seen], wanted[:, :, seen])
    assert not serves(value.index_fill(2, torch.tensor([58]), torch.nan), 9)
