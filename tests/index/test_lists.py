import pytest
import torch

from landmark.index import codes, recall
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
    assert index.keys_scored is not None
    assert index.keys_scored.double().mean() < 0.02 * 6000


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
    monkeypatch.setattr(codes, "basis_for", None)  # nothing is made anew
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
    known = index._coarse._evidence[0][0]
    assert recall._ENOUGH <= len(known._ranks) < recall._ENOUGH + 4


@pytest.mark.parametrize("recall", [0.9, 1.0])
def test_what_was_made_can_be_kept_and_goes_on(recall, monkeypatch):
    keys, query = alike(4000), queries(100)
    index = made(keys[:, :3000], recall)
    index.search(query, 2, [3000])
    index.append(0, keys[:, 3000:3100])
    index.search(query, 2, [3100])
    kept = {name: tensor.clone() for name, tensor in index.tensors().items()}
    monkeypatch.setattr("landmark.index.codes.basis_for", None)  # none is made
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


def about(points: torch.Tensor, *shape: int) -> torch.Tensor:
    """Vectors `[*shape,DIM]` around some of `points [n,DIM]`."""
    return points[torch.randint(len(points), shape)] + torch.randn(*shape, DIM)


def found_while_reading(topics: list[torch.Tensor], asked: list[torch.Tensor], forks: bool) -> list[float]:
    """The shares of the best 2 found as blocks come, 200 of each of `topics`, and queries about what is `asked`."""
    exact, index = ExactIndex(1), HierarchicalIndex(1, recall=0.9)
    shares, count = [], 0
    for topic, question in zip(topics, asked, strict=True):
        keys, query = about(topic, 1, 200), about(question, 1, 2, 40)
        for one in (exact, index):
            one.append(0, keys)
        count += 200
        searched = index.fork() if forks else index
        shares.append(share(*(one.search(query, 2, [count])[1] for one in (searched, exact))))
        if forks:
            index.search(query[:, :, :8], 2, [count])
    return shares


def _topics(count: int) -> list[torch.Tensor]:
    return [2.5 * torch.randn(20, DIM) for _ in range(count)]


def _documents(size: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    topics = [topic for topic in _topics(-(-12000 // size)) for _ in range(size // 200)][:60]
    return topics, topics


def _return() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    first, second, third = _topics(3)
    topics = [topic for topic in (first, second, first, third, second) for _ in range(12)]
    return topics, topics


def _slowly() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    first, second = _topics(2)
    topics = [first.lerp(second, step / 60) for step in range(60)]
    return topics, topics


def _other_questions() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    (topic,) = _topics(1)
    return [topic] * 60, [topic[:2] if step < 25 else topic for step in range(60)]


def _old_questions() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Of each document, questions about the one before."""
    topics, _ = _documents(1600)
    return topics, [topics[max(0, step - 8)] for step in range(60)]


@pytest.mark.parametrize("forks", [False, True])
@pytest.mark.parametrize(
    "drift",
    [lambda: _documents(3000), lambda: _documents(600), _return, _slowly, _other_questions, _old_questions],
    ids=["documents", "short documents", "one topic returns", "slowly", "queries alone", "old documents"],
)
def test_the_share_is_found_whatever_changes(drift, forks):
    shares = found_while_reading(*drift(), forks)[15:]  # lists begin at 2,048 blocks
    assert sum(shares) / len(shares) > 0.9


def test_queries_that_change_are_noticed_without_new_blocks():
    (points,) = _topics(1)
    keys = about(points, 1, 4000)
    exact, index = made_one(ExactIndex(1), keys), made_one(HierarchicalIndex(1, recall=0.9), keys)
    usual, harder = about(points[:2], 1, 2, 300), 3 * torch.randn(1, 2, 300, DIM)
    for query in (usual, harder, harder, harder):
        found, wanted = (one.search(query, 2, [4000])[1] for one in (index, exact))
    assert share(found, wanted) > 0.85


def made_one(index, keys: torch.Tensor):
    index.append(0, keys)
    return index


def test_branches_find_the_same_whatever_others_ask():
    keys, query = alike(4000), queries(400)
    index = made(keys, 0.8)
    index.search(query, 2, [4000])
    first, second = index.fork(), index.fork()
    for _ in range(3):
        second.search(3 * torch.randn_like(query), 2, [4000])
    third = first.fork()
    for start in range(0, 400, 50):
        some = query[:, :, start : start + 50]
        wanted = index.search(some, 2, [4000])
        for one in (first, third):
            assert all(map(torch.equal, one.search(some, 2, [4000]), wanted))


def test_evidence_of_before_it_was_watched_is_gathered_anew():
    keys, query = alike(3000), queries(100)
    index = made(keys, 0.8)
    wanted = index.search(query, 2, [3000])[1]
    kept = {name: tensor for name, tensor in index.tensors().items() if not name.endswith("watch")}
    again = made(keys, 0.8)
    again.resume(kept)
    assert torch.equal(again.search(query, 2, [3000])[1], wanted)
