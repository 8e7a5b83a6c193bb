import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from landmark.index import exact
from landmark.index.exact import ExactIndex
from landmark.index.tied import TiedIndex
from landmark.index.topk import _sorted, top_newest


def whole(*shape: int) -> torch.Tensor:
    """Small whole numbers: sums are exact, and equal scores are common."""
    return torch.randint(-1, 2, shape).double()


def best(scores: list[float], numbers: list[int], k: int) -> list[tuple[float, int]]:
    """The definition: highest score first, the newest among equals; as a sorted list."""
    ranked = sorted((-s, -n) for s, n in zip(scores, numbers, strict=True) if s != -torch.inf)
    return sorted((-s, -n) for s, n in ranked[:k])


def pairs(scores: torch.Tensor, numbers: torch.Tensor) -> list[tuple[float, int]]:
    found = zip(scores.tolist(), numbers.tolist(), strict=True)
    return sorted((s, n) for s, n in found if n >= 0)


@given(
    length=st.one_of(st.integers(1, 40), st.integers(1000, 1200)),
    k=st.integers(1, 6),
    values=st.integers(1, 400),
)
def test_top_newest_breaks_ties_by_age(length, k, values):
    scores = torch.randint(values, (3, length)).double()
    scores[torch.rand(3, length) < 0.2] = -torch.inf
    numbers = torch.randperm(length)
    for found in (top_newest(scores, numbers[None], k), _sorted(scores, numbers[None], k)):
        for row in range(3):
            assert pairs(found[0][row], found[1][row]) == best(scores[row].tolist(), numbers.tolist(), k)
            assert (found[1][row] < 0).sum() == max(0, k - (scores[row] > -torch.inf).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_there_is_never_found_whatever_its_score(dtype):
    scores = torch.randn(2, 3, 40).to(dtype)
    numbers = torch.arange(40).repeat(2, 1)
    numbers[0, ::2], numbers[1] = -1, -1
    scores[numbers[:, None].expand_as(scores) < 0] = torch.inf
    values, found = top_newest(scores, numbers[:, None], 4)
    assert (found[0] % 2 == 1).all()
    assert (found[1] == -1).all()
    assert (values[1] == -torch.inf).all()


@given(
    parts=st.lists(st.tuples(st.integers(0, 1), st.integers(1, 9)), min_size=1, max_size=6),
    max_blocks=st.sampled_from([None, 1, 3, 8]),
    k=st.integers(1, 5),
    tile=st.sampled_from([4, 40, 1 << 20]),
    newest_left_out=st.integers(0, 3),
)
def test_search_equals_sorting_all_scores(parts, max_blocks, k, tile, newest_left_out):
    index, keys = ExactIndex(2, max_blocks), [torch.empty(2, 0, 4).double(), torch.empty(2, 0, 4).double()]
    for row, count in parts:
        new = whole(2, count, 4)
        index.append(row, new)
        keys[row] = torch.cat((keys[row], new), 1)
    query = whole(2, 4, 3, 4)
    upto = [max(0, x.shape[1] - newest_left_out) for x in keys]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "_TILE_SCORES", tile)
        scores, numbers = index.search(query, k, upto)
    dense, labels = index.scores(query, upto), index.numbers(query.device)
    for row in range(2):
        count = keys[row].shape[1]
        kept = range(0 if max_blocks is None else max(0, count - max_blocks), upto[row])
        for head in range(4):
            for step in range(3):
                expected = (keys[row][head // 2, kept.start : kept.stop] @ query[row, head, step]).tolist()
                assert pairs(scores[row, head, step], numbers[row, head, step]) == best(expected, list(kept), k)
                seen = dense[row, head, step] > -torch.inf
                assert pairs(dense[row, head, step][seen], labels[row][seen]) == best(expected, list(kept), count)


@pytest.mark.parametrize("max_blocks", [None, 5])
def test_tied_index_equals_exact_index_on_equal_keys(max_blocks):
    key, counts = whole(2, 1, 4), [9, 2]
    query = whole(2, 4, 3, 4)
    indices = ExactIndex(2, max_blocks), TiedIndex(2, max_blocks)
    for index in indices:
        for row, count in enumerate(counts):
            index.append(row, key.expand(-1, count, -1))
    for upto in ([9, 2], [6, 0]):
        found, tied = (index.search(query, 3, upto) for index in indices)
        assert torch.equal(found[1].sort(-1).values, tied[1].sort(-1).values)
        assert torch.equal(found[0].sort(-1).values, tied[0].sort(-1).values)
        for row in range(2):
            dense = [
                dict(
                    zip(
                        i.numbers(query.device)[row].tolist(),
                        i.scores(query, upto)[row, 1, 2].tolist(),
                        strict=True,
                    )
                )
                for i in indices
            ]
            for d in dense:
                d.pop(-1, None)
            assert dense[0] == dense[1]
    numbers = torch.tensor([[8, 7], [1, 0]])
    assert torch.equal(indices[0].keys(numbers), indices[1].keys(numbers))


def test_keys_come_back_by_number():
    index, keys = ExactIndex(1, 4), torch.randn(2, 10, 3)
    index.append(0, keys)
    assert torch.equal(index.keys(torch.tensor([[6, 9, 7]]))[0], keys[:, [6, 9, 7]])
    assert index.keys(torch.tensor([[-1]])).isfinite().all()


@pytest.mark.parametrize("kind", [ExactIndex, TiedIndex])
def test_rows_can_be_reordered_and_repeated(kind):
    index, query = kind(2), torch.randn(1, 2, 1, 4).expand(2, -1, -1, -1)
    index.append(0, torch.randn(2, 1, 4).expand(-1, 3, -1))
    index.append(1, torch.randn(2, 1, 4).expand(-1, 5, -1))
    before = index.search(query, 2, [3, 5])
    index.reorder([1, 0, 1])
    after = index.search(query[:1].expand(3, -1, -1, -1), 2, [5, 3, 5])
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new, old[[1, 0, 1]])


def test_bytes_count_what_is_kept():
    index = ExactIndex(2, 4)
    assert index.nbytes == 0
    index.append(0, torch.randn(2, 3, 8))
    index.append(1, torch.randn(2, 9, 8))
    assert index.nbytes == (3 + 4) * 2 * 8 * 4
