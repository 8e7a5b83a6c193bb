"""How texts are read, and how many keys that puts in sight of each token."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from landmark.evaluation.reading import Reading, full_attention_costs, local_like, reading_scores
from landmark.settings import ReadingSettings

THREE = ReadingSettings(retrieve=3, local_blocks=2, chunk_size=20)


def attended_by_hand(reading: Reading, length: int) -> list[int]:
    """The rule told chunk by chunk: complete blocks but the newest leave the window when a chunk is done."""
    keys, memory = [], 0
    most = length if reading.settings.max_blocks is None else reading.settings.max_blocks
    for start in range(0, length, reading.chunk_size):
        for position in range(start, min(start + reading.chunk_size, length)):
            local = range(memory * reading.block_size, position + 1)
            keys.append(len(local) + min(reading.settings.retrieve, memory, most) * reading.block_size)
        complete = (start + reading.chunk_size) // reading.block_size
        memory = max(memory, complete - reading.settings.local_blocks)
    return keys


@given(
    block_size=st.integers(1, 7),
    retrieve=st.integers(0, 4),
    local_blocks=st.integers(0, 4),
    chunk_size=st.integers(1, 30),
    max_blocks=st.none() | st.integers(1, 4),
    length=st.integers(1, 90),
)
def test_attended_keys_follow_the_rule(**counts):
    length, block_size = counts.pop("length"), counts.pop("block_size")
    reading = Reading("landmark", block_size, ReadingSettings(**counts))
    assert reading.attended_keys(length).tolist() == attended_by_hand(reading, length)
    assert reading.attended(length) == pytest.approx(np.mean(attended_by_hand(reading, length)))


def test_blocks_in_memory_are_those_of_the_cache(model):
    reading = Reading.of(model.config, retrieve=20, local_blocks=1, chunk_size=13)  # opens all there are
    cache, ids = reading.cache(model.config), torch.arange(60)[None]
    expected = reading.blocks_in_memory(60)
    for start in range(0, 60, 13):
        with torch.no_grad():
            model(input_ids=ids[:, start : start + 13], past_key_values=cache)
        opened = [len(cache.trace().blocks[layer].unique()) for layer in cache.trace().blocks]
        assert opened == ([expected[start]] * 2 if expected[start] else [])
    assert expected[-1] == 9


def test_the_cache_reads_as_the_reading_says(model):
    reading = Reading.of(model.config, max_blocks=3, selection="per_token", chunk_size=190, miss_threshold=1e-9)
    assert (reading.settings.max_blocks, reading.settings.selection, reading.chunk_size) == (3, "per_token", 190)
    cache = reading.cache(model.config)
    assert cache.settings.reading.miss_threshold == reading.settings.miss_threshold == 1e-9
    assert (cache.settings.reading.max_blocks, cache.settings.reading.selection, cache.chunk_tokens) == (
        3,
        "per_token",
        190,
    )
    with torch.no_grad():
        model(input_ids=torch.arange(4 * 190)[None] % 250, past_key_values=cache)
    blocks = cache.trace().blocks[1]
    assert blocks.shape[2] == 190 + 38  # one chunk, with its landmarks
    # 114 blocks are complete, the last stays in sight, and three before it in memory.
    assert (blocks.min(), blocks.max(), reading.blocks_in_memory(4 * 190)[-1]) == (110, 112, 3)


def test_choosing_together_looks_ahead():
    assert Reading("landmark", 5, THREE.changed(selection="per_head")).looks_ahead
    assert not Reading("landmark", 5, THREE).looks_ahead
    for alone in (
        Reading("landmark", 5, THREE.changed(retrieve=0, selection="per_head")),
        Reading("local", 5, THREE.changed(retrieve=0, chunk_size=5)),
    ):
        assert not alone.looks_ahead


def test_full_attention_sees_all():
    assert Reading("full", 5).attended_keys(4).tolist() == [1, 2, 3, 4]


def test_defaults_are_the_models(model):
    reading = Reading.of(model.config)
    assert (reading.settings.retrieve, reading.settings.local_blocks) == (2, 1)
    # (2 + 1 + 1 + 1) * 6 positions of 256 are taken; 226 hold 188 tokens, whatever the phase.
    assert reading.chunk_size == 188


@pytest.mark.parametrize(("local", "blocks"), [(1, 0), (3, 0), (4, 1), (8, 1), (9, 2), (103, 20)])
def test_local_attention_sees_at_least_what_was_asked(model, local, blocks):
    reading = Reading.of(model.config, "local", window=local)
    assert (reading.settings.local_blocks, reading.settings.retrieve, reading.chunk_size) == (blocks, 0, 5)
    # Far from the start a token sees its blocks, and of its own 1 to 5 tokens, 3 on average.
    assert reading.attended_keys(1000)[-5:].mean() == blocks * 5 + 3 >= local


def test_local_like_is_the_smallest_that_sees_as_much(model):
    reading = Reading.of(model.config, retrieve=4, local_blocks=2, chunk_size=30)
    local = local_like(model.config, reading, 400)
    less = Reading.of(model.config, "local", local_blocks=local.settings.local_blocks - 1)
    assert less.attended(400) < reading.attended(400) <= local.attended(400)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"attention": "global"}, "choose one of landmark, full, local"),
        ({"attention": "full", "retrieve": 2}, "leave out retrieve"),
        ({"attention": "local", "retrieve": 2}, "opens no blocks"),
        ({"attention": "local", "window": 9, "local_blocks": 1}, "give one of them"),
        ({"attention": "local", "window": 9000}, "does not fit the trained range"),
        ({"attention": "local", "max_blocks": 3, "selection": "per_head"}, r"leave out max_blocks \(3\), selection"),
        ({"attention": "local", "window": 0}, "window is 0"),
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"chunk_size": 189}, "at most 188 where it begins inside a block, or 190 in whole blocks"),
        ({"chunk_size": 195}, "at most 190"),
        ({"max_blocks": 0}, "max_blocks is 0"),
        ({"selection": "best"}, "selection is 'best'"),
        ({"miss_threshold": 1.0}, "miss_threshold is 1.0"),
        ({"attention": "local", "miss_threshold": 0.1}, r"leave out miss_threshold \(0.1\)"),
        ({"attention": "full", "miss_threshold": 0.1}, r"leave out miss_threshold \(0.1\)"),
        ({"retrieve": -1}, "retrieve is -1"),
        ({"local_blocks": -1}, "local_blocks is -1"),
    ],
)
def test_what_does_not_go_together(model, options, said):
    with pytest.raises(ValueError, match=said):
        Reading.of(model.config, **options)


def test_costs_by_hand(model):
    # 2 layers, 4 heads, 2 key-value heads of 8 numbers.
    full = full_attention_costs(model.config, 10, bytes_per_number=4)
    assert full.kv_bytes == 2 * 2 * 2 * 8 * 4 * 10
    assert full.scores == 2 * 4 * 55
    reading = Reading("landmark", 2, ReadingSettings(retrieve=1, local_blocks=0, chunk_size=2))
    # Chunks of one block: own tokens 1 + 2 each time, one opened block and all landmarks after the first.
    assert reading_scores(model.config, reading, 6) == 2 * 4 * (3 + (3 + 2 * 2 + 2 * 1) + (3 + 2 * 2 + 2 * 2))


def test_true_positions_end_with_the_trained_range(model):
    config = copy.deepcopy(model.config)
    config.landmark["positions"] = "true"
    reading = Reading.of(config)
    reading.check_length(config, 214)  # and 42 landmarks
    Reading.of(config, "full").check_length(config, 215)
    with pytest.raises(ValueError, match="trained range of 256 positions"):
        reading.check_length(config, 215)
