"""The recall asked for is reached, whatever changes in keys or queries."""

import pytest
import torch
from index_cases import DIM, clustered, filled, queries, recall_of

from landmark.index.calibration import _ENOUGH
from landmark.index.exact import ExactIndex
from landmark.index.hierarchical import HierarchicalIndex


def test_few_queries_probe_every_list_until_the_index_is_calibrated():
    keys = clustered(5000)
    exact, index = filled(ExactIndex(1), keys), filled(HierarchicalIndex(1, recall=0.7), keys)
    for step in range(40):
        query = queries(1)
        found, wanted = (one.search(query, 2, [5000])[1] for one in (index, exact))
        if step < 2:  # 4 and then 8 best blocks of a head: no quantile for 0.85 of them
            assert recall_of(found, wanted) >= 0.8
    calibration = index._codes._calibrations[0][0]
    assert _ENOUGH <= len(calibration._ranks) < _ENOUGH + 4


def about(points: torch.Tensor, *shape: int) -> torch.Tensor:
    """Vectors `[*shape,DIM]` around some of `points [n,DIM]`."""
    return points[torch.randint(len(points), shape)] + torch.randn(*shape, DIM)


def found_while_reading(topics: list[torch.Tensor], asked: list[torch.Tensor], forks: bool) -> list[float]:
    """The recall at 2 as blocks come, 200 of each of `topics`, and queries about what is `asked`."""
    exact, index = ExactIndex(1), HierarchicalIndex(1, recall=0.9)
    shares, count = [], 0
    for topic, question in zip(topics, asked, strict=True):
        keys, query = about(topic, 1, 200), about(question, 1, 2, 40)
        for one in (exact, index):
            one.append(0, keys)
        count += 200
        searched = index.fork() if forks else index
        shares.append(recall_of(*(one.search(query, 2, [count])[1] for one in (searched, exact))))
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
def test_the_recall_is_reached_whatever_changes(drift, forks):
    shares = found_while_reading(*drift(), forks)[15:]  # lists begin at 2,048 blocks
    assert sum(shares) / len(shares) > 0.9


def test_queries_that_change_are_detected_without_new_blocks():
    (points,) = _topics(1)
    keys = about(points, 1, 4000)
    exact, index = filled(ExactIndex(1), keys), filled(HierarchicalIndex(1, recall=0.9), keys)
    usual, harder = about(points[:2], 1, 2, 300), 3 * torch.randn(1, 2, 300, DIM)
    for query in (usual, harder, harder, harder):
        found, wanted = (one.search(query, 2, [4000])[1] for one in (index, exact))
    assert recall_of(found, wanted) > 0.85


def test_branches_find_the_same_whatever_others_ask():
    keys, query = clustered(4000), queries(400)
    index = filled(HierarchicalIndex(1, recall=0.8), keys)
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


def test_a_calibration_of_an_earlier_release_is_made_anew():
    keys, query = clustered(3000), queries(100)
    index = filled(HierarchicalIndex(1, recall=0.8), keys)
    wanted = index.search(query, 2, [3000])[1]
    kept = {name: tensor for name, tensor in index.tensors().items() if not name.endswith("watch")}
    again = filled(HierarchicalIndex(1, recall=0.8), keys)
    again.resume(kept)
    assert torch.equal(again.search(query, 2, [3000])[1], wanted)
