"""Backward kernels for blocks of several tiles.

The softmax inside a block is known only when all of its tiles have been read. The pass of the queries reads an
earlier block twice, and stores two numbers per query and block for the pass of keys and values.
"""

# ruff: noqa: ANN001, ANN201
# pyright: reportIndexIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false

import triton
import triton.language as tl

from landmark.ops.fused.backward import load_lse, row_statistics
from landmark.ops.fused.spans import key_tiles, query_tile, query_tiles, span, tile_at
from landmark.ops.fused.tiles import (
    HIDDEN,
    cleaned,
    columns_of,
    finite,
    gate_scores,
    head_of,
    kept,
    key_tile,
    labels_of,
    load_rows,
    scores_of,
    store_rows,
    uncapped,
    visible,
    where_seen,
)


@triton.jit
def query_gradients_long_kernel(
    query,
    key,
    value,
    grad,
    labels,
    ranges,
    seed,
    first_query,
    out,
    lse,
    delta,
    levels,
    means,
    query_grad,
    at_query,
    at_key,
    at_value,
    at_grad,
    at_out,
    at_query_grad,
    problem,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    MANY: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """Gradients of one tile of queries of one head; also writes delta and, per earlier block, levels and means.

    A token's final weight is 2 to its score minus its block's level; a block's mean is that of the gradients
    of its tokens' weights. Both are [B,H,blocks,Tq].
    """
    batch, head, rows, real, positions = query_tile(first_query, problem, M)
    own_labels = labels_of(labels, batch, positions - problem.phase, real, 0, problem)
    begin, whole_begin, whole_end, end = key_tiles(positions, real, own_labels, ranges, batch, problem, STRIDE, 1)
    key = head_of(key, at_key, batch, head // problem.groups)
    value = head_of(value, at_value, batch, head // problem.groups)
    q = load_rows(head_of(query, at_query, batch, head), at_query, rows, real, DIM, WIDTH)
    do, row_lse, row_delta = row_statistics(
        out, grad, lse, delta, at_out, at_grad, batch, head, rows, real, problem, DIM, WIDTH
    )
    blocks = tl.cdiv(problem.keys + problem.phase, STRIDE)
    of_head = (batch.to(tl.int64) * problem.heads + head) * blocks * problem.queries

    summed = tl.zeros((M, WIDTH), tl.float32)
    for masked in tl.static_range(2):
        start, stop = span(masked, begin, whole_begin, whole_end, end)
        for step in range(start, stop):
            block = tile_at(step, masked, whole_begin, whole_end)
            earlier = block < positions // STRIDE
            top = tl.full((M,), HIDDEN, tl.float32)
            total = tl.zeros((M,), tl.float32)
            mean = tl.zeros((M,), tl.float32)
            for part in range(0, STRIDE - 1, N):
                index, inside, held, seen, _earlier = key_tile(
                    block, part, labels, batch, positions, own_labels, problem, STRIDE, masked, 1, N
                )
                k = load_rows(key, at_key, index, held, DIM, WIDTH)
                v = load_rows(value, at_value, index, held & (inside < STRIDE - 1), DIM, WIDTH)
                scores = tl.where(seen & (inside < STRIDE - 1)[None, :], scores_of(q, k, problem), HIDDEN)
                new_top = tl.maximum(top, tl.max(scores, 1))
                base = finite(new_top)
                shares = tl.exp2(scores - base[:, None])
                fading = tl.exp2(top - base)
                top = new_top
                grads = where_seen(tl.dot(do, tl.trans(v), input_precision="ieee"), seen, masked)
                grads *= kept(seed, batch, head, rows, index, problem)
                total = total * fading + tl.sum(shares, 1)
                mean = mean * fading + tl.sum(shares * grads, 1)
            mean /= tl.maximum(total, 1.0)
            gate, gate_uncut, landmark = gate_scores(
                q, key, at_key, block, labels, batch, own_labels, earlier, problem, DIM, WIDTH, STRIDE, masked
            )
            block_lse = tl.where(total == 0.0, -HIDDEN, top + tl.log2(tl.maximum(total, 1.0)))
            level = tl.where(earlier, row_lse + block_lse - gate, row_lse)
            here = of_head + block.to(tl.int64) * problem.queries + rows
            tl.store(levels + here, level, mask=real)
            tl.store(means + here, mean, mask=real)
            gate_grad = tl.where(earlier, tl.exp2(gate - row_lse) * (mean - row_delta), 0.0)
            gate_grad = uncapped(gate_grad, gate_uncut, problem)
            if masked:  # of a landmark that is no gate, even if it is NaN
                gate_grad = tl.where(gate == HIDDEN, 0.0, gate_grad)
            summed += gate_grad[:, None] * cleaned(landmark, masked)
            mean = tl.where(earlier, mean, row_delta)
            for part in range(0, STRIDE - 1, N):
                index, inside, held, seen, _earlier = key_tile(
                    block, part, labels, batch, positions, own_labels, problem, STRIDE, masked, 1, N
                )
                k = load_rows(key, at_key, index, held, DIM, WIDTH)
                v = load_rows(value, at_value, index, held & (inside < STRIDE - 1), DIM, WIDTH)
                scores = scores_of(q, k, problem)
                grads = where_seen(tl.dot(do, tl.trans(v), input_precision="ieee"), seen, masked)
                grads *= kept(seed, batch, head, rows, index, problem)
                ordinary = tl.where(seen & (inside < STRIDE - 1)[None, :], scores, HIDDEN)
                score_grads = tl.exp2(ordinary - level[:, None]) * (grads - mean[:, None])
                score_grads = uncapped(score_grads, scores, problem)
                score_grads = where_seen(score_grads, seen & (inside < STRIDE - 1)[None, :], masked)
                summed = tl.dot(score_grads.to(k.dtype), cleaned(k, masked), summed, input_precision="ieee")
    query_grad = head_of(query_grad, at_query_grad, batch, head)
    store_rows(query_grad, at_query_grad, rows, real, summed * problem.scale, DIM, WIDTH)


@triton.jit
def key_gradients_long_kernel(
    query,
    key,
    value,
    grad,
    labels,
    ranges,
    seed,
    first_query,
    lse,
    delta,
    levels,
    means,
    key_grad,
    value_grad,
    at_query,
    at_key,
    at_value,
    at_grad,
    at_key_grad,
    at_value_grad,
    problem,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    MANY: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """Gradients of one tile of keys and values, a part of one block, from the query heads that share them."""
    PARTS: tl.constexpr = (STRIDE + N - 1) // N
    blocks = tl.cdiv(problem.keys + problem.phase, STRIDE)
    kv_heads = problem.heads // problem.groups
    batch = tl.program_id(0) // (blocks * PARTS) // kv_heads
    kv_head = tl.program_id(0) // (blocks * PARTS) % kv_heads
    tile = tl.program_id(0) % (blocks * PARTS)
    block = tile // PARTS
    key_positions, inside = columns_of(block, tile % PARTS * N, STRIDE, 1, N)
    index = key_positions - problem.phase
    held = (inside < STRIDE) & (index >= 0) & (index < problem.keys)
    key_labels = labels_of(labels, batch, index, held, 1, problem)
    k = load_rows(head_of(key, at_key, batch, kv_head), at_key, index, held, DIM, WIDTH)
    valued = held & (inside < STRIDE - 1)
    v = load_rows(head_of(value, at_value, batch, kv_head), at_value, index, valued, DIM, WIDTH)
    first = tl.load(first_query + batch).to(tl.int32) + problem.phase
    begin, whole_begin, end = query_tiles(
        first, block * STRIDE, (block + 1) * STRIDE, key_labels, held, ranges, batch, problem, STRIDE, M
    )

    key_sum = tl.zeros((N, WIDTH), tl.float32)
    value_sum = tl.zeros((N, WIDTH), tl.float32)
    for member in range(problem.groups):
        head = kv_head * problem.groups + member
        queries = head_of(query, at_query, batch, head)
        grads_of_head = head_of(grad, at_grad, batch, head)
        of_head = (batch.to(tl.int64) * problem.heads + head) * problem.queries
        of_block = of_head * blocks + block.to(tl.int64) * problem.queries
        for masked in tl.static_range(2):
            start, stop = (begin, whole_begin) if masked else (whole_begin, end)
            for tile in range(start, stop):
                rows = tile * M + tl.arange(0, M)
                real = rows < problem.queries
                q = load_rows(queries, at_query, rows, real, DIM, WIDTH)
                do = load_rows(grads_of_head, at_grad, rows, real, DIM, WIDTH)
                row_lse = load_lse(lse + of_head, rows, real)
                row_delta = tl.load(delta + of_head + rows, mask=real, other=0.0)
                level = tl.load(levels + of_block + rows, mask=real, other=0.0)
                mean = tl.load(means + of_block + rows, mask=real, other=0.0)
                seen = held[None, :]
                if masked:
                    positions = first + rows
                    own_labels = labels_of(labels, batch, positions - problem.phase, real, 0, problem)
                    earlier = block < positions // STRIDE
                    # Blocks that are not earlier were not written.
                    level = tl.where(earlier, level, row_lse)
                    mean = tl.where(earlier, mean, row_delta)
                    seen = visible(labels, own_labels, key_labels, positions, key_positions, held)
                    seen = seen & (earlier[:, None] | (inside < STRIDE - 1)[None, :])
                at_landmark = (inside == STRIDE - 1)[None, :]
                scores = scores_of(q, k, problem)
                grads = tl.dot(do, tl.trans(v), input_precision="ieee")
                level = tl.where(at_landmark, row_lse[:, None], level[:, None])
                weights = tl.where(seen, tl.exp2(scores - level), 0.0)
                factors = kept(seed, batch, head, rows, index, problem)
                grads *= factors
                differences = tl.where(at_landmark, (mean - row_delta)[:, None], grads - mean[:, None])
                score_grads = tl.where(seen, weights * differences, 0.0)
                weights *= factors
                value_sum = tl.dot(tl.trans(weights.to(do.dtype)), do, value_sum, input_precision="ieee")
                score_grads = where_seen(uncapped(score_grads, scores, problem), seen, masked)
                key_sum = tl.dot(tl.trans(score_grads.to(q.dtype)), cleaned(q, masked), key_sum, input_precision="ieee")
    key_grad = head_of(key_grad, at_key_grad, batch, kv_head)
    store_rows(key_grad, at_key_grad, index, held, key_sum * problem.scale, DIM, WIDTH)
    value_sum = tl.where(valued[:, None], value_sum, 0.0)
    value_grad = head_of(value_grad, at_value_grad, batch, kv_head)
    store_rows(value_grad, at_value_grad, index, held, value_sum, DIM, WIDTH)
