"""Backward kernels for blocks that fit a tile: one pass for the gradients of queries, one for keys and values.

Both recompute the softmaxes of every tile; only `lse` is kept from the forward pass. No two programs write to the same
address, so results do not depend on the order in which they run.
"""

# ruff: noqa: ANN001, ANN201
# pyright: reportIndexIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false

import triton
import triton.language as tl

from landmark.ops.fused.spans import key_tiles, query_tile, query_tiles, span, tile_at
from landmark.ops.fused.tiles import (
    LOG2E,
    cleaned,
    columns_of,
    finite,
    head_of,
    kept,
    key_tile,
    labels_of,
    load_rows,
    scores_of,
    store_rows,
    tile_gradients,
    two_softmaxes,
    uncapped,
    visible,
    where_seen,
)


@triton.jit
def query_gradients_kernel(
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
    P: tl.constexpr,
    MANY: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """Gradients of one tile of queries of one head; also writes `delta`, each row's sum of out * grad."""
    G: tl.constexpr = (N + P - 1) // P
    batch, head, rows, real, positions = query_tile(first_query, problem, M)
    own_labels = labels_of(labels, batch, positions - problem.phase, real, 0, problem)
    begin, whole_begin, whole_end, end = key_tiles(positions, real, own_labels, ranges, batch, problem, STRIDE, G)
    key = head_of(key, at_key, batch, head // problem.groups)
    value = head_of(value, at_value, batch, head // problem.groups)
    q = load_rows(head_of(query, at_query, batch, head), at_query, rows, real, DIM, WIDTH)
    do, row_lse, row_delta = row_statistics(
        out, grad, lse, delta, at_out, at_grad, batch, head, rows, real, problem, DIM, WIDTH
    )

    summed = tl.zeros((M, WIDTH), tl.float32)
    for masked in tl.static_range(2):
        start, stop = span(masked, begin, whole_begin, whole_end, end)
        for step in range(start, stop):
            tile = tile_at(step, masked, whole_begin, whole_end)
            index, inside, held, seen, earlier = key_tile(
                tile * G, 0, labels, batch, positions, own_labels, problem, STRIDE, masked, G, P
            )
            k = load_rows(key, at_key, index, held, DIM, WIDTH)
            v = load_rows(value, at_value, index, held & (inside < STRIDE - 1), DIM, WIDTH)
            scores = scores_of(q, k, problem)
            shares, totals, joint = two_softmaxes(scores, seen, earlier, inside, STRIDE - 1, masked, G, P)
            grads = where_seen(tl.dot(do, tl.trans(v), input_precision="ieee"), seen, masked)
            grads *= kept(seed, batch, head, rows, index, problem)
            _, score_grads = tile_gradients(
                shares, totals, joint, grads, row_lse, row_delta, earlier, inside, STRIDE - 1, G, P
            )
            score_grads = where_seen(uncapped(score_grads, scores, problem), seen, masked)
            summed = tl.dot(score_grads.to(k.dtype), cleaned(k, masked), summed, input_precision="ieee")
    query_grad = head_of(query_grad, at_query_grad, batch, head)
    store_rows(query_grad, at_query_grad, rows, real, summed * problem.scale, DIM, WIDTH)


@triton.jit
def row_statistics(
    out, grad, lse, delta, at_out, at_grad, batch, head, rows, real, problem, DIM: tl.constexpr, WIDTH: tl.constexpr
):
    """Rows of grad [M,WIDTH], lse in units of log 2 and delta [M]; delta is computed here and stored."""
    do = load_rows(head_of(grad, at_grad, batch, head), at_grad, rows, real, DIM, WIDTH)
    o = load_rows(head_of(out, at_out, batch, head), at_out, rows, real, DIM, WIDTH)
    row_delta = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
    of_head = (batch.to(tl.int64) * problem.heads + head) * problem.queries
    tl.store(delta + of_head + rows, row_delta, mask=real)
    return do, load_lse(lse + of_head, rows, real), row_delta


@triton.jit
def load_lse(lse, rows, real):
    return finite(tl.load(lse + rows, mask=real, other=0.0)) * LOG2E


@triton.jit
def key_gradients_kernel(
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
    P: tl.constexpr,
    MANY: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """Gradients of one tile of keys and values of one key head, from all the query heads that share it."""
    G: tl.constexpr = (N + P - 1) // P
    tiles = tl.cdiv(tl.cdiv(problem.keys + problem.phase, STRIDE), G)
    kv_heads = problem.heads // problem.groups
    batch = tl.program_id(0) // tiles // kv_heads
    kv_head = tl.program_id(0) // tiles % kv_heads
    first_block = tl.program_id(0) % tiles * G
    key_positions, inside = columns_of(first_block, 0, STRIDE, G, P)
    index = key_positions - problem.phase
    held = (inside < STRIDE) & (index >= 0) & (index < problem.keys)
    key_labels = labels_of(labels, batch, index, held, 1, problem)
    k = load_rows(head_of(key, at_key, batch, kv_head), at_key, index, held, DIM, WIDTH)
    valued = held & (inside < STRIDE - 1)
    v = load_rows(head_of(value, at_value, batch, kv_head), at_value, index, valued, DIM, WIDTH)
    first = tl.load(first_query + batch).to(tl.int32) + problem.phase
    begin, whole_begin, end = query_tiles(
        first,
        first_block * STRIDE,
        (first_block + G) * STRIDE,
        key_labels,
        held,
        ranges,
        batch,
        problem,
        STRIDE,
        M,
    )

    key_sum = tl.zeros((G * P, WIDTH), tl.float32)
    value_sum = tl.zeros((G * P, WIDTH), tl.float32)
    for member in range(problem.groups):
        head = kv_head * problem.groups + member
        queries = head_of(query, at_query, batch, head)
        grads_of_head = head_of(grad, at_grad, batch, head)
        of_head = (batch.to(tl.int64) * problem.heads + head) * problem.queries
        for masked in tl.static_range(2):
            start, stop = (begin, whole_begin) if masked else (whole_begin, end)
            for tile in range(start, stop):
                rows = tile * M + tl.arange(0, M)
                real = rows < problem.queries
                earlier = tl.full((M, G), 1, tl.int1)
                seen = (inside < STRIDE)[None, :]
                if masked:
                    positions = first + rows
                    earlier = (first_block + tl.arange(0, G))[None, :] < (positions // STRIDE)[:, None]
                    own_labels = labels_of(labels, batch, positions - problem.phase, real, 0, problem)
                    seen = visible(labels, own_labels, key_labels, positions, key_positions, held)
                q = load_rows(queries, at_query, rows, real, DIM, WIDTH)
                do = load_rows(grads_of_head, at_grad, rows, real, DIM, WIDTH)
                row_lse = load_lse(lse + of_head, rows, real)
                row_delta = tl.load(delta + of_head + rows, mask=real, other=0.0)
                scores = scores_of(q, k, problem)
                shares, totals, joint = two_softmaxes(scores, seen, earlier, inside, STRIDE - 1, masked, G, P)
                grads = where_seen(tl.dot(do, tl.trans(v), input_precision="ieee"), seen, masked)
                factors = kept(seed, batch, head, rows, index, problem)
                grads *= factors
                weights, score_grads = tile_gradients(
                    shares, totals, joint, grads, row_lse, row_delta, earlier, inside, STRIDE - 1, G, P
                )
                weights = where_seen(weights * factors, seen, masked)
                value_sum = tl.dot(tl.trans(weights.to(do.dtype)), do, value_sum, input_precision="ieee")
                score_grads = where_seen(uncapped(score_grads, scores, problem), seen, masked)
                key_sum = tl.dot(tl.trans(score_grads.to(q.dtype)), cleaned(q, masked), key_sum, input_precision="ieee")
    key_grad = head_of(key_grad, at_key_grad, batch, kv_head)
    store_rows(key_grad, at_key_grad, index, held, key_sum * problem.scale, DIM, WIDTH)
    value_grad = head_of(value_grad, at_value_grad, batch, kv_head)
    store_rows(value_grad, at_value_grad, index, held, value_sum, DIM, WIDTH)
