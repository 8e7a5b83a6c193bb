"""A KV cache with retrieval equals the attention of training wherever every block is opened."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from families import FAMILIES, family

import landmark
from landmark.hf.cache_state import cache_state, resume_cache

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
    with pytest.raises(ValueError, match=r"gap 900 = .*; lower block_size, retrieve, local_blocks or gap"):
        landmark.LandmarkCache(model.config, gap=900)
    with pytest.raises(ValueError, match=r"gap 90 and .* or lower retrieve, local_blocks or gap"):
        landmark.LandmarkCache(model.config, gap=90, chunk_size=154)
    assert landmark.LandmarkCache(model.config, gap=900, retrieve=0).chunk_tokens > 0  # nothing is opened
    with pytest.raises(ValueError, match="max_blocks"):
        landmark.LandmarkCache(model.config, max_blocks=0)
    with pytest.raises(ValueError, match="top_k, topk: no setting of reading"):
        landmark.LandmarkCache(model.config, topk=4, top_k=4)


def test_a_longer_text_read_before_changes_nothing():
    model = converted("llama-dynamic")
    expected = hidden(model, IDS, [20])
    longer = torch.randint(3, 61, (1, 300), generator=GENERATOR)  # frequencies grow beyond 256 positions
    with torch.no_grad():
        model(input_ids=longer)
    assert torch.equal(hidden(model, IDS, [20]), expected)


# Forks, budgets, and caches rebuilt from their state go on exactly as the one they came from.

SELECTIONS = ["per_token_and_head", "per_group", "per_token", "per_head"]
LONG_IDS = torch.randint(3, 61, (1, 260), generator=torch.Generator().manual_seed(5))


def small_model(name="llama", **options):
    return landmark.convert(family(name), **{"block_size": 5, "retrieve": 2, "local_blocks": 1} | options)


@torch.no_grad()
def goes_on(model, cache, ids=LONG_IDS[:, 200:]):
    return torch.cat([model(input_ids=piece, past_key_values=cache).logits for piece in ids.split(13, 1)], 1)


@torch.no_grad()
def one_by_one(model, cache, ids):
    return torch.cat([model(input_ids=piece, past_key_values=cache).logits for piece in ids.split(1, 1)], 1)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_neox"])
def test_a_fork_and_its_origin_go_on_by_themselves(name):
    model = small_model(name)
    cache = landmark.read(model, LONG_IDS[:, :200])
    expected = goes_on(model, landmark.read(model, LONG_IDS[:, :200]))
    branch = cache.fork()
    other = goes_on(model, branch, LONG_IDS[:, :60].flip(1))
    twig = cache.fork()
    assert torch.equal(goes_on(model, cache), expected)
    assert torch.equal(goes_on(model, twig), expected)
    assert not torch.equal(other, expected)
    assert cache.tokens_read() == [260]
    assert branch.get_seq_length() == 60


@pytest.mark.parametrize("index", ["exact", "hierarchical"])
def test_rows_of_a_text_may_change_places_while_its_fork_goes_on(index):
    model = sharp_model()
    ids = torch.cat((LONG_IDS, LONG_IDS.flip(1)))
    cache = landmark.LandmarkCache(model.config, index=index)
    goes_on(model, cache, ids[:, :200])
    expected = goes_on(model, cache.fork(), ids[:, 200:])
    branch = cache.fork()
    cache.reorder_cache(torch.tensor([1, 0]))
    assert torch.equal(goes_on(model, branch, ids[:, 200:]), expected)
    assert torch.equal(goes_on(model, cache, ids[:, 200:].flip(0)), expected.flip(0))


@pytest.mark.parametrize("way", [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
def test_a_copy_in_the_midst_of_decoding_goes_on_by_itself(way):
    model = small_model()
    cache = landmark.read(model, LONG_IDS[:, :201])
    one_by_one(model, cache, LONG_IDS[:, 201:202])  # compiled loops know by now where its tensors lie
    expected = one_by_one(model, cache.fork(), LONG_IDS[:, 202:220])
    other = way(cache)
    assert torch.equal(one_by_one(model, other, LONG_IDS[:, 202:220]), expected)
    assert torch.equal(one_by_one(model, cache, LONG_IDS[:, 202:220]), expected)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_fork_tells_repeated_words_apart_as_its_origin_does(selection):
    # Their landmarks have nearly the same keys: what sums them in another order opens another block.
    model = small_model(selection=selection, retrieve=4)
    ids = LONG_IDS[:, :15].repeat(1, 20)
    expected = goes_on(model, landmark.read(model, ids[:, :150], chunk_size=31), ids[:, 150:])
    branch = landmark.read(model, ids[:, :150], chunk_size=31).fork()
    assert torch.equal(goes_on(model, branch, ids[:, 150:]), expected)


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("budget", [20_000, 40_000, 10_000_000])
def test_a_budget_changes_nothing_but_memory(selection, budget):
    model = small_model(selection=selection)
    expected = goes_on(model, landmark.read(model, LONG_IDS[:, :200], chunk_size=11))
    cache = landmark.read(
        model, LONG_IDS[:, :200], landmark.LandmarkCache(model.config, host_budget=budget), chunk_size=11
    )
    assert torch.equal(goes_on(model, cache), expected)
    assert cache.traffic.requested > 0
    assert cache.traffic.file_bytes > 0 or budget > 40_000
    twig = landmark.read(
        model, LONG_IDS[:, :200], landmark.LandmarkCache(model.config, host_budget=budget), chunk_size=11
    )
    assert torch.equal(goes_on(model, twig.fork()), expected)


def test_what_inference_mode_made_can_be_written_to_outside_of_it():
    model = small_model()
    expected = goes_on(model, landmark.read(model, LONG_IDS[:, :200]))
    cache = landmark.LandmarkCache(model.config)
    with torch.inference_mode():
        model(input_ids=LONG_IDS[:, :200], past_key_values=cache)
    torch.testing.assert_close(goes_on(model, cache), expected)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"host_budget": "12 parsecs"}, "host_budget is '12 parsecs'"),
        ({"host_budget": 0}, "host_budget is 0"),
        ({"index": "sorted"}, "sorted"),
        ({"kv_dtype": "int4"}, "kv_dtype is 'int4': give 'int8', or None"),
    ],
)
def test_settings_that_mean_nothing(options, said):
    with pytest.raises(ValueError, match=said):
        landmark.LandmarkCache(small_model().config, **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"host_budget": 100}, "too small for a single query"),
        ({"device_budget": "1MB"}, "on a CPU, give host_budget"),
        ({"host_budget": "1MB", "max_blocks": 3}, "max_blocks is 3"),
        ({"kv_dtype": "int8"}, "kv_dtype is 'int8', for blocks below the device.*give host_budget"),
    ],
)
def test_budgets_that_cannot_serve_this_reading(options, said):
    model = small_model()
    with pytest.raises(ValueError, match=said):
        landmark.read(model, LONG_IDS, landmark.LandmarkCache(model.config, **options))


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_windows_come_back_from_their_state(name):
    # All within the local windows: blocks are the business of a storage.
    model = small_model(name, local_blocks=3)
    first, rest = LONG_IDS[:, :14], LONG_IDS[:, 14:19]
    cache = landmark.read(model, first)
    cache.settle(model.base_model.landmark_ropes)
    tensors, metadata = cache_state(cache)
    again = landmark.LandmarkCache(model.config)
    resume_cache(again, tensors, metadata, 0, torch.device("cpu"))
    assert again.tokens_read() == [14]
    assert torch.equal(goes_on(model, again, rest), goes_on(model, cache, rest))


def test_nothing_read_has_no_state():
    with pytest.raises(ValueError, match="nothing was read yet"):
        cache_state(landmark.LandmarkCache(small_model().config))


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_cache_keeps_no_graph_of_the_forwards_that_filled_it(name):
    model, cache = small_model(name), landmark.LandmarkCache(small_model(name).config)
    model(input_ids=LONG_IDS[:, :9], past_key_values=cache)  # gradients are on
    assert torch.equal(goes_on(model, copy.deepcopy(cache)), goes_on(model, cache))


# Context misses: what a threshold skips, and that skipping spares the store.

MISS_IDS = torch.randint(3, 61, (2, 150), generator=torch.Generator().manual_seed(11))
ALMOST_ONE = 1 - 1e-9


def sharp_model(name="llama", **options):
    model = family(name)
    with torch.no_grad():  # random weights of the usual size attend to everything alike
        for name, weight in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                weight.mul_(8)
    return landmark.convert(model, **{"block_size": 5, "retrieve": 2, "local_blocks": 1} | options)


@torch.no_grad()
def logits_of(model, cache, **options):
    pieces = torch.tensor_split(MISS_IDS, (40, 41, 42, 110, 145), 1)
    return torch.cat([model(input_ids=piece, past_key_values=cache, **options).logits for piece in pieces], 1)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])  # soft-capping, sinks, native sliding layers
def test_a_threshold_of_nearly_one_is_local_attention(name):
    model = sharp_model(name)
    cache = landmark.LandmarkCache(model.config, miss_threshold=ALMOST_ONE, host_budget="10MB")
    found = logits_of(model, cache)
    assert torch.equal(found, logits_of(model, landmark.LandmarkCache(model.config, retrieve=0)))
    layers = len(cache.trace().blocks)
    # 110 tokens and their 22 landmarks follow the first 40, each a query of 4 heads in 2 rows.
    assert (cache.retrievals.queries, cache.retrievals.context_misses) == (layers * 2 * 4 * 132, layers * 2 * 4 * 132)
    assert cache.traffic == landmark.LandmarkCache(model.config).traffic  # nothing
    assert all((blocks < 0).all() for blocks in cache.trace().blocks.values())


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("index", ["exact", "hierarchical"])
def test_a_threshold_spares_a_part_of_the_store(selection, index):
    model, wanted, skipped = sharp_model(), [], []
    for threshold in (0.0, 0.4, 0.9):
        options = {"selection": selection, "index": index, "miss_threshold": threshold, "host_budget": "10MB"}
        cache = landmark.LandmarkCache(model.config, **options)
        logits_of(model, cache)
        wanted.append(cache.traffic.requested)
        skipped.append(cache.retrievals.miss_rate)
    # What one layer skips changes what the next one looks for, so that only a high threshold is sure to spare blocks.
    assert wanted[0] > wanted[2] > 0
    assert 0 == skipped[0] < skipped[1] < skipped[2] < 1


def test_padding_changes_neither_results_nor_counts():
    model, mask = sharp_model(), torch.ones_like(MISS_IDS)
    mask[0, :17] = 0
    cache = landmark.LandmarkCache(model.config, miss_threshold=0.4)
    pieces, columns, together = torch.tensor_split(MISS_IDS, [57, 58, 120], 1), 0, []
    alone = [landmark.LandmarkCache(model.config, miss_threshold=0.4) for _ in range(2)]
    apart: list[list[torch.Tensor]] = [[], []]
    with torch.no_grad():
        for piece in pieces:
            first = max(0, 17 - columns)
            columns += piece.shape[1]
            together.append(model(input_ids=piece, attention_mask=mask[:, :columns], past_key_values=cache).logits)
            for row, start in ((0, first), (1, 0)):
                apart[row].append(model(input_ids=piece[row : row + 1, start:], past_key_values=alone[row]).logits)
    both = torch.cat(together, 1)
    torch.testing.assert_close(both[:1, 17:], torch.cat(apart[0], 1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(both[1:], torch.cat(apart[1], 1), atol=1e-5, rtol=1e-4)
    assert cache.retrievals == alone[0].retrievals + alone[1].retrievals
    assert 0 < cache.retrievals.context_misses < cache.retrievals.queries


def test_generation_counts_on_and_a_reset_begins_anew():
    model = sharp_model()
    cache = landmark.read(model, MISS_IDS[:1, :100], landmark.LandmarkCache(model.config, miss_threshold=0.4))
    before, branch = cache.retrievals, cache.fork()
    model.generate(MISS_IDS[:1, :103], past_key_values=cache, max_new_tokens=4, do_sample=False, eos_token_id=None)
    # A question of 3 and 3 of the 4 new tokens are read, and the landmark behind the 105th.
    assert cache.retrievals.queries - before.queries == 3 * 4 * 7
    assert branch.retrievals == before
    cache.reset()
    assert cache.retrievals == landmark.LandmarkCache(model.config).retrievals


def test_no_threshold():
    with pytest.raises(ValueError, match=r"miss_threshold is 1\.0"):
        landmark.LandmarkCache(sharp_model().config, miss_threshold=1.0)


@pytest.mark.parametrize("by", ["forward", "read"])
def test_two_threads_cannot_read_through_one_cache(by):
    """Each would lay its tokens out behind those that it saw, and the other's would be lost."""
    model = converted()
    cache = landmark.LandmarkCache(model.config)
    errors = []

    def other(*_):
        handle.remove()
        with torch.no_grad(), ThreadPoolExecutor(1) as pool:
            errors.append(pool.submit(model, input_ids=IDS[:, :1], past_key_values=cache).exception())

    handle = model.get_input_embeddings().register_forward_hook(other)
    if by == "read":
        landmark.read(model, IDS[:, :8], cache)
    else:
        hidden(model, IDS[:, :8], [], cache)
    assert isinstance(errors[0], ValueError)
    assert "another thread reads through this cache: give each a cache.fork()" in str(errors[0])
    expected = hidden(model, IDS[:, :9], [8])[:, 8:]
    torch.testing.assert_close(hidden(model, IDS[:, 8:9], [], cache), expected)


def test_a_forward_that_failed_leaves_the_cache_to_others():
    model = converted()
    cache = landmark.LandmarkCache(model.config)
    hidden(model, IDS[:, :8], [], cache)
    with pytest.raises(ValueError, match="ids of the landmark"):
        model(input_ids=IDS[:, :1] + 10**6, past_key_values=cache)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(hidden, model, IDS[:, 8:9], [], cache).result()
    torch.testing.assert_close(found, hidden(model, IDS[:, :9], [8])[:, 8:])
