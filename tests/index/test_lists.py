import pytest
import torch

from landmark.index import coarse, head_lists
from landmark.index.exact import ExactIndex
from landmark.index.hierarchical import HierarchicalIndex

HEADS, DIM = 2, 32


@pytest.fixture(autouse=True)
def _the_same_keys_every_time():
    torch.manual_seed(0)


def alike(count: int) -> torch.Tensor:
    """Keys `[HEADS,n,DIM]` around a few dozen points, as texts come back to what they are about."""
    points = torch.randn(HEADS, 40, DIM)[:, torch.randint(40, (count,))]
    return (points + 0.7 * torch.randn(HEADS, count, DIM)) * torch.logspace(0, -1, DIM)


def made(keys: torch.Tensor, recall: float) -> HierarchicalIndex:
    index = HierarchicalIndex(1, recall=recall)
    index.append(0, keys)
    return index


def queries(count: int) -> torch.Tensor:
    return torch.randn(1, 2 * HEADS, count, DIM)


def share(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return (wanted[..., None] == found[..., None, :]).any(-1).double().mean().item()


@pytest.mark.parametrize("recall", [0.7, 0.9, 0.97])
def test_the_share_asked_for_is_found(recall):
    keys, query = alike(6000), queries(300)
    exact, index = ExactIndex(1), made(keys, recall)
    exact.append(0, keys)
    scores, found = index.search(query, 2, [6000])
    best, wanted = exact.search(query, 2, [6000])
    assert recall - 0.05 < share(found, wanted) < 1
    # What is found has its true score, and nothing is found twice.
    right = (wanted[..., None] == found[..., None, :]).nonzero(as_tuple=True)
    torch.testing.assert_close(scores[(*right[:3], right[4])], best[right[:4]])
    assert (found[..., 0] != found[..., 1]).all()
    assert index.read is not None
    assert index.read.double().mean() < 0.02 * 6000


def test_the_newest_are_always_found_however_they_come():
    index = made(alike(3000), 0.7)
    index.search(queries(50), 2, [3000])
    for count in (1, 500, 700, 40, 3):
        own = torch.randn(HEADS, count, DIM)
        own[:, -1] *= 50
        index.append(0, own)
        query = own[:, -1].repeat_interleave(2, 0)[None, :, None]
        end = int(index.numbers(torch.device("cpu")).max()) + 1
        assert (index.search(query, 1, [end])[1] == end - 1).all()
        assert (index.search(query, 1, [end - 1])[1] < end - 1).all()


def test_blocks_are_searched_alike_whether_they_came_at_once_or_since(monkeypatch):
    keys, query = alike(3600), queries(200)
    late, index = made(keys[:, :2048], 0.9), made(keys, 0.9)
    late.search(query, 2, [2048])
    for some in keys[:, 2048:].split(97, 1):
        late.append(0, some)
        late.search(query[:, :, :1], 2, [3600])
    monkeypatch.setattr(coarse, "basis_for", None)  # nothing is made anew
    wanted = made_exact(keys).search(query, 2, [3600])[1]
    monkeypatch.undo()
    for one in (late, index):
        assert share(one.search(query, 2, [3600])[1], wanted) > 0.85


def made_exact(keys: torch.Tensor) -> ExactIndex:
    exact = ExactIndex(1)
    exact.append(0, keys)
    return exact


def test_the_same_keys_and_queries_give_the_same_blocks(monkeypatch):
    keys, query = alike(4000), queries(100)
    found = [made(keys, 0.8).search(query, 2, [4000])[1] for _ in range(2)]
    assert torch.equal(*found)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert torch.equal(made(keys, 0.8).search(query, 2, [4000])[1], found[0])


def test_few_queries_look_into_every_list_until_enough_is_known():
    keys = alike(5000)
    exact, index = made_exact(keys), made(keys, 0.7)
    for step in range(40):
        query = queries(1)
        found, wanted = (one.search(query, 2, [5000])[1] for one in (index, exact))
        if step < 2:  # 4 and then 8 best blocks of a head: no evidence for 0.85 of them
            assert share(found, wanted) >= 0.8
    head = index._coarse._heads[0][0]
    assert head_lists._ENOUGH <= len(head._ranks) < head_lists._ENOUGH + 4


@pytest.mark.parametrize("recall", [0.9, 1.0])
def test_what_was_made_can_be_kept_and_goes_on(recall, monkeypatch):
    keys, query = alike(4000), queries(100)
    index = made(keys[:, :3000], recall)
    index.search(query, 2, [3000])
    index.append(0, keys[:, 3000:3100])
    index.search(query, 2, [3100])
    kept = {name: tensor.clone() for name, tensor in index.tensors().items()}
    monkeypatch.setattr("landmark.index.coarse.basis_for", None)  # none is made
    for start in (3100, 4000):
        again = made(keys[:, :start], recall)
        again.resume({name: tensor.clone() for name, tensor in kept.items()})
        index.append(0, keys[:, 3100:start])
        found, wanted = (one.search(query, 2, [start]) for one in (again, index))
        assert torch.equal(found[1], wanted[1])
        assert torch.equal(found[0], wanted[0])
        assert again.read is not None


def test_what_was_made_for_another_recall_or_format_is_left():
    keys, query = alike(3000), queries(10)
    index = made(keys, 0.9)
    assert index.tensors() == {}
    index.search(query, 2, [3000])
    for other in (
        HierarchicalIndex(1, recall=0.8),
        HierarchicalIndex(1),
        HierarchicalIndex(1, keys="int8", recall=0.9),
    ):
        other.resume(index.tensors())
        assert other.tensors() == {}


def test_rows_that_are_repeated_go_on_by_themselves():
    keys, query = alike(3000), queries(20)
    index = made(keys, 0.9)
    index.search(query, 2, [3000])
    index.reorder([0, 0])
    for row in (0, 1):
        own = torch.zeros(HEADS, 1, DIM)
        own[..., row] = 100
        index.append(row, own)
    query = torch.zeros(2, 2 * HEADS, 1, DIM)
    query[0, ..., 0], query[1, ..., 1] = 1, 1
    scores, found = index.search(query, 1, [3001, 3001])
    assert (found == 3000).all()
    assert (scores == 100).all()
    assert index.nbytes > 2 * 3000 * HEADS * DIM * 4
