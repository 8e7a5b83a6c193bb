import pytest
import torch
from index_cases import DIM, HEADS, clustered, filled, queries, recall_of

from landmark.index import codes
from landmark.index.exact import ExactIndex
from landmark.index.hierarchical import HierarchicalIndex
from landmark.index.ivf import kmeans, nearest_centroids, standard_deviations


def separated(each: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys `[4 * each,8]` close to four points, and the point of each."""
    of = torch.arange(4).repeat(each)
    return 10 * torch.eye(4, 8)[of] + 0.1 * torch.randn(len(of), 8), of


def test_kmeans_finds_separated_clusters():
    keys, of = separated(50)
    centroids = kmeans(keys, 4)
    nearest = nearest_centroids(keys, centroids)
    assert len({(one, other) for one, other in zip(of.tolist(), nearest.tolist(), strict=True)}) == 4
    for one in range(4):
        torch.testing.assert_close(centroids[one], keys[nearest == one].mean(0))
    assert torch.equal(centroids, kmeans(keys, 4))
    assert ((standard_deviations(keys, centroids) - 0.1).abs() < 0.03).all()


def test_the_nearest_centroid_is_the_nearest():
    keys, centroids = torch.randn(300, 8), torch.randn(20, 8)
    assert torch.equal(nearest_centroids(keys, centroids), torch.cdist(keys, centroids).argmin(1))


def test_equal_keys_leave_centroids_without_keys_that_are_finite():
    keys = torch.ones(30, 8)
    centroids = kmeans(keys, 7)
    assert torch.equal(centroids, torch.ones(7, 8))
    assert torch.equal(standard_deviations(keys, centroids), torch.zeros(7))


@pytest.mark.parametrize("recall", [0.7, 0.9, 0.97])
def test_the_recall_asked_for_is_reached(recall):
    keys, query = clustered(6000), queries(300)
    exact, index = ExactIndex(1), filled(HierarchicalIndex(1, recall=recall), keys)
    exact.append(0, keys)
    scores, found = index.search(query, 2, [6000])
    best, wanted = exact.search(query, 2, [6000])
    assert recall - 0.05 < recall_of(found, wanted) < 1
    # What is found has its true score, and nothing is found twice.
    right = (wanted[..., None] == found[..., None, :]).nonzero(as_tuple=True)
    torch.testing.assert_close(scores[(*right[:3], right[4])], best[right[:4]])
    assert (found[..., 0] != found[..., 1]).all()
    assert index.keys_scored is not None
    assert index.keys_scored.double().mean() < 0.02 * 6000


def test_the_newest_blocks_are_always_found_however_they_come():
    index = filled(HierarchicalIndex(1, recall=0.7), clustered(3000))
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
    keys, query = clustered(3600), queries(200)
    late, index = (filled(HierarchicalIndex(1, recall=0.9), some) for some in (keys[:, :2048], keys))
    late.search(query, 2, [2048])
    for some in keys[:, 2048:].split(97, 1):
        late.append(0, some)
        late.search(query[:, :, :1], 2, [3600])
    monkeypatch.setattr(codes, "basis_for", None)  # no quantizer is fitted anew
    wanted = filled(ExactIndex(1), keys).search(query, 2, [3600])[1]
    monkeypatch.undo()
    for one in (late, index):
        assert recall_of(one.search(query, 2, [3600])[1], wanted) > 0.85


def test_the_same_keys_and_queries_give_the_same_blocks(monkeypatch):
    keys, query = clustered(4000), queries(100)
    found = [filled(HierarchicalIndex(1, recall=0.8), keys).search(query, 2, [4000])[1] for _ in range(2)]
    assert torch.equal(*found)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert torch.equal(filled(HierarchicalIndex(1, recall=0.8), keys).search(query, 2, [4000])[1], found[0])


@pytest.mark.parametrize("recall", [0.9, 1.0])
def test_the_state_can_be_saved_and_resumed(recall, monkeypatch):
    keys, query = clustered(4000), queries(100)
    index = filled(HierarchicalIndex(1, recall=recall), keys[:, :3000])
    index.search(query, 2, [3000])
    index.append(0, keys[:, 3000:3100])
    index.search(query, 2, [3100])
    kept = {name: tensor.clone() for name, tensor in index.tensors().items()}
    monkeypatch.setattr("landmark.index.codes.basis_for", None)  # no quantizer is fitted
    for start in (3100, 4000):
        again = filled(HierarchicalIndex(1, recall=recall), keys[:, :start])
        again.resume({name: tensor.clone() for name, tensor in kept.items()})
        index.append(0, keys[:, 3100:start])
        found, wanted = (one.search(query, 2, [start]) for one in (again, index))
        assert torch.equal(found[1], wanted[1])
        assert torch.equal(found[0], wanted[0])
        assert again.keys_scored is not None


def test_the_state_of_another_recall_or_format_is_ignored():
    keys, query = clustered(3000), queries(10)
    index = filled(HierarchicalIndex(1, recall=0.9), keys)
    assert index.tensors() == {}
    index.search(query, 2, [3000])
    for other in (
        HierarchicalIndex(1, recall=0.8),
        HierarchicalIndex(1),
        HierarchicalIndex(1, keys="int8", recall=0.9),
    ):
        other.resume(index.tensors())
        assert other.tensors() == {}


def test_rows_that_are_repeated_are_independent():
    keys, query = clustered(3000), queries(20)
    index = filled(HierarchicalIndex(1, recall=0.9), keys)
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
