import sys

import pytest
import torch

from benchmarks import faiss_index as faiss_module
from benchmarks.faiss_index import FaissIndex
from landmark.index.exact import ExactIndex

CPU = torch.device("cpu")
KINDS = ["flat", "ivf", "hnsw"]


@pytest.fixture(autouse=True)
def _few_are_enough_for_lists(monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(faiss_module, "_LISTS_FROM", 200)


def filled(kind: str, counts: tuple[int, ...]) -> tuple[FaissIndex, ExactIndex]:
    indexes = FaissIndex(len(counts), kind=kind), ExactIndex(len(counts))
    for row, count in enumerate(counts):
        for some in torch.randn(2, count, 16).split(150, 1) if count else ():
            for index in indexes:
                index.append(row, some)
    return indexes


def share_found(index: FaissIndex, exact: ExactIndex, k: int, upto: list[int]) -> float:
    query = torch.randn(len(upto), 4, 9, 16)
    (scores, numbers), (best, wanted) = (one.search(query, k, upto) for one in (index, exact))
    assert all(numbers[row].max() < end for row, end in enumerate(upto))
    right = (wanted[..., None] == numbers[..., None, :]).any(-1)
    torch.testing.assert_close(scores.amax(-1)[right[..., 0]], best.amax(-1)[right[..., 0]])
    assert ((numbers < 0) == (scores == -torch.inf)).all()
    return right.double().mean().item()


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_blocks_are_found(kind):
    index, exact = filled(kind, (500, 40, 0))
    for upto in ([500, 40, 0], [495, 3, 0]):
        share = share_found(index, exact, 4, upto)
        assert share == 1 if kind == "flat" else share > 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_keys_rows_and_branches(kind):
    index, exact = filled(kind, (500, 40))
    numbers = torch.tensor([[499, 0, 7], [39, 1, 3]])
    assert torch.equal(index.keys(numbers), exact.keys(numbers))
    assert torch.equal(index.numbers(CPU), exact.numbers(CPU))
    branches = index.fork(), exact.fork()
    new = torch.randn(2, 3, 16)
    for branch in branches:
        branch.append(1, new)
        branch.reorder([1, 0, 1])
    assert torch.equal(*(branch.keys(torch.tensor([[42], [499], [20]])) for branch in branches))
    assert share_found(*branches, 3, [43, 500, 43]) > 0.5
    index.reorder([1, 1])
    index.append(0, new)
    assert index.numbers(CPU)[:, -1].tolist() == [42, -1]
    assert index.nbytes >= (43 + 40) * 2 * 16 * 4


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input_is_refused(kind):
    with pytest.raises(ValueError, match="max_blocks is 3"):
        FaissIndex(1, 3, kind=kind)
    index, _ = filled(kind, (5,))
    with pytest.raises(ValueError, match="float64"):
        index.append(0, torch.zeros(2, 1, 16).double())
    with pytest.raises(ValueError, match="per_token_and_head"):
        index.scores(torch.zeros(1, 4, 1, 16), [5])


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ValueError, match=r"landmark-attention\[benchmarks\]"):
        FaissIndex(1, kind="flat")
