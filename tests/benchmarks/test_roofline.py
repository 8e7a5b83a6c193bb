"""Rooflines, by cases small enough to count on paper."""

import pytest
import torch

from benchmarks.roofline import Pairs, Sizes, Work, attention_work, causal_pairs, full_work, landmark_pairs, memory_work

MODEL = Sizes(layers=2, heads=2, kv_heads=1, head_dim=4, layer_parameters=100, head_parameters=10, number_bytes=4)


def test_causal_pairs():
    assert causal_pairs(3) == Pairs(6, 6)
    assert causal_pairs(2, past=5) == Pairs(6 + 7, 6 + 7)


def test_landmark_pairs_by_hand():
    # token, its landmark, token: the token sees itself; the landmark sees the token; the last sees all three,
    # of which the landmark's value has no weight.
    assert landmark_pairs(3, block_size=1) == Pairs(1 + 1 + 3, 1 + 1 + 2)
    assert landmark_pairs(1, block_size=1, past=2) == Pairs(3, 2)


@pytest.mark.parametrize(("length", "past", "block_size"), [(17, 0, 3), (9, 11, 4), (5, 0, 7), (12, 6, 1)])
def test_landmark_pairs_are_those_of_the_definition(length, past, block_size):
    positions = torch.arange(past + length)
    block, is_landmark = positions // (block_size + 1), positions % (block_size + 1) == block_size
    visible = torch.ones(len(positions), len(positions), dtype=torch.bool).tril()
    own = block[:, None] == block
    scored = (visible & ~(own & is_landmark))[past:]
    assert landmark_pairs(length, block_size, past) == (int(scored.sum()), int((scored & ~is_landmark).sum()))


def test_attention_work():
    shape = {"batch": 2, "heads": 2, "kv_heads": 1, "length": 3, "head_dim": 4, "size": 2}
    pairs = Pairs(scored=5, weighed=4)
    # 4 heads of 9 products of 4 numbers; 12 rows of queries and outputs, 6 of keys and values.
    assert attention_work(pairs, **shape, backward=False) == Work(4 * 9 * 4 * 2, (12 + 12 + 6 + 6) * 4 * 2)
    # Backward: 3 products over scored pairs, 2 over weighed ones; 4 reads and writes of 12 rows, 4 of 6; and the
    # logarithms, 12 numbers of 4 bytes, written and read.
    products, numbers = 9 + 3 * 5 + 2 * 4, (36 + 4 * 12 + 4 * 6) * 4
    assert attention_work(pairs, **shape, backward=True) == Work(4 * products * 4 * 2, numbers * 2 + 2 * 12 * 4)


def test_full_work():
    weights = Work(2 * 3 * 2 * 110, 110 * 4)
    attention = 2 * 4 * (3 * 2 * 2) * (13 + 13)  # 3 rows, 2 layers, 2 heads; pairs: 6 + 7
    keys_and_values = 2 * 3 * 2 * 7 * 4 * 4
    expected = Work(weights.flops + attention, weights.bytes + keys_and_values)
    assert full_work(MODEL, batch=3, tokens=2, past=5, logits=True) == expected


def test_memory_work():
    found = memory_work(
        MODEL, batch=1, positions=2, window=1, block_size=2, blocks=5, retrieve=3, opened=4, logits=False
    )
    weights = 2 * 2 * 100
    local = 2 * 4 * 4 * (4 + 4)  # an ordinary token sees 2 keys, then a landmark all 2 but its own
    inside = 2 * 4 * 4 * 6 * (3 + 2)  # 2 queries by 3 blocks of 2 tokens and a landmark
    scoring = 2 * 4 * 2 * 1 * 2 * 5  # 2 queries of 2 heads in the one layer that scores, 5 landmarks
    landmarks, pages, window = 5 * 4 * 4, 2 * 4 * 3 * 4 * 4, 2 * 2 * 3 * 4 * 4
    assert found == Work(weights + local + inside + scoring, 100 * 4 + landmarks + pages + window)


def test_no_more_blocks_are_opened_than_there_are():
    two, many = (
        memory_work(MODEL, batch=1, positions=1, window=0, block_size=2, blocks=2, retrieve=k, logits=True)
        for k in (2, 9)
    )
    assert two == many
