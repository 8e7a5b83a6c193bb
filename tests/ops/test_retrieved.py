import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from landmark.ops import retrieved
from landmark.ops.retrieved import merge, retrieved_attention
from landmark.ops.rotary import Rotation

BLOCK, STRIDE, DIM, COUNT = 3, 4, 6, 7


def rotation() -> Rotation:
    a = torch.outer(torch.arange(60).double(), 10.0 ** -torch.arange(3).double())
    a = torch.cat((a, a), -1)
    return Rotation(a.cos(), a.sin(), "half")


class ListStore:
    """Blocks [B * Hkv, COUNT, ...] by plain indexing."""

    def __init__(self, rows: int, kv_heads: int) -> None:
        self.keys = torch.randn(rows * kv_heads, COUNT, STRIDE, DIM, dtype=torch.float64)
        self.values = torch.randn(rows * kv_heads, COUNT, STRIDE, DIM, dtype=torch.float64)

    def gather(self, heads, numbers, out=None):
        places = (heads[:, None], numbers.clamp(min=0))
        return self.keys[places], self.values[places]


def one_by_one(query, store, blocks, distance, kv_heads, softcap):
    """The definition: one query, one block at a time; blocks and distance [B,H,T,k]."""
    rows, heads, length, _ = query.shape
    out, gates = torch.zeros_like(query), torch.full(blocks.shape, -torch.inf, dtype=torch.float64)
    for b in range(rows):
        for h in range(heads):
            kv = b * kv_heads + h // (heads // kv_heads)
            for t in range(length):
                inside = torch.zeros(blocks.shape[-1], DIM, dtype=torch.float64)
                for c, number in enumerate(blocks[b, h, t].tolist()):
                    if number < 0:
                        continue
                    scores = store.keys[kv, number] @ rotation().apply(query[b, h, t], distance[b, h, t, c]) * 0.4
                    if softcap is not None:
                        scores = softcap * torch.tanh(scores / softcap)
                    gates[b, h, t, c] = scores[-1]
                    inside[c] = scores[:-1].softmax(0) @ store.values[kv, number, :-1]
                if blocks[b, h, t].max() >= 0:
                    out[b, h, t] = gates[b, h, t].softmax(0) @ inside
    return out, gates


@given(
    shared=st.sampled_from(["none", "heads", "queries"]),
    rows=st.integers(1, 2),
    kv_heads=st.integers(1, 2),
    groups=st.integers(1, 3),
    length=st.integers(1, 5),
    k=st.integers(1, 4),
    softcap=st.sampled_from([None, 1.5]),
    tile=st.sampled_from([1, 2000, 1 << 20]),
)
def test_equals_the_definition(shared, rows, kv_heads, groups, length, k, softcap, tile):
    heads = kv_heads * groups
    query, store = torch.randn(rows, heads, length, DIM, dtype=torch.float64), ListStore(rows, kv_heads)
    some_heads, some_queries = (1 if shared == "heads" else heads), (1 if shared == "queries" else length)
    blocks = torch.randint(-1, COUNT, (rows, some_heads, some_queries, k))
    distance = torch.randint(STRIDE, 60, (rows, some_heads, length, k))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieved, "_TILE_BYTES", tile)
        out, gates = retrieved_attention(
            query, store, blocks, distance,
            block_size=BLOCK, kv_heads=kv_heads, rotation=rotation(), scale=0.4, softcap=softcap,
        )  # fmt: skip
    full = (rows, heads, length, k)
    expected = one_by_one(query, store, blocks.expand(full), distance.expand(full), kv_heads, softcap)
    torch.testing.assert_close(out, expected[0], atol=1e-13, rtol=0)
    torch.testing.assert_close(gates, expected[1], atol=1e-13, rtol=0)


def test_merge_is_one_softmax_over_both_sides():
    local_scores, gates = torch.randn(1, 1, 5, 4).double(), torch.randn(1, 1, 5, 3).double()
    local_values, block_values = torch.randn(4, DIM).double(), torch.randn(3, DIM).double()
    out, weights = merge(
        local_scores.softmax(-1) @ local_values,
        local_scores.logsumexp(-1),
        gates.softmax(-1) @ block_values,
        gates,
    )
    joint = torch.cat((local_scores, gates), -1).softmax(-1)
    torch.testing.assert_close(out, joint @ torch.cat((local_values, block_values)), atol=1e-14, rtol=0)
    torch.testing.assert_close(weights, joint[..., 4:], atol=1e-14, rtol=0)


def test_merge_where_one_side_or_both_are_empty():
    nothing = torch.tensor(-torch.inf)
    lse = torch.stack((torch.tensor(0.3), nothing, nothing)).view(1, 1, 3)
    gates = torch.stack((nothing, torch.tensor(0.1), nothing)).view(1, 1, 3, 1)
    local, retrieved_out = torch.ones(1, 1, 3, 2), torch.full((1, 1, 3, 2), 2.0)
    local[:, :, 1:], retrieved_out[:, :, ::2] = 0.0, 0.0
    out, weights = merge(local, lse, retrieved_out, gates)
    assert out[0, 0].tolist() == [[1.0, 1.0], [2.0, 2.0], [0.0, 0.0]]
    assert weights.flatten().tolist() == [0.0, 1.0, 0.0]


def test_scores_of_halves_are_computed_in_float32():
    store = ListStore(1, 1)
    store.keys, store.values = store.keys.bfloat16(), store.values.bfloat16()
    query = torch.randn(1, 2, 3, DIM).bfloat16()
    blocks, distance = torch.randint(COUNT, (1, 2, 3, 2)), torch.full((1, 2, 3, 2), STRIDE)
    options = {"block_size": BLOCK, "kv_heads": 1, "rotation": rotation(), "scale": 0.4}
    out, gates = retrieved_attention(query, store, blocks, distance, **options)
    assert out.dtype == gates.dtype == torch.float32
    store.keys, store.values = store.keys.double(), store.values.double()
    exact, _ = retrieved_attention(query.double(), store, blocks, distance, **options)
    torch.testing.assert_close(out.double(), exact, atol=1e-6, rtol=0)
