import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from landmark.ops import parallel
from landmark.ops.retrieved import Pages, join_retrieved, merge, pytorch, retrieved_attention
from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring

STRIDE, DIM, COUNT = 4, 6, 7


def rotation(style) -> Rotation:
    a = torch.outer(torch.arange(60).double(), 10.0 ** -torch.arange(2).double())  # leaves two dimensions as they are
    a = a.repeat_interleave(2, -1) if style == "interleaved" else torch.cat((a, a), -1)
    return Rotation(a.cos(), a.sin(), style)


def pages_of(rows: int, kv_heads: int, table: torch.Tensor) -> Pages:
    keys, values = (torch.randn(rows, kv_heads, COUNT, STRIDE, DIM, dtype=torch.float64) for _ in range(2))
    values[:, :, :, -1] = torch.nan  # a landmark's value is never read
    return Pages(keys, values, table)


def one_by_one(query, pages, distance, rotation, softcap):
    """The definition: one query, one block at a time."""
    full = (*query.shape[:3], pages.table.shape[-1])
    groups = query.shape[1] // pages.keys.shape[1]
    table, distance = (
        x.repeat_interleave(query.shape[1] // x.shape[1], 1).expand(full) for x in (pages.table, distance)
    )
    inside = torch.zeros(*full, DIM, dtype=torch.float64)
    gates = torch.full(full, -torch.inf, dtype=torch.float64)
    for b, h, t, c in itertools.product(*(range(n) for n in full)):
        page = int(table[b, h, t, c])
        if page < 0:
            continue
        scores = pages.keys[b, h // groups, page] @ rotation.apply(query[b, h, t], distance[b, h, t, c])
        scores = scores * 0.4
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        gates[b, h, t, c] = scores[-1]
        inside[b, h, t, c] = scores[:-1].softmax(0) @ pages.values[b, h // groups, page, :-1]
    return inside, gates


@pytest.mark.parametrize("backend", ["gathered", "numba", "tiled"])
@given(
    shared=st.sampled_from(["none", "heads", "groups", "queries"]),
    rows=st.integers(1, 2),
    kv_heads=st.integers(1, 2),
    groups=st.integers(1, 3),
    length=st.integers(1, 5),
    k=st.integers(1, 4),
    softcap=st.sampled_from([None, 1.5]),
    style=st.sampled_from(["half", "interleaved", "none"]),
    tile=st.sampled_from([1, 2000, 1 << 20]),
)
def test_equals_the_definition(backend, shared, rows, kv_heads, groups, length, k, softcap, style, tile):
    heads = kv_heads * groups
    query = torch.randn(rows, heads, length, DIM, dtype=torch.float64)
    some_heads = {"heads": 1, "groups": kv_heads}.get(shared, heads)
    some_queries = 1 if shared == "queries" else length
    pages = pages_of(rows, kv_heads, torch.randint(-1, COUNT, (rows, some_heads, some_queries, k)))
    distance = torch.randint(STRIDE, 60, (rows, some_heads, length, k))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytorch, "_TILE_BYTES", tile)
        patch.setattr(parallel, "_WORTH_A_THREAD", 1)
        options = {"rotation": rotation(style), "scoring": Scoring(0.4, softcap), "backend": backend}
        inside, gates = retrieved_attention(query, pages, distance, **options)
    expected = one_by_one(query, pages, distance, rotation(style), softcap)
    torch.testing.assert_close(inside, expected[0], atol=1e-13, rtol=0)
    torch.testing.assert_close(gates, expected[1], atol=1e-13, rtol=0)


@pytest.mark.parametrize("backend", ["gathered", "numba", "tiled"])
def test_float32_is_as_exact_as_plain_products(backend):
    query, dim = torch.randn(1, 2, 40, 64), 64
    keys, values = torch.randn(2, 1, 1, 9, 33, dim)
    pages = Pages(keys, values, torch.randint(9, (1, 2, 40, 3)))
    distance = torch.zeros(1, 2, 40, 3, dtype=torch.long)
    none = Rotation(torch.empty(0), torch.empty(0), "none")
    options = {"rotation": none, "scoring": Scoring(0.125)}
    inside, gates = retrieved_attention(query, pages, distance, **options, backend=backend)
    exact = Pages(keys.double(), values.double(), pages.table)
    expected = retrieved_attention(query.double(), exact, distance, **options, backend="gathered")
    assert inside.dtype == gates.dtype == torch.float32
    torch.testing.assert_close(inside.double(), expected[0], atol=2e-6, rtol=0)
    torch.testing.assert_close(gates.double(), expected[1], atol=2e-6, rtol=0)


@given(
    shared=st.sampled_from(["none", "heads", "groups", "queries"]),
    kv_heads=st.integers(1, 2),
    groups=st.integers(1, 2),
    length=st.integers(1, 3),
    softcap=st.sampled_from([None, 1.5]),
    style=st.sampled_from(["half", "interleaved", "none"]),
)
def test_a_few_queries_are_joined_in_one_pass(shared, kv_heads, groups, length, softcap, style):
    heads = kv_heads * groups
    query = torch.randn(2, heads, length, DIM, dtype=torch.float64)
    some_heads = {"heads": 1, "groups": kv_heads}.get(shared, heads)
    some_queries = 1 if shared == "queries" else length
    pages = pages_of(2, kv_heads, torch.randint(-1, COUNT, (2, some_heads, some_queries, 3)))
    distance = torch.randint(STRIDE, 60, (2, some_heads, length, 3))
    local = torch.randn(2, heads, length, DIM).double(), torch.randn(2, heads, length).double()
    local[1][torch.rand(local[1].shape) < 0.3] = -torch.inf
    local[0][local[1] == -torch.inf] = 0.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "_WORTH_A_THREAD", 1)
        turning = rotation(style)
        found = join_retrieved(
            *local, query, [(slice(None), pages)], distance, rotation=turning, scoring=Scoring(0.4, softcap)
        )
    expected = merge(*local, *one_by_one(query, pages, distance, rotation(style), softcap))
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, atol=1e-13, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(
    shared=st.booleans(),
    kv_heads=st.integers(1, 2),
    groups=st.integers(1, 2),
    cuts=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    softcap=st.sampled_from([None, 1.5]),
    dim=st.sampled_from([6, 16, 64]),
    blocks=st.sampled_from([None, 1]),
)
def test_pieces_of_the_queries_change_not_a_bit(dtype, shared, kv_heads, groups, cuts, softcap, dim, blocks):
    heads, length, count = kv_heads * groups, sum(cuts), 30
    query, out = (torch.randn(1, heads, length, dim).to(dtype) for _ in range(2))
    keys, values = (torch.randn(1, kv_heads, count, 9, dim).to(dtype) for _ in range(2))
    lse = torch.randn(1, heads, length)
    table = torch.randint(-1, count, (1, 1 if shared else heads, length, 3))
    distance = torch.randint(9, 60, table.shape)
    options = {"rotation": rotation("half"), "scoring": Scoring(0.4, softcap), "blocks": blocks}
    whole = join_retrieved(out, lse, query, [(slice(None), Pages(keys, values, table))], distance, **options)

    def pieces():
        """Blocks of every piece lie elsewhere, and only as long as it is read."""
        start = 0
        for cut in cuts:
            order = torch.randperm(count)
            room = torch.empty_like(keys), torch.empty_like(values)
            for there, x in zip(room, (keys, values), strict=True):
                there[:, :, order] = x
            part = slice(start, start + cut)
            yield part, Pages(*room, torch.where(table < 0, -1, order[table])[:, :, part])
            for x in room:
                x.fill_(torch.nan)
            start += cut

    for x, y in zip(join_retrieved(out, lse, query, pieces(), distance, **options), whole, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("backend", ["numba", "tiled"])
def test_threads_do_not_change_a_bit(backend):
    query = torch.randn(1, 2, 300, DIM, dtype=torch.float64)
    pages = pages_of(1, 2, torch.randint(-1, COUNT, (1, 2, 300, 2)))
    distance = torch.randint(STRIDE, 60, (1, 2, 300, 2))
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        options = {"rotation": rotation("half"), "scoring": Scoring(0.4), "backend": backend}
        found.append(retrieved_attention(query, pages, distance, **options))
    torch.set_num_threads(1)
    for one, three in zip(*found, strict=True):
        assert torch.equal(one, three)


def test_named_backends_never_fall_back():
    query, table = torch.randn(1, 2, 3, DIM).bfloat16(), torch.zeros(1, 2, 3, 1, dtype=torch.long)
    pages = pages_of(1, 1, table)
    distance = torch.full((1, 2, 3, 1), STRIDE)
    with pytest.raises(ValueError, match=r"in torch.float32.*not keys in torch.float64.*use backend='gathered'"):
        retrieved_attention(query, pages, distance, rotation=rotation("half"), scoring=Scoring(0.4), backend="numba")
    with pytest.raises(ValueError, match="choose one of auto, gathered, numba, tiled"):
        retrieved_attention(query, pages, distance, rotation=rotation("half"), scoring=Scoring(0.4), backend="magic")


def test_merge_is_one_softmax_over_both_sides():
    local_scores, gates = torch.randn(1, 1, 5, 4).double(), torch.randn(1, 1, 5, 3).double()
    local_values, inside = torch.randn(4, DIM).double(), torch.randn(1, 1, 5, 3, DIM).double()
    out, weights, own = merge(
        local_scores.softmax(-1) @ local_values,
        local_scores.logsumexp(-1),
        inside,
        gates,
    )
    joint = torch.cat((local_scores, gates), -1).softmax(-1)
    expected = joint[..., :4] @ local_values + (joint[..., None, 4:] @ inside).squeeze(-2)
    torch.testing.assert_close(out, expected, atol=1e-14, rtol=0)
    torch.testing.assert_close(weights, joint[..., 4:], atol=1e-14, rtol=0)
    torch.testing.assert_close(own, joint[..., :4].sum(-1), atol=1e-14, rtol=0)


def test_merge_reads_any_layout():
    out, inside, gates = torch.randn(1, 2, 5, DIM), torch.randn(1, 2, 5, 3, DIM), torch.randn(1, 2, 5, 3)
    lse = torch.randn(1, 2, 5)
    expected = merge(out, lse, inside, gates)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (out, lse, inside, gates)]
    for x, y in zip(merge(*strided), expected, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merge_rounds_once(dtype):
    out, inside, gates = torch.randn(1, 2, 5, DIM), torch.randn(1, 2, 5, 3, DIM), torch.randn(1, 2, 5, 3)
    lse = torch.randn(1, 2, 5)
    exact, *_ = merge(out.to(dtype).double(), lse.double(), inside.double(), gates.double())
    joined, weights, _ = merge(out.to(dtype), lse, inside, gates)
    assert joined.dtype == dtype
    assert weights.dtype == torch.float32
    torch.testing.assert_close(joined.double(), exact, atol=1e-6, rtol=torch.finfo(dtype).eps)


def test_merge_where_one_side_or_both_are_empty():
    nothing = torch.tensor(-torch.inf)
    lse = torch.stack((torch.tensor(0.3), nothing, nothing)).view(1, 1, 3)
    gates = torch.stack((nothing, torch.tensor(0.1), nothing)).view(1, 1, 3, 1)
    local, inside = torch.ones(1, 1, 3, 2), torch.full((1, 1, 3, 1, 2), 2.0)
    local[:, :, 1:], inside[:, :, ::2] = 0.0, 0.0
    out, weights, own = merge(local, lse, inside, gates)
    assert out[0, 0].tolist() == [[1.0, 1.0], [2.0, 2.0], [0.0, 0.0]]
    assert weights.flatten().tolist() == [0.0, 1.0, 0.0]
    assert own.flatten().tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["gathered", "numba", "tiled"])
def test_scores_of_halves_are_computed_in_float32(backend, dtype):
    query, table = torch.randn(1, 2, 50, DIM).to(dtype), torch.randint(-1, COUNT, (1, 2, 50, 2))
    pages = Pages(*(x.to(dtype) for x in pages_of(1, 1, table)[:2]), table)
    distance = torch.full((1, 2, 50, 2), STRIDE)
    options = {"rotation": rotation("half"), "scoring": Scoring(0.4)}
    out, gates = retrieved_attention(query, pages, distance, **options, backend=backend)
    assert out.dtype == gates.dtype == torch.float32
    wide = Pages(*(x.double() for x in pages[:2]), table)
    exact, logits = retrieved_attention(query.double(), wide, distance, **options, backend="gathered")
    torch.testing.assert_close(out.double(), exact, atol=1e-6, rtol=0)
    torch.testing.assert_close(gates.double(), logits, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_few_queries_read_halves_in_place(dtype):
    query, table = torch.randn(1, 2, 3, DIM).to(dtype), torch.randint(-1, COUNT, (1, 2, 3, 2))
    pages = Pages(*(x.to(dtype) for x in pages_of(1, 1, table)[:2]), table)
    distance, out, lse = torch.full((1, 2, 3, 2), STRIDE), torch.randn(1, 2, 3, DIM).to(dtype), torch.randn(1, 2, 3)
    options = {"rotation": rotation("half"), "scoring": Scoring(0.4)}
    found = join_retrieved(out, lse, query, [(slice(None), pages)], distance, **options)
    assert found[0].dtype == dtype
    expected = merge(out, lse, *retrieved_attention(query, pages, distance, **options, backend="gathered"))
    torch.testing.assert_close(found[0].float(), expected[0].float(), atol=1e-6, rtol=torch.finfo(dtype).eps)
    for x, y in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=0)
