"""Forward kernels: a program computes one tile of queries of one head in a single pass over the keys."""

# ruff: noqa: ANN001, ANN201
# pyright: reportIndexIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false

import triton
import triton.language as tl

from landmark.ops.fused.spans import key_tiles, query_tile, span, tile_at
from landmark.ops.fused.tiles import (
    HIDDEN,
    LOG2E,
    add_averages,
    finite,
    gate_scores,
    head_of,
    joined,
    kept,
    key_tile,
    labels_of,
    load_rows,
    over_blocks,
    scores_of,
    store_rows,
    two_softmaxes,
)


@triton.jit
def forward_kernel(
    query,
    key,
    value,
    sinks,
    labels,
    ranges,
    seed,
    first_query,
    out,
    lse,
    at_query,
    at_key,
    at_value,
    at_out,
    problem,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    P: tl.constexpr,
    MANY: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """Stores `out` and `lse` of one tile of queries of one head, where a block fits a tile of keys."""
    G: tl.constexpr = (N + P - 1) // P
    batch, head, rows, real, positions = query_tile(first_query, problem, M)
    own_labels = labels_of(labels, batch, positions - problem.phase, real, 0, problem)
    begin, whole_begin, whole_end, end = key_tiles(positions, real, own_labels, ranges, batch, problem, STRIDE, G)
    key = head_of(key, at_key, batch, head // problem.groups)
    value = head_of(value, at_value, batch, head // problem.groups)
    q = load_rows(head_of(query, at_query, batch, head), at_query, rows, real, DIM, WIDTH)

    top, total = joint_start(sinks, head, M)
    summed = tl.zeros((M, WIDTH), tl.float32)
    for masked in tl.static_range(2):
        start, stop = span(masked, begin, whole_begin, whole_end, end)
        for step in range(start, stop):
            tile = tile_at(step, masked, whole_begin, whole_end)
            index, inside, held, seen, earlier = key_tile(
                tile * G, 0, labels, batch, positions, own_labels, problem, STRIDE, masked, G, P
            )
            k = load_rows(key, at_key, index, held, DIM, WIDTH)
            scores = scores_of(q, k, problem)
            shares, totals, joint = two_softmaxes(scores, seen, earlier, inside, STRIDE - 1, masked, G, P)
            top, total, fading, opened = joined(top, total, joint, totals, earlier)
            weights = shares * over_blocks(opened, G, P)
            weights *= kept(seed, batch, head, rows, index, problem)
            v = load_rows(value, at_value, index, held & (inside < STRIDE - 1), DIM, WIDTH)
            summed = add_averages(summed * fading[:, None], weights, v, masked)
    finish(out, lse, at_out, batch, head, rows, real, summed, top, total, problem, DIM, WIDTH)


@triton.jit
def joint_start(sinks, head, M: tl.constexpr):
    """Largest score and sum of weights [M] before any key: those of the sink, if there is one."""
    if sinks is None:
        top = tl.full((M,), HIDDEN, tl.float32)
        total = tl.zeros((M,), tl.float32)
    else:
        top = tl.zeros((M,), tl.float32) + tl.load(sinks + head).to(tl.float32) * LOG2E
        total = tl.full((M,), 1.0, tl.float32)
    return top, total


@triton.jit
def finish(
    out, lse, at_out, batch, head, rows, real, summed, top, total, problem, DIM: tl.constexpr, WIDTH: tl.constexpr
):
    """Stores the outputs and the logarithm of the joint softmax's denominator."""
    empty = total == 0.0
    summed = summed / tl.where(empty, 1.0, total)[:, None]
    store_rows(head_of(out, at_out, batch, head), at_out, rows, real, summed, DIM, WIDTH)
    log = (top + tl.log2(tl.where(empty, 1.0, total))) / LOG2E
    lse += (batch.to(tl.int64) * problem.heads + head) * problem.queries
    tl.store(lse + rows, tl.where(empty, HIDDEN, log), mask=real)


@triton.jit
def forward_long_kernel(
    query,
    key,
    value,
    sinks,
    labels,
    ranges,
    seed,
    first_query,
    out,
    lse,
    at_query,
    at_key,
    at_value,
    at_out,
    problem,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    MANY: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """The same for blocks of several tiles: a block has a sum of its own until all of its tiles are read."""
    batch, head, rows, real, positions = query_tile(first_query, problem, M)
    own_labels = labels_of(labels, batch, positions - problem.phase, real, 0, problem)
    begin, whole_begin, whole_end, end = key_tiles(positions, real, own_labels, ranges, batch, problem, STRIDE, 1)
    key = head_of(key, at_key, batch, head // problem.groups)
    value = head_of(value, at_value, batch, head // problem.groups)
    q = load_rows(head_of(query, at_query, batch, head), at_query, rows, real, DIM, WIDTH)

    top, total = joint_start(sinks, head, M)
    summed = tl.zeros((M, WIDTH), tl.float32)
    for masked in tl.static_range(2):
        start, stop = span(masked, begin, whole_begin, whole_end, end)
        for step in range(start, stop):
            block = tile_at(step, masked, whole_begin, whole_end)
            earlier = block < positions // STRIDE
            gate, _uncut, _landmark = gate_scores(
                q, key, at_key, block, labels, batch, own_labels, earlier, problem, DIM, WIDTH, STRIDE, masked
            )
            block_top = tl.full((M,), HIDDEN, tl.float32)
            block_total = tl.zeros((M,), tl.float32)
            block_summed = tl.zeros((M, WIDTH), tl.float32)
            for part in range(0, STRIDE - 1, N):
                index, inside, held, seen, _earlier = key_tile(
                    block, part, labels, batch, positions, own_labels, problem, STRIDE, masked, 1, N
                )
                k = load_rows(key, at_key, index, held, DIM, WIDTH)
                scores = tl.where(seen & (inside < STRIDE - 1)[None, :], scores_of(q, k, problem), HIDDEN)
                new_top = tl.maximum(block_top, tl.max(scores, 1))
                base = finite(new_top)
                shares = tl.exp2(scores - base[:, None])
                fading = tl.exp2(block_top - base)
                block_top = new_top
                block_total = block_total * fading + tl.sum(shares, 1)
                shares *= kept(seed, batch, head, rows, index, problem)
                v = load_rows(value, at_value, index, held & (inside < STRIDE - 1), DIM, WIDTH)
                block_summed = add_averages(block_summed * fading[:, None], shares, v, masked)
            joint = tl.where(earlier, gate, block_top)
            top, total, fading, opened = joined(top, total, joint[:, None], block_total[:, None], earlier[:, None])
            if masked:  # a block that is not visible may be NaN, and its weight is 0
                block_summed = tl.where(opened == 0.0, 0.0, block_summed)
            summed = summed * fading[:, None] + block_summed * opened
    finish(out, lse, at_out, batch, head, rows, real, summed, top, total, problem, DIM, WIDTH)
