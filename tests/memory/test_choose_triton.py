"""On a GPU the queries of a chunk choose by one kernel what they choose on a CPU; here in Triton's interpreter."""

import pytest
import torch

pytest.importorskip("triton")

from landmark.index.base import Index
from landmark.index.constant import ConstantIndex
from landmark.index.exact import ExactIndex
from landmark.memory import selection
from landmark.memory.geometry import Past
from landmark.memory.selection import Choice, Retrieval
from landmark.ops import choose_triton
from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring

DIM, LENGTH, GROUPS = 8, 19, 2
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def retrieval(index: Index, counts: tuple[int, ...], *, retrieve=3, stingy=True, max_blocks=None) -> Retrieval:
    past = Past(
        counts=counts,
        kept=tuple(count if max_blocks is None else min(count, max_blocks) for count in counts),
        retrieve=retrieve,
        stingy=stingy,
        stride=4,
        starts=(30, 310),
        valid=(LENGTH, LENGTH - 4),
        width=LENGTH,
        device=DEVICE,
    )
    angles = torch.outer(torch.arange(400), 30.0 ** (-torch.arange(DIM // 2) / 4)).repeat(1, 2).to(DEVICE)
    return Retrieval(index, past, Rotation(angles.cos(), angles.sin(), "half"), Scoring(0.4, 5.0))


def filled(index: Index, counts: tuple[int, ...]) -> Index:
    for row, count in enumerate(counts):
        if count:
            keys = torch.randn(2, 1 if isinstance(index, ConstantIndex) else count, DIM)
            index.append(row, keys.expand(-1, count, -1).to(DEVICE))
    return index


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """Grows with each launch of the kernel, which stands in for that on a GPU."""
    monkeypatch.setattr(selection, "_on_cpu", lambda query: False)
    made, real = [], choose_triton.choose_blocks
    monkeypatch.setattr(choose_triton, "choose_blocks", lambda *args, **how: made.append(1) or real(*args, **how))
    return made


def by_definition(found: Retrieval, query: torch.Tensor, choice: str) -> Choice:
    """The choice tile by tile, from all scores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Retrieval, "_in_one_kernel", lambda *_: None)
        return found.choose(query, choice, None)


@pytest.mark.parametrize("choice", ["per_token_and_head", "per_group"])
@pytest.mark.parametrize("stingy", [True, False])
@pytest.mark.parametrize("counts", [(40, 17), (3, 50), (2, 0), (1, 1)])
def test_one_launch_chooses_what_all_scores_choose(counts, stingy, choice, calls):
    found = retrieval(filled(ExactIndex(2), counts), counts, stingy=stingy)
    query = torch.randn(2, 2 * GROUPS, LENGTH, DIM, device=DEVICE)
    expected = by_definition(found, query, choice)
    chosen = found.choose(query, choice, None)
    assert len(calls) == 1
    assert chosen.blocks.shape == (2, 2 if choice == "per_group" else 2 * GROUPS, LENGTH, min(3, max(counts)))
    assert torch.equal(chosen.blocks, expected.blocks)
    assert torch.equal(chosen.distance, expected.distance)


@pytest.mark.parametrize("index", [ConstantIndex(2), ExactIndex(2, 5)])
def test_one_key_for_all_blocks_and_a_ring(index, calls):
    counts, max_blocks = (40, 17), 5 if isinstance(index, ExactIndex) else None
    found = retrieval(filled(index, counts), counts, max_blocks=max_blocks)
    query = torch.randn(2, 2 * GROUPS, LENGTH, DIM, device=DEVICE)
    chosen, expected = (
        found.choose(query, "per_token_and_head", None),
        by_definition(found, query, "per_token_and_head"),
    )
    assert len(calls) == 1
    assert torch.equal(chosen.blocks, expected.blocks)
    assert torch.equal(chosen.distance, expected.distance)


def test_a_fork_is_served_until_it_has_blocks_of_its_own(calls):
    base = filled(ExactIndex(2), (20, 12))
    fork, query = base.fork(), torch.randn(2, 2 * GROUPS, LENGTH, DIM, device=DEVICE)
    retrieval(fork, (20, 12)).choose(query, "per_token_and_head", None)
    assert len(calls) == 1
    for row in range(2):
        fork.append(row, torch.randn(2, 3, DIM, device=DEVICE))
    found = retrieval(fork, (23, 15))
    chosen, expected = (
        found.choose(query, "per_token_and_head", None),
        by_definition(found, query, "per_token_and_head"),
    )
    assert len(calls) == 1
    assert torch.equal(chosen.blocks, expected.blocks)


@pytest.mark.parametrize(
    ("index", "options", "dtype"),
    [
        (ExactIndex(2, keys="int8"), {}, torch.float32),
        (ExactIndex(2, keys="bfloat16"), {}, torch.float32),
        (ExactIndex(2), {"retrieve": choose_triton.MOST_CHOSEN + 1}, torch.float32),
        (ExactIndex(2), {}, torch.float64),
    ],
)
def test_what_the_kernel_does_not_serve_is_chosen_tile_by_tile(index, options, dtype, calls):
    found = retrieval(filled(index, (50, 40)), (50, 40), **options)
    query = torch.randn(2, 2 * GROUPS, LENGTH, DIM, device=DEVICE, dtype=dtype)
    assert found._in_one_kernel(query) is None
    if dtype == torch.float32:
        assert found.choose(query, "per_token_and_head", None).blocks.shape[-1] == found.past.k
    assert not calls
