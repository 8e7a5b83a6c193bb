import torch

from landmark.store.base import Traffic
from landmark.store.tiered import distinct_blocks


def test_counts_of_layers_add_up():
    layers = [Traffic(1, 5, 2, 100, 10), Traffic(2, 7, 3, 200, 20)]
    total = sum(layers, Traffic())
    assert total == Traffic(3, 12, 5, 300, 30)
    assert total.hits == 7


def test_blocks_are_distinct_within_a_key_value_head_only():
    blocks = torch.tensor([[[1, 2]], [[2, 3]], [[2, -1]], [[-1, -1]]])[None]
    assert distinct_blocks(blocks, kv_heads=2) == 3 + 1
    assert distinct_blocks(blocks, kv_heads=4) == 2 + 2 + 1
    assert distinct_blocks(blocks, kv_heads=1) == 3
    assert distinct_blocks(blocks.repeat(2, 1, 1, 1), kv_heads=2) == 8
