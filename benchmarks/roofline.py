"""Roofline: lower bounds on FLOPs and memory traffic (docs/performance.md).

FLOPs count multiplications and additions of matrix products; exponentials, rotation and norms are left out. Bytes
are those of main memory, everything read once and written once.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class Work:
    """Least floating point operations, and bytes moved."""

    flops: int
    bytes: int

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bytes + other.bytes)


class Pairs(NamedTuple):
    """Query-key pairs of one head: those that are scored, and those whose value gets weight."""

    scored: int
    weighed: int


def causal_pairs(queries: int, past: int = 0) -> Pairs:
    """Each of `queries` tokens sees the `past` ones, those before it, and itself."""
    count = queries * past + queries * (queries + 1) // 2
    return Pairs(count, count)


def landmark_pairs(queries: int, block_size: int, past: int = 0) -> Pairs:
    """The grouped softmax at stream positions past .. past + queries - 1, position 0 beginning a block.

    An ordinary token scores all p + 1 keys up to itself, a landmark all but its own. Landmarks' values have no
    weight.
    """
    positions = np.arange(past, past + queries, dtype=np.int64)
    before = positions // (block_size + 1)  # landmarks of earlier blocks
    is_landmark = positions % (block_size + 1) == block_size
    scored = int((positions + 1 - is_landmark).sum())
    return Pairs(scored, scored - int(before.sum()))


def attention_work(
    pairs: Pairs, *, batch: int, heads: int, kv_heads: int, length: int, head_dim: int, size: int, backward: bool
) -> Work:
    """Forward, or forward with backward, over `length` positions with numbers of `size` bytes.

    Forward: scores and the weighed sum of values. Backward: the scores again (keeping them would take a matrix of
    all pairs) with the gradients of queries and of keys, the gradients of weights and those of values. It reads
    queries, keys, values, output, its gradient and the float32 logarithm of each denominator, and writes three
    gradients.
    """
    rows, kv_rows = batch * heads * length, batch * kv_heads * length
    flops = 2 * head_dim * batch * heads * (pairs.scored + pairs.weighed)
    moved = head_dim * size * (2 * rows + 2 * kv_rows)
    if backward:
        flops += 2 * head_dim * batch * heads * (3 * pairs.scored + 2 * pairs.weighed)
        moved += 4 * rows  # forward writes the logarithms
        moved += head_dim * size * (4 * rows + 4 * kv_rows) + 4 * rows
    return Work(flops, moved)


class Sizes(NamedTuple):
    """Sizes of a model that rooflines depend on: parameters, and the shape of its attention."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    layer_parameters: int  # of all layers together
    head_parameters: int  # of the output embeddings
    number_bytes: int


def full_work(model: Sizes, *, batch: int, tokens: int, past: int, logits: bool) -> Work:
    """The model before conversion on `tokens` new tokens with keys and values of `past` at hand."""
    pairs = causal_pairs(tokens, past)
    kept = 2 * batch * model.layers * model.kv_heads * model.head_dim * (past + tokens) * model.number_bytes
    return _parameters(model, batch, tokens, logits) + _attention(model, batch, pairs) + Work(0, kept)


def memory_work(
    model: Sizes,
    *,
    batch: int,
    positions: int,
    window: int,
    block_size: int,
    blocks: int = 0,
    retrieve: int = 0,
    opened: int = 0,
    logits: bool,
) -> Work:
    """`positions` of a stream, landmarks included, read with `blocks` in memory and `window` positions in sight.

    Every layer but the first, whose landmark keys are all equal, scores every landmark: its float32 key is read once.
    Each query reads its `retrieve` blocks; `opened` counts different blocks, over layers, rows and key heads: each
    comes from memory once.
    """
    stride, heads = block_size + 1, batch * model.heads
    chosen = positions * min(retrieve, blocks)
    inside = Pairs(chosen * stride, chosen * block_size)
    scoring = 2 * model.head_dim * heads * (model.layers - 1) * positions * blocks
    landmarks = 4 * model.head_dim * batch * model.kv_heads * (model.layers - 1) * blocks
    pages = 2 * opened * stride * model.head_dim * model.number_bytes
    local = 2 * batch * model.layers * model.kv_heads * model.head_dim * (window + positions) * model.number_bytes
    return (
        _parameters(model, batch, positions, logits)
        + _attention(model, batch, landmark_pairs(positions, block_size, window))
        + _attention(model, batch, inside)
        + Work(scoring, landmarks + pages + local)
    )


def _attention(model: Sizes, batch: int, pairs: Pairs) -> Work:
    return Work(2 * model.head_dim * batch * model.heads * model.layers * (pairs.scored + pairs.weighed), 0)


def _parameters(model: Sizes, batch: int, tokens: int, logits: bool) -> Work:
    """Every token is multiplied by every parameter; parameters are read once."""
    count = model.layer_parameters + (model.head_parameters if logits else 0)
    return Work(2 * batch * tokens * count, count * model.number_bytes)
