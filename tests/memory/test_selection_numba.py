"""What one compiled pass chooses for a few queries is what the search for many chooses."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from memory_cases import DIM, quarter_turns

from landmark.index.constant import ConstantIndex
from landmark.index.exact import ExactIndex
from landmark.memory import selection
from landmark.memory.geometry import Past
from landmark.memory.selection import Retrieval
from landmark.ops import parallel
from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring

STRIDE = 4


@pytest.mark.parametrize("length", [5, 40])
@pytest.mark.parametrize("left", [None, 3, 40])
def test_nearly_equal_keys_are_told_apart_alike(left, length):
    torch.manual_seed(0)
    keys = torch.randn(2, 1, 20) * (1 + 1e-7 * torch.randn(2, 90, 20))
    index = ExactIndex(1)
    index.append(0, keys[:, :left])
    if left is not None:
        index = index.fork()
        index.append(0, keys[:, left:])
    angles = torch.outer(torch.arange(400), 30.0 ** (-torch.arange(8) / 8)).repeat(1, 2)
    past = Past(
        counts=(90,), kept=(90,), retrieve=3, stingy=True, stride=STRIDE, starts=(300,), valid=(length,), width=length,
        device=torch.device("cpu"),
    )  # fmt: skip
    retrieval = Retrieval(index, past, Rotation(angles.cos(), angles.sin(), "half"), Scoring(0.3))
    query = torch.randn(1, 4, length, 20)
    whole = ExactIndex(1)
    whole.append(0, keys)
    few = replace(retrieval, index=whole).choose(query, "per_token_and_head", None).blocks
    assert torch.equal(few, retrieval.choose(query, "per_token_and_head", None).blocks)  # in the branch, as it lies
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ExactIndex, "resident_keys", lambda *_: None)  # as where there are many blocks
        many = retrieval.choose(query, "per_token_and_head", None).blocks
    assert torch.equal(few, many)


@given(
    counts=st.lists(st.integers(0, 70), min_size=2, max_size=2).filter(any),
    max_blocks=st.sampled_from([None, 1, 3, 40]),
    retrieve=st.integers(1, 5),
    length=st.integers(1, 3),
    groups=st.integers(1, 2),
    stingy=st.booleans(),
    constant=st.booleans(),
)
def test_few_queries_choose_what_many_choose(counts, max_blocks, retrieve, length, groups, stingy, constant):
    constant = constant and stingy  # landmark keys at places of their own are not equal
    index = (ConstantIndex if constant else ExactIndex)(2, max_blocks)
    for row, count in enumerate(counts):
        keys = torch.randint(-1, 2, (2, 1 if constant else count, DIM)).double().expand(-1, count, -1)
        if count:
            index.append(row, keys)
    past = Past(
        counts=tuple(counts),
        kept=tuple(count if max_blocks is None else min(count, max_blocks) for count in counts),
        retrieve=retrieve,
        stingy=stingy,
        stride=STRIDE,
        starts=(300, 310),
        valid=(length, length),
        width=length,
        device=torch.device("cpu"),
    )
    query = torch.randint(-1, 2, (2, 2 * groups, length, DIM)).double()
    retrieval = Retrieval(index, past, quarter_turns(), Scoring(1.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "_WORTH_A_THREAD", 1)
        few = retrieval.choose(query, "per_token_and_head", None)
        patch.setattr(selection, "FEW_QUERIES", 0)
        many = retrieval.choose(query, "per_token_and_head", None)
    assert torch.equal(few.blocks, many.blocks)
    assert torch.equal(few.distance, many.distance)
