"""The models that are timed compute what they claim: full attention in full, memory over a past that was made."""

from dataclasses import replace

import pytest
import torch

from benchmarks import full_attention
from benchmarks.filled_cache import blocks_in_memory, filled_cache, filled_cache_bytes, positions_in_sight
from benchmarks.models import model_pair
from benchmarks.options import ReadOptions
from benchmarks.read import opened_blocks
from benchmarks.roofline import Sizes
from landmark.ops.attention import landmark_attention
from landmark.stream import stream_length

OPTIONS = ReadOptions(layers=3, heads=4, kv_heads=2, width=32, block_size=5, retrieve=2, local_blocks=1)


@pytest.fixture
def tiny(machine):
    made = model_pair(OPTIONS, replace(machine, dtype=torch.float64), layers=6)
    # With small weights nothing depends on attention; larger ones make wrong attention show.
    with torch.no_grad():
        for weight in made.model.parameters():
            if weight.dim() == 2:
                weight.mul_(8)
    return made


def test_the_twin_shares_every_weight(tiny):
    shared = {name: weight.data_ptr() for name, weight in tiny.model.named_parameters()}
    assert {name: weight.data_ptr() for name, weight in tiny.plain.named_parameters()} == shared


@torch.no_grad()
def test_full_attention_in_pieces_is_that_of_the_whole(tiny):
    ids = torch.randint(4000, (2, 40))
    whole = tiny.plain(input_ids=ids, use_cache=False, bench_attend=full_attention.causal).logits
    like = torch.empty(0, dtype=torch.float64)
    cache = full_attention.fixed_cache(tiny.sizes, batch=2, past=0, room=40, like=like)
    pieces = []
    for start, stop in ((0, 17), (17, 38), (38, 39), (39, 40)):
        single = stop - start == 1
        attend = (
            full_attention.last_token if single else full_attention.chunk_over_past(start, stop - start, ids.device)
        )
        out = tiny.plain(input_ids=ids[:, start:stop], past_key_values=cache, use_cache=True, bench_attend=attend)
        pieces.append(out.logits)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-10, atol=1e-10)
    stock = type(tiny.plain)(tiny.plain.config).double()
    stock.load_state_dict(tiny.plain.state_dict())
    stock.set_attn_implementation("sdpa")
    torch.testing.assert_close(stock(input_ids=ids, use_cache=False).logits, whole, rtol=1e-10, atol=1e-10)


SIZES = Sizes(1, 4, 2, 8, 0, 0, 4)


def test_a_fixed_cache_gives_no_more_than_is_in_use():
    past = full_attention.fixed_cache(SIZES, batch=1, past=3, room=2, like=torch.empty(0))
    new = torch.zeros(1, 2, 1, 8)
    key, value = past.update(new, new, 0)
    assert key.shape == value.shape == (1, 2, 4, 8)
    assert key[:, :, -1].eq(0).all()
    assert key.data_ptr() == past.layers[0].data.data_ptr()


def test_dense_decoding_is_the_grouped_softmax():
    q, k, v = torch.randn(1, 4, 1, 8), torch.randn(1, 2, 23, 8), torch.randn(1, 2, 23, 8)
    expected = landmark_attention(q, k, v, block_size=5, backend="blockwise")
    torch.testing.assert_close(full_attention.dense_landmarks(5)(q, k, v, None), expected)


@pytest.mark.parametrize("tokens", [4, 5, 123, 1000])
@torch.no_grad()
def test_a_filled_cache_stands_where_reading_would_have_left_it(tiny, tokens):
    cache = filled_cache(tiny, batch=2, tokens=tokens)
    assert cache.get_seq_length() == tokens
    assert all(memory.lengths.tolist() == [stream_length(tokens, 5)] * 2 for memory in cache.memories)
    read = type(cache)(tiny.model.config)
    tiny.model.base_model(input_ids=torch.zeros(2, tokens, dtype=torch.long), past_key_values=read, use_cache=True)
    ids = torch.zeros(2, 7, dtype=torch.long)
    for one in (cache, read):
        tiny.model.base_model(input_ids=ids, past_key_values=one, use_cache=True)
    assert cache.nbytes == read.nbytes
    assert [m.lengths.tolist() for m in cache.memories] == [m.lengths.tolist() for m in read.memories]
    blocks = blocks_in_memory(tiny.settings, tokens)
    opened = cache.trace().blocks
    assert sorted(opened) == ([0, 1, 2] if blocks else [])
    assert all(int(chosen.max()) < blocks for chosen in opened.values())
    assert filled_cache_bytes(tiny, batch=2, tokens=tokens) >= cache.nbytes - 2 * 3 * 2 * 2 * 16 * 8 * 8


@torch.no_grad()
def test_random_keys_spread_the_choice(tiny):
    cache = filled_cache(tiny, batch=1, tokens=2000)
    tiny.model.base_model(input_ids=torch.randint(4000, (1, 100)), past_key_values=cache, use_cache=True)
    # Layers behind the first, 2 key heads each; the first opens the newest 2 everywhere.
    assert opened_blocks(cache, tiny.sizes) > 2 * 2 + 2 * 2 * 50


def test_opened_blocks_are_counted_once(tiny):
    class OneTrace:
        def trace(self):
            # Two query heads share a key head; -1 is none.
            blocks = torch.tensor([[[[0, 1]], [[1, -1]], [[0, 1]], [[0, 1]]]])
            return type("Trace", (), {"blocks": {0: blocks, 1: blocks}})

    assert opened_blocks(OneTrace(), tiny.sizes) == 2 * (2 + 2)


def test_what_is_in_sight(tiny):
    assert [blocks_in_memory(tiny.settings, n) for n in (0, 5, 9, 10, 23)] == [0, 0, 0, 1, 3]
    assert [positions_in_sight(tiny.settings, n) for n in (0, 4, 5, 9, 10, 23)] == [0, 4, 6, 10, 6, 9]
