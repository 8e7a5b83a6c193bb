import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from landmark.ops import topk_triton as module
from landmark.ops import triton_support
from landmark.ops.topk_triton import packed, search_landmarks

# Without a GPU the kernels run in Triton's interpreter.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CAPACITY = 5  # slots beyond those searched


def case(*, rows=1, kv_heads=2, groups=2, length=1, slots, dim=16, values=None, holes=0.2):
    """Query, keys and numbers; nobody may look at keys that are NaN. Few `values` make equal scores common."""

    def drawn(*shape):
        return torch.randn(shape) if values is None else torch.randint(values, shape) - values // 2.0

    query, keys = drawn(rows, kv_heads * groups, length, dim), drawn(rows, kv_heads, slots + CAPACITY, dim)
    numbers = torch.stack([torch.randperm(slots) for _ in range(rows)])
    numbers[torch.rand(rows, slots) < holes] = -1
    keys[:, :, :slots].masked_fill_((numbers < 0)[:, None, :, None], torch.nan)
    keys[:, :, slots:] = torch.nan
    return query.to(DEVICE), keys.to(DEVICE), numbers.to(DEVICE)


def assert_finds_the_best(query, keys, numbers, k, tolerance=0.0):
    """The definition: sort all scores, those that are equal by number, and take the first k."""
    torch.use_deterministic_algorithms(True)  # what is not written is NaN, or a high number
    try:
        scores, found = search_landmarks(query, keys, numbers, k)
    finally:
        torch.use_deterministic_algorithms(False)
    assert scores.dtype == torch.float32
    assert found.dtype == torch.long
    groups = query.shape[1] // keys.shape[1]
    for b, h, t in torch.cartesian_prod(*(torch.arange(n) for n in query.shape[:3])).tolist():
        products = keys[b, h // groups, : numbers.shape[1]].double() @ query[b, h, t].double()
        listed = zip(products.tolist(), numbers[b].tolist(), strict=True)
        best = sorted(((s, n) for s, n in listed if n >= 0), reverse=True)[:k]
        ours = sorted(zip(scores[b, h, t].tolist(), found[b, h, t].tolist(), strict=True), reverse=True)
        assert [n for _, n in ours] == [n for _, n in best] + [-1] * (k - len(best))
        assert [s for s, _ in ours] == pytest.approx(
            [s for s, _ in best] + [-torch.inf] * (k - len(best)), abs=tolerance
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("shape", "k"),
    [
        ({"rows": 2, "groups": 3, "slots": 40, "dim": 24}, 5),
        ({"groups": 1, "slots": 70, "length": 2}, 1),
        ({"slots": 3, "length": 7}, 6),
        ({"kv_heads": 1, "groups": 4, "slots": 33, "length": 5}, 4),
    ],
)
def test_finds_the_best(shape, k, dtype, monkeypatch):
    monkeypatch.setattr(module, "_TILE_KEYS", 16)
    query, keys, numbers = case(**shape)
    assert_finds_the_best(query.to(dtype), keys.to(dtype), numbers, k, tolerance=1e-4)


@pytest.mark.parametrize("programs", [1, 4, 512])  # one part, a few and as many as there are tiles
@pytest.mark.parametrize(("values", "holes"), [(1, 0.2), (2, 0.2), (3, 0.2), (3, 0.9)])  # 1 value: all scores are equal
def test_equal_scores_go_to_the_highest_number(values, holes, programs, monkeypatch):
    monkeypatch.setattr(module, "_PROGRAMS", programs)
    monkeypatch.setattr(module, "_TILE_KEYS", 16)
    monkeypatch.setattr(module, "_CANDIDATES", 4)
    assert_finds_the_best(*case(groups=2, kv_heads=1, slots=90, values=values, holes=holes), k=4)


@triton.jit
def pack_kernel(scores, out):
    at = tl.arange(0, 8)
    tl.store(out + at, packed(tl.load(scores + at), 7))


def test_scores_keep_their_order_as_integers_and_zeros_are_equal():
    scores = torch.tensor([-torch.inf, -2.0, -1e-40, -0.0, 0.0, 1e-40, 2.0, torch.inf], device=DEVICE)
    out = torch.empty(8, dtype=torch.long, device=DEVICE)
    pack_kernel[(1,)](scores, out)
    steps = out.diff()
    assert steps[3] == 0
    assert (steps[[0, 1, 2, 4, 5, 6]] > 0).all()


def test_many_are_found():
    assert_finds_the_best(*case(kv_heads=1, groups=1, slots=70, holes=0.0), k=32, tolerance=1e-4)


def test_nothing_to_find():
    query, keys, numbers = case(slots=4, holes=1.0)
    assert_finds_the_best(query, keys, numbers, k=2)
    assert_finds_the_best(query, keys, numbers[:, :0], k=2)


def test_no_score_above_minus_infinity_is_no_find():
    query, keys, numbers = case(kv_heads=1, groups=1, slots=3, holes=0.0)
    query[...], keys[:, :, :3] = 1.0, 0.5
    keys[:, :, 1] = -torch.inf
    scores, found = search_landmarks(query, keys, numbers, k=3)
    assert sorted(found.flatten().tolist()) == sorted([-1, *numbers[0, ::2].tolist()])
    assert sorted(scores.flatten().tolist()) == [-torch.inf, 8.0, 8.0]


def test_ten_runs_are_the_same_to_the_bit(monkeypatch):
    monkeypatch.setattr(module, "_TILE_KEYS", 16)
    call = case(kv_heads=1, slots=40, values=2)
    first, *others = [search_landmarks(*call, 4) for _ in range(10)]
    for other in others:
        assert all(torch.equal(x, y) for x, y in zip(first, other, strict=True))


def test_keys_beyond_two_to_the_31_elements(tmp_path):
    heads, dim = 3, 16
    count = (1 << 30) // dim
    room = heads * count * dim
    if DEVICE == "cpu":  # a file with a hole: nothing but the keys in use takes memory
        data = torch.from_file(str(tmp_path / "keys"), shared=True, size=room, dtype=torch.float16)
    else:
        data = torch.empty(room, dtype=torch.float16, device=DEVICE)
    keys = data.view(1, heads, count, dim)
    keys[:, :, :9] = torch.randn(1, heads, 9, dim)
    query, numbers = torch.randn(1, heads, 1, dim, device=DEVICE).half(), torch.arange(9, device=DEVICE)[None]
    assert_finds_the_best(query, keys, numbers, k=2, tolerance=1e-3)


def test_says_what_serves_instead(monkeypatch):
    query, keys, numbers = case(slots=4)
    with pytest.raises(ValueError, match=r"not torch.float64; use matrix products and .*top_newest"):
        search_landmarks(query.double(), keys.double(), numbers, 1)
    monkeypatch.setattr(triton_support, "_INSTALLED", False)
    with pytest.raises(ValueError, match="triton, which is not installed"):
        search_landmarks(query, keys, numbers, 1)
