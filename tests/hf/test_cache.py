"""Reading through memory equals the attention of training wherever every block is opened."""

import pytest
import torch
from families import FAMILIES, family

import landmark

GENERATOR = torch.Generator().manual_seed(3)
IDS = torch.randint(3, 61, (2, 45), generator=GENERATOR)


def converted(name="llama", **options):
    options = {"block_size": 5, "retrieve": 9, "local_blocks": 1, "positions": "true"} | options
    return landmark.convert(family(name), **options)


def hidden(model, ids, cuts, cache=None, **options):
    cache = cache if cache is not None else landmark.LandmarkCache(model.config)
    pieces = torch.tensor_split(ids, cuts, 1)
    with torch.no_grad():
        return torch.cat([model(input_ids=p, past_key_values=cache, **options).logits for p in pieces], 1)


@pytest.mark.parametrize("positions", ["true", "stingy"])
@pytest.mark.parametrize("name", FAMILIES)
def test_with_every_block_opened_reading_equals_training_attention(name, positions):
    model = converted(name, positions=positions)
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
    for cuts in ([], [1, 2, 17, 30], list(range(1, 45))):
        found = hidden(model, IDS, cuts)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("local_blocks", [0, 3])
def test_any_local_window(local_blocks):
    model = converted(local_blocks=local_blocks)
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
    torch.testing.assert_close(hidden(model, IDS, [13, 14, 40]), expected, atol=1e-5, rtol=1e-4)


def test_float64_is_exact():
    model = converted().double()
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
    # Rotary tables are float32 in every model; only their composition by slot differs.
    torch.testing.assert_close(hidden(model, IDS, [13, 14, 40]), expected, atol=1e-7, rtol=1e-6)


def test_a_long_input_is_cut_by_itself():
    model = landmark.convert(family("llama"), block_size=5, retrieve=2, local_blocks=1)
    long = torch.randint(3, 61, (1, 1500), generator=GENERATOR)
    cache = landmark.LandmarkCache(model.config)
    with torch.no_grad():
        out = model(input_ids=long, past_key_values=cache, output_hidden_states=True)
    assert out.logits.shape[1] == 1500
    assert cache.get_seq_length() == 1500
    assert out.hidden_states[-1].shape[1] == 1500
    fits = cache.chunk_positions * 5 // 6 - 1
    assert torch.isfinite(out.logits).all()
    assert fits < 1500
    again = landmark.LandmarkCache(model.config)
    assert torch.equal(landmark.read(model, long, again).trace().blocks[1], cache.trace().blocks[1])


def test_rows_with_left_padding_read_as_they_would_alone():
    model = converted(positions="stingy", retrieve=2)
    mask = torch.ones_like(IDS)
    mask[0, :16] = 0
    cache, columns = landmark.LandmarkCache(model.config), 0
    pieces = []
    with torch.no_grad():
        for piece in torch.tensor_split(IDS, [10, 30, 31, 32, 33], 1):
            columns += piece.shape[1]
            pieces.append(model(input_ids=piece, attention_mask=mask[:, :columns], past_key_values=cache).logits)
    together = torch.cat(pieces, 1)
    assert cache.get_seq_length() == 45
    alone = hidden(model, IDS[:1, 16:], [14, 15, 16, 17])
    torch.testing.assert_close(together[:1, 16:], alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together[1:], hidden(model, IDS[1:], [10, 30, 31, 32, 33]), atol=1e-5, rtol=1e-4)


def test_retrieve_zero_is_local_attention_and_keeps_no_blocks():
    model = converted(positions="stingy")
    cache = landmark.LandmarkCache(model.config, retrieve=0)
    hidden(model, IDS, [20], cache)
    assert cache.trace().blocks == {}
    full = landmark.LandmarkCache(model.config)
    hidden(model, IDS, [20], full)
    assert cache.nbytes < full.nbytes


def test_trace_tells_blocks_gates_and_spans():
    model = converted(positions="stingy", retrieve=2)
    cache = landmark.LandmarkCache(model.config)
    hidden(model, IDS, [30], cache)
    trace = cache.trace()
    # 15 tokens complete 3 blocks; 5 of the 6 blocks before are in memory, the newest stays in sight.
    assert set(trace.blocks) == {0, 1, 2}
    for layer, blocks in trace.blocks.items():
        gates = trace.gates[layer]
        assert blocks.shape == gates.shape == (2, 4, 18, 2)
        assert blocks.min() >= 0
        assert blocks.max() < 5
        assert (gates >= 0).all()
        assert (gates.sum(-1) <= 1 + 1e-6).all()
    spans = trace.spans(1)
    assert all(span.stop - span.start == 5 and span.start == span.block * 5 for span in spans)
    assert [s.weight for s in spans] == sorted((s.weight for s in spans), reverse=True)
    total = sum(float(trace.gates[layer][1].sum()) for layer in trace.gates) / (3 * 4 * 18)
    assert sum(s.weight for s in spans) == pytest.approx(total, rel=1e-5)


def test_trace_can_follow_several_forwards():
    model = converted(positions="stingy", retrieve=2)
    cache = landmark.LandmarkCache(model.config)
    hidden(model, IDS[:, :30], [], cache)
    cache.start_trace()
    hidden(model, IDS[:, 30:], [5, 6], cache)
    assert cache.trace().blocks[1].shape[2] == 18
    hidden(model, IDS[:, :1], [], cache)
    assert cache.trace().blocks[1].shape[2] == 19


def test_max_blocks_bounds_what_is_kept():
    model = converted(positions="stingy", retrieve=2)
    cache = landmark.LandmarkCache(model.config, max_blocks=3)
    long = torch.randint(3, 61, (1, 600), generator=GENERATOR)
    hidden(model, long[:, :300], [100, 200], cache)
    kept = cache.nbytes
    hidden(model, long[:, 300:], [100, 200], cache)
    assert cache.nbytes == kept
    assert cache.trace().blocks[1].min() >= (100 + 400) // 5 - 1 - 3


def test_crop_takes_back_tokens_in_sight():
    model = converted(positions="stingy", retrieve=2, local_blocks=2)
    cache, whole = landmark.LandmarkCache(model.config), landmark.LandmarkCache(model.config)
    hidden(model, IDS, [40, 43], cache)
    cache.crop(-3)
    assert cache.get_seq_length() == 42
    hidden(model, IDS[:, :42], [40], whole)
    tail = IDS[:, 42:]
    torch.testing.assert_close(hidden(model, tail, [], cache), hidden(model, tail, [], whole), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="local"):
        cache.crop(3)


def test_positions_true_says_how_far_it_reaches():
    model = converted(positions="true")
    cache = landmark.LandmarkCache(model.config)
    with pytest.raises(ValueError, match=r'positions="true" carries 256'):
        hidden(model, IDS[:1].repeat(1, 6), [100, 200], cache)


def test_another_batch_size_is_an_error():
    model = converted()
    cache = landmark.LandmarkCache(model.config)
    hidden(model, IDS, [], cache)
    with pytest.raises(ValueError, match="2 rows"):
        hidden(model, IDS[:1], [], cache)


def test_cache_settings_are_checked():
    model = converted(positions="stingy", retrieve=2)
    with pytest.raises(ValueError, match="retrieve is -1"):
        landmark.LandmarkCache(model.config, retrieve=-1)
    with pytest.raises(ValueError, match="nothing fits"):
        landmark.LandmarkCache(model.config, retrieve=50)
    with pytest.raises(ValueError, match="max_blocks"):
        landmark.LandmarkCache(model.config, max_blocks=0)


def test_a_longer_text_read_before_changes_nothing():
    model = converted("llama-dynamic")
    expected = hidden(model, IDS, [20])
    longer = torch.randint(3, 61, (1, 300), generator=GENERATOR)  # frequencies grow beyond 256 positions
    with torch.no_grad():
        model(input_ids=longer)
    assert torch.equal(hidden(model, IDS, [20]), expected)
