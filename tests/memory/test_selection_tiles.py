"""What tiles of queries choose is what each of them chooses alone, to the last bit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from landmark.index.constant import ConstantIndex
from landmark.index.exact import ExactIndex
from landmark.memory import selection
from landmark.memory.geometry import Past
from landmark.memory.selection import Retrieval
from landmark.ops import parallel
from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring

DIM = 8


@given(
    counts=st.lists(st.integers(0, 300), min_size=2, max_size=2).filter(any),
    max_blocks=st.sampled_from([None, 3, 40]),
    retrieve=st.integers(1, 5),
    length=st.integers(9, 70),
    groups=st.integers(1, 2),
    stingy=st.booleans(),
    constant=st.booleans(),
    nearly_equal=st.booleans(),
    threads=st.integers(1, 2),
)
def test_many_queries_choose_what_each_chooses_alone(
    counts, max_blocks, retrieve, length, groups, stingy, constant, nearly_equal, threads
):
    constant = constant and stingy  # landmark keys at places of their own are not equal
    index = (ConstantIndex if constant else ExactIndex)(2, max_blocks)
    for row, count in enumerate(counts):
        keys = torch.randn(2, 1 if constant else count, DIM).expand(-1, count, -1)
        if nearly_equal and not constant:
            keys = keys[:, :1] * (1 + 1e-7 * keys)
        if count:
            index.append(row, keys)
    past = Past(
        counts=tuple(counts),
        kept=tuple(count if max_blocks is None else min(count, max_blocks) for count in counts),
        retrieve=retrieve,
        stingy=stingy,
        stride=4,
        starts=(30, 310),
        valid=(length, length),
        width=length,
        device=torch.device("cpu"),
    )
    angles = torch.outer(torch.arange(400), 30.0 ** (-torch.arange(4) / 4)).repeat(1, 2)
    retrieval = Retrieval(index, past, Rotation(angles.cos(), angles.sin(), "half"), Scoring(0.4))
    query = torch.randn(2, 2 * groups, length, DIM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "_WORTH_A_THREAD", 1)
        patch.setattr(torch, "get_num_threads", lambda: threads)
        many = retrieval.choose(query, "per_token_and_head", None)
        patch.setattr(selection, "MOST_BLOCKS", 0)
        searched = retrieval.choose(query, "per_token_and_head", None)
        patch.setattr(selection, "FEW_QUERIES", length)
        alone = retrieval.choose(query, "per_token_and_head", None)
    for other in (searched, alone):
        assert torch.equal(many.blocks, other.blocks)
        assert torch.equal(many.distance, other.distance)
