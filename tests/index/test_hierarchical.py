import pytest
import torch
from index_cases import recall_of

from landmark.index import codes_numba, hierarchical
from landmark.index import exact as exact_module
from landmark.index.exact import ExactIndex
from landmark.index.hierarchical import HierarchicalIndex

CPU = torch.device("cpu")


def alike(count: int, dim: int = 64, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Keys or queries `[2,n,D]` that lie mostly in a few directions, as real ones do."""
    scale = torch.logspace(0, -1.5, dim, dtype=dtype)
    turn = torch.linalg.qr(torch.randn(2, dim, dim, dtype=dtype)).Q
    return torch.randn(2, count, dim, dtype=dtype) * scale @ turn + torch.randn(2, 1, dim, dtype=dtype)


def both(keys: torch.Tensor, query: torch.Tensor, k: int, **options) -> tuple[float, HierarchicalIndex]:
    """The share of the exact best that the hierarchical index finds, and that index."""
    exact, index = ExactIndex(1), HierarchicalIndex(1, **options)
    for one in (exact, index):
        one.append(0, keys)
    wanted, found = (one.search(query, k, [keys.shape[1]]) for one in (exact, index))
    torch.testing.assert_close(found[0][..., 0], wanted[0].amax(-1))
    return recall_of(found[1], wanted[1]), index


def queries(count: int, **options) -> torch.Tensor:
    return alike(2 * count, **options).view(1, 4, count, -1)


@pytest.mark.parametrize(("count", "dim"), [(3000, 64), (5001, 48), (2100, 10), (2048, 128)])
@pytest.mark.parametrize("threads", [1, 2])
def test_many_blocks_are_searched_exactly_and_few_are_scored(count, dim, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    share, index = both(alike(count, dim), queries(67, dim=dim), 3)
    assert share == 1
    assert index.keys_scored is not None
    assert index.keys_scored.double().mean() < 0.3 * count


@pytest.mark.usefixtures("codes_at_once")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "change",
    [
        lambda keys: keys * 0,
        lambda keys: keys * 0 + 1.1,
        lambda keys: torch.cat((keys[..., :1] * 0 + 3, keys[..., 1:]), -1),
        lambda keys: keys * 1e15,
        lambda keys: keys * 1e-15,
        lambda keys: keys + 1e4,
        lambda keys: keys * torch.logspace(0, 6, keys.shape[1], dtype=keys.dtype)[:, None],
        lambda keys: keys[:, :1].expand_as(keys) * torch.linspace(-1, 1, keys.shape[1], dtype=keys.dtype)[:, None],
    ],
    ids=["zero", "equal", "flat", "huge", "tiny", "far", "growing", "a line"],
)
def test_the_best_score_is_found_whatever_the_keys(change, dtype):
    keys, query = change(alike(700, 32, dtype)), queries(9, dim=32, dtype=dtype)
    exact, index = ExactIndex(1), HierarchicalIndex(1)
    for one in (exact, index):
        for some in keys.split((300, 1, 399), 1):
            one.append(0, some)
            found = one.search(query, 2, [699])
    wanted = exact.search(query, 2, [699])[0].sort(-1).values
    tolerance = torch.finfo(dtype).eps * 64 * keys.norm(dim=-1).max() * query.norm(dim=-1).max()
    assert (wanted - found[0].sort(-1).values).abs().max() <= tolerance


def test_equal_keys_tie_wherever_they_lie():
    keys = alike(3000)
    keys[:, [5, 700, 2998, 2999]] = 3 * keys[:, 40:41]
    query = keys[:, 40].repeat_interleave(2, 0)[None, :, None]
    index = HierarchicalIndex(1)
    index.append(0, keys)
    assert index.search(query, 2, [2999])[1].sort(-1).values.tolist() == [[[[700, 2998]]] * 4]


def test_lower_recall_scores_fewer_keys_and_finds_about_that_share():
    torch.manual_seed(0)
    keys, query = alike(4000), queries(100)
    results = [both_shares(keys, query, recall) for recall in (0.5, 0.8, 0.95, 1.0)]
    shares, read = zip(*results, strict=True)
    assert list(read) == sorted(read)
    assert list(shares) == sorted(shares)
    assert shares[-1] == 1
    assert shares[2] > 0.9


def both_shares(keys: torch.Tensor, query: torch.Tensor, recall: float) -> tuple[float, float]:
    exact, index = ExactIndex(1), HierarchicalIndex(1, recall=recall)
    for one in (exact, index):
        one.append(0, keys)
    wanted, found = (one.search(query, 2, [keys.shape[1]])[1] for one in (exact, index))
    assert index.keys_scored is not None
    return recall_of(found, wanted), index.keys_scored.double().mean().item()


@pytest.mark.parametrize("form", ["bfloat16", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [ExactIndex, HierarchicalIndex])
def test_rounded_keys_are_close_and_count_from_then_on(form, dtype, kind, monkeypatch):
    monkeypatch.setattr(exact_module, "_TILE_ROUNDED", 1000)
    keys, query = alike(2500, dtype=dtype), queries(20, dtype=dtype)
    index = kind(1, 2400, keys=form)
    for some in keys.split(900, 1):
        index.append(0, some)
    numbers = torch.arange(100, 2500)
    kept = index.keys(numbers[None])[0].to(dtype)
    largest = keys[:, 100:].abs().amax(-1, keepdim=True)
    assert ((kept - keys[:, 100:]).abs() <= largest * (2**-8 if form == "bfloat16" else 0.5001 / 127)).all()
    assert not torch.equal(kept, keys[:, 100:])
    scores, found = index.search(query, 3, [2500])
    all_scores = (query.view(2, -1, 64) @ kept.mT).view(1, 4, 20, -1)
    wanted = all_scores.topk(3)
    assert torch.equal(found.sort(-1).values, (wanted.indices + 100).sort(-1).values)
    torch.testing.assert_close(scores.sort(-1).values, wanted.values.sort(-1).values)
    torch.testing.assert_close(index.scores(query, [2500]), all_scores[..., index.numbers(CPU)[0] - 100])
    assert index.resident_keys(3, [2500]) is None
    size = 64 * 2 if form == "bfloat16" else 64 + keys.element_size()
    assert ExactIndex.nbytes.fget(index) == 2400 * 2 * size


def test_few_blocks_are_resident_and_many_are_not():
    index = HierarchicalIndex(1)
    index.append(0, torch.randn(2, hierarchical._CODES_FROM - 1, 8))
    assert index.resident_keys(2, [9]) is not None
    before = index.nbytes
    index.append(0, torch.randn(2, 1, 8))
    assert index.resident_keys(2, [9]) is None
    index.search(torch.randn(1, 2, 1, 8), 2, [9])
    assert index.nbytes - before == 2 * 8 * 4 + hierarchical._CODES_FROM * 2 * (codes_numba.CODES + 4)


def test_codes_that_do_not_help_are_left_until_there_are_twice_as_many_blocks():
    index, query = HierarchicalIndex(1), torch.randn(1, 4, 64, 64)
    index.append(0, torch.randn(2, 3000, 64))
    index.search(query, 2, [3000])
    assert index.keys_scored is not None
    assert index.nbytes == 2 * 3000 * 64 * 4
    for more, helps in ((0, False), (2999, False), (1, True)):
        index.append(0, torch.randn(2, more, 64))
        count = 3000 + more
        assert (index.resident_keys(2, [count]) is None) == helps
        index.search(query, 2, [count])
        assert (index.keys_scored is not None) == helps


def test_bad_input_is_refused():
    for recall in (0.0, 0.49, 1.01, float("nan")):
        with pytest.raises(ValueError, match="recall is"):
            HierarchicalIndex(1, recall=recall)
    with pytest.raises(ValueError, match="bfloat16"):
        HierarchicalIndex(1).append(0, torch.zeros(1, 1, 4, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="on meta"):
        HierarchicalIndex(1).append(0, torch.zeros(1, 1, 4, device="meta"))
