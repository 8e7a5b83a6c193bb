"""The choice of blocks by one kernel: the k best by the definition, whatever ties, is missing or is NaN."""

import pytest
import torch

pytest.importorskip("triton")

from landmark.ops import choose_triton as module
from landmark.ops.choose_triton import choose_blocks
from landmark.ops.rotary import Rotation

# Without a GPU the kernels run in Triton's interpreter.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STRIDE = 4


def rotation(style, width=8, positions=400):
    angles = torch.outer(torch.arange(positions).float(), 30.0 ** (-torch.arange(0, width, 2).float() / width))
    angles = torch.cat((angles, angles), -1) if style == "half" else angles.repeat_interleave(2, -1)
    return Rotation(angles.cos().to(DEVICE), angles.sin().to(DEVICE), style)


def case(
    *,
    counts=(20, 13),
    kept=None,
    k=3,
    length=5,
    kv_heads=2,
    groups=2,
    dim=12,
    values=None,
    modulus=None,
    stingy=True,
    gap=0,
):
    """Arguments of `choose_blocks`. Few `values` make equal scores common. Slots without a block are NaN."""
    counts = torch.tensor(counts)
    kept = counts if kept is None else torch.tensor(kept)
    capacity = modulus or int(counts.max()) + 3

    def drawn(*shape):
        return torch.randn(shape) if values is None else torch.randint(values, shape) - values // 2.0

    keys = torch.full((len(counts), kv_heads, capacity, dim), torch.nan)
    for row, (count, left) in enumerate(zip(counts.tolist(), kept.tolist(), strict=True)):
        slots = torch.arange(count - left, count) % capacity
        keys[row, :, slots] = drawn(kv_heads, left, dim)
    upto = counts - torch.minimum(torch.tensor(k), kept) * stingy
    starts = (k + 1) * STRIDE + gap if stingy else int(counts.max()) * STRIDE
    return {
        "query": drawn(len(counts), kv_heads * groups, length, dim).to(DEVICE),
        "keys": keys.to(DEVICE),
        "positions": (starts + torch.arange(length) + torch.arange(len(counts))[:, None]).to(DEVICE),
        "bounds": torch.stack((upto, counts, torch.full_like(counts, gap)), 1).to(DEVICE),
        "first": (counts - kept).to(DEVICE),
        "modulus": capacity,
        "stride": STRIDE,
        "k": k,
        "stingy": stingy,
    }


def assert_chooses_the_best(turning, *, query, keys, positions, bounds, first, modulus, stride, k, stingy):
    """The definition, query by query: sort all scores, those that are equal by number, and take the first k."""
    given = {"positions": positions, "bounds": bounds, "first": first, "modulus": modulus}
    torch.use_deterministic_algorithms(True)  # what is not written is a high number
    try:
        blocks, distance = choose_blocks(query, keys, turning, **given, stride=stride, k=k, stingy=stingy)
    finally:
        torch.use_deterministic_algorithms(False)
    assert blocks.dtype == distance.dtype == torch.long
    groups = query.shape[1] // keys.shape[1]
    for b, h, t in torch.cartesian_prod(*(torch.arange(n) for n in query.shape[:3])).tolist():
        (upto, count, gap), position, scores = bounds[b].tolist(), int(positions[b, t]), []
        for number in range(int(first[b]), count):
            begin = (number - upto + 1) * stride + gap if stingy and number >= upto else 0
            at = torch.tensor(max(0, position - begin), device=DEVICE)
            turned = turning.apply(query[b, h, t], at)
            score = float(turned.double() @ keys[b, h // groups, number % modulus].double())
            if score > -torch.inf:
                scores.append((score, number))
        best = sorted(number for _, number in sorted(scores, reverse=True)[:k])
        newer = [stingy and number >= upto for number in best]
        begins = [(i + new if stingy else best[i]) * stride + gap * new for i, new in enumerate(newer)]
        missing = k - len(best)
        assert blocks[b, h, t].tolist() == best + [-1] * missing
        assert distance[b, h, t].tolist() == [position - begin for begin in begins] + [0] * missing


@pytest.mark.parametrize("style", ["half", "interleaved", "none"])
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"counts": (90,), "k": 5, "groups": 3},
        {"counts": (40, 17, 3), "groups": 1, "k": 4, "length": 9},
        {"counts": (30, 2), "kv_heads": 1, "groups": 4, "k": 1},
        {"counts": (25, 20), "stingy": False},
        {"counts": (30, 2), "gap": 7},
    ],
)
def test_chooses_the_best(shape, style):
    assert_chooses_the_best(rotation(style), **case(**shape))


@pytest.mark.parametrize("stingy", [False, True])
def test_fewer_blocks_than_are_opened_and_rows_without_any(stingy):
    assert_chooses_the_best(rotation("half"), **case(counts=(2, 0, 7), k=5, stingy=stingy))
    assert_chooses_the_best(rotation("half"), **case(counts=(1,), k=1, stingy=stingy))


@pytest.mark.parametrize("values", [1, 2, 3])  # 1 value: all scores are equal
def test_equal_scores_go_to_the_newest(values):
    assert_chooses_the_best(rotation("none"), **case(counts=(70, 9), values=values, k=4))


def test_a_ring_of_slots_and_one_key_for_all_blocks():
    ring = case(counts=(23, 4), kept=(10, 4), modulus=10)
    assert_chooses_the_best(rotation("half"), **ring)
    one = case(counts=(40, 3), kept=(1, 1), modulus=1, values=3) | {"first": torch.tensor([30, 0], device=DEVICE)}
    one["bounds"] = torch.tensor([[37, 40, 0], [0, 3, 0]], device=DEVICE)
    assert_chooses_the_best(rotation("none"), **one)


def test_many_are_chosen():
    assert_chooses_the_best(rotation("half"), **case(counts=(70,), k=module.MOST_CHOSEN, length=2, kv_heads=1))


def test_what_is_nan_or_minus_infinity_is_not_chosen():
    given = case(counts=(20,), k=4, kv_heads=1, groups=1, length=3)
    given["keys"][0, 0, 5] = torch.nan  # an old block
    given["keys"][0, 0, 18] = torch.nan  # a new one
    given["query"][0, 0, 1] = torch.nan
    assert_chooses_the_best(rotation("half"), **given)
    given = case(counts=(6,), k=6, kv_heads=1, groups=1, length=1, values=1)
    given["query"][...] = 1.0
    given["keys"][0, 0, [1, 4]] = -torch.inf
    assert_chooses_the_best(rotation("none"), **given)


def test_blocks_beyond_the_bounds_are_never_seen():
    """Those that the chunk completes, or another row: their slots hold NaN in `case`, here the highest scores."""
    given = case(counts=(12, 30), k=3)
    given["query"][...] = 1.0
    given["keys"][0, :, 12:] = 1e6
    given["first"][1] = 4
    given["keys"][1, :, :4] = 1e6
    assert_chooses_the_best(rotation("none"), **given)


def test_ten_runs_are_the_same_to_the_bit():
    given = case(counts=(40,), values=2)
    query, keys = given.pop("query"), given.pop("keys")
    first, *others = [choose_blocks(query, keys, rotation("half"), **given) for _ in range(10)]
    for other in others:
        assert all(torch.equal(x, y) for x, y in zip(first, other, strict=True))


def test_nothing_is_asked():
    given = case(length=0)
    blocks, distance = choose_blocks(given.pop("query"), given.pop("keys"), rotation("half"), **given)
    assert blocks.shape == distance.shape == (2, 4, 0, 3)
