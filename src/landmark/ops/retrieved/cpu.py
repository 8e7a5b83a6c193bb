"""Attention to retrieved blocks on a CPU: loops compiled by numba over pairs of a query and a block, read in place.

Pairs are taken in the order of their blocks, so that a block is loaded from main memory once for all queries that
chose it; where these are many, tiles of them read it at once. For a few queries, as in decoding, one pass reads the
blocks and joins them to the local attention. Keys and values of 16 bits are read as they are and computed in float32.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from landmark.ops.numba_loops import (
    NARROW,
    add_weighted,
    as_array,
    as_float,
    compiled,
    gated_softmax,
    inner_products,
    joint_gates,
    rotate,
    rotate_rows,
    soft_cap,
)
from landmark.ops.numba_tiles import LANES, add_product, gated_softmax_tile, soft_cap_tile, to_columns
from landmark.ops.parallel import in_parts
from landmark.ops.retrieved.pytorch import of_heads
from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring, working_dtype

if TYPE_CHECKING:
    from landmark.ops.retrieved import Pages


def serves(query: Tensor, pages: "Pages") -> bool:
    """Whether the loops serve these tensors: floating-point numbers on a CPU, keys and values of one dtype.

    Keys and values have the dtype that the queries are computed in, or 16 bits.
    """
    fits = pages.keys.dtype == pages.values.dtype and pages.keys.dtype in (working_dtype(query), *NARROW)
    return fits and query.is_floating_point() and query.device.type == pages.keys.device.type == "cpu"


def numba_blocks(
    query: Tensor, pages: "Pages", distance: Tensor, rotation: Rotation, scoring: Scoring
) -> tuple[Tensor, Tensor]:
    """See `landmark.ops.retrieved.retrieved_attention`."""
    shape = (*query.shape[:3], pages.table.shape[-1])
    keys, values, table, distance, queries = _by_group(query, pages, distance, scoring)
    # Queries of a single step hardly ever share blocks, so sorting would not pay.
    order = table.argsort(dim=-1) if shape[2] > 1 else torch.arange(table.shape[1]).repeat(len(table), 1)
    pairs = _arrays(table, order)
    inside = queries.new_zeros(*table.shape, keys.shape[2] - 1)
    gates = queries.new_full(table.shape, -torch.inf)
    work = _arrays(queries, *rotation.by_partner, distance, keys, inside, gates)
    in_parts(lambda start, stop: _score(*pairs, *work, start, stop), table.numel())
    if scoring.softcap is not None:
        scoring.cap_(inside)
        scoring.cap_(gates.masked_fill_(table < 0, 0.0)).masked_fill_(table < 0, -torch.inf)
    torch.softmax(inside, dim=-1, out=inside)
    out = queries.new_zeros(*table.shape, values.shape[-1])
    work = _arrays(inside, values, out)
    in_parts(lambda start, stop: _average(*pairs, *work, start, stop), table.numel())
    return out.view(*shape, -1), gates.view(shape)


def _by_group(query: Tensor, pages: "Pages", distance: Tensor, scoring: Scoring) -> tuple[Tensor, ...]:
    """Keys, values, table, distances and scaled queries with one row for each key-value head.

    It has the pairs of the queries of all heads of its group.
    """
    keys, values = (x.flatten(0, 1) for x in pages[:2])
    shape = (*query.shape[:3], pages.table.shape[-1])
    given = (of_heads(x, shape[1]) for x in (pages.table, distance))
    table, distance = (x.expand(shape).reshape(len(keys), -1) for x in given)
    queries = query.to(working_dtype(query)).reshape(len(keys), -1, query.shape[-1]) * scoring.scale_of(query)
    return keys, values, table, distance, queries


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [as_array(x) for x in tensors]


@compiled
def _score(
    table: Any, order: Any, queries: Any, cos: Any, sin: Any, partner: Any, distance: Any, keys: Any,
    inside: Any, gates: Any, start: int, stop: int,
) -> None:  # fmt: skip
    """Scores `inside [N,P,block]` and `gates [N,P]` of the pairs at start..stop in `order`, counted over all N."""
    count = table.shape[1]
    chosen = count // queries.shape[1]  # blocks of a query
    block = inside.shape[2]
    turned = np.empty(queries.shape[2], queries.dtype)
    for flat in range(start, stop):
        head = flat // count
        pair = order[head, flat % count]
        page = table[head, pair]
        if page < 0:
            continue
        rotate(queries[head, pair // chosen], cos, sin, partner, distance[head, pair], turned)
        key = keys[head, page]
        inner_products(key, turned, inside[head, pair])
        inner_products(key[block:], turned, gates[head, pair : pair + 1])


@compiled
def _average(table: Any, order: Any, weights: Any, values: Any, out: Any, start: int, stop: int) -> None:
    """Averages `out [N,P,Dv]` of values by `weights [N,P,block]` for the pairs at start..stop in `order`."""
    count = table.shape[1]
    for flat in range(start, stop):
        head = flat // count
        pair = order[head, flat % count]
        if table[head, pair] < 0:
            continue
        add_weighted(weights[head, pair], values[head, table[head, pair]], out[head, pair])


# Many queries that share blocks: a tile of those that chose a block reads it at once.


def tiled_blocks(
    query: Tensor, pages: "Pages", distance: Tensor, rotation: Rotation, scoring: Scoring
) -> tuple[Tensor, Tensor]:
    """See `landmark.ops.retrieved.retrieved_attention`."""
    shape = (*query.shape[:3], pages.table.shape[-1])
    keys, values, table, distance, queries = _by_group(query, pages, distance, scoring)
    out = queries.new_empty(*table.shape, values.shape[-1])
    gates = queries.new_empty(table.shape)
    order = np.argsort(table.numpy(), axis=1)
    arrays = _arrays(table, queries, *rotation.by_partner, distance, keys, values, out, gates)
    in_parts(lambda start, stop: _read(order, *arrays, scoring.softcap or 0.0, start, stop), table.numel())
    return out.view(*shape, -1), gates.view(shape)


@compiled
def _read(
    order: Any, table: Any, queries: Any, cos: Any, sin: Any, partner: Any, distance: Any, keys: Any, values: Any,
    out: Any, gates: Any, softcap: float, start: int, stop: int,
) -> None:  # fmt: skip
    """Fills `out [N,P,Dv]` and `gates [N,P]` of the pairs at start..stop in `order`, counted over all N."""
    count = table.shape[1]
    chosen = count // queries.shape[1]  # blocks of a query
    stride, dim = keys.shape[2:]
    dtype = queries.dtype
    key, value = np.empty((stride, dim), dtype), np.empty((stride - 1, values.shape[3]), dtype)
    turned, columns = np.empty((LANES, dim), dtype), np.zeros((dim, LANES), dtype)
    scores, average = np.empty((stride, LANES), dtype), np.empty((values.shape[3], LANES), dtype)
    open_gates, highest, total = np.ones(LANES, dtype), np.empty(LANES, dtype), np.empty(LANES, dtype)
    rows, away = np.empty(LANES, np.int64), np.empty(LANES, np.int64)
    loaded, flat = -1, start
    while flat < stop:
        head = flat // count
        pairs = order[head, flat % count : min(flat % count + LANES, count, flat % count + stop - flat)]
        page, some = table[head, pairs[0]], 1
        while some < len(pairs) and table[head, pairs[some]] == page:
            some += 1
        flat += some
        if page < 0:
            for pair in pairs[:some]:
                out[head, pair], gates[head, pair] = 0, -np.inf
            continue
        if head * keys.shape[1] + page != loaded:
            loaded = head * keys.shape[1] + page
            _widen(keys[head, page], key)
            _widen(values[head, page], value)
        for lane in range(some):
            rows[lane], away[lane] = pairs[lane] // chosen, distance[head, pairs[lane]]
        rotate_rows(queries[head], rows[:some], cos, sin, partner, away, turned)
        to_columns(turned[:some], columns)
        scores[:], average[:] = 0, 0
        add_product(key, columns, scores)
        soft_cap_tile(scores, softcap)
        gated_softmax_tile(scores[: stride - 1], open_gates, highest, total)
        add_product(value.T, scores[: stride - 1], average)
        for lane in range(some):
            gates[head, pairs[lane]] = scores[stride - 1, lane]
            for i in range(average.shape[0]):
                out[head, pairs[lane], i] = average[i, lane]


@compiled
def _widen(rows: Any, out: Any) -> None:
    """Copies the first rows of an array of `as_array` to `out [n,D]` as numbers."""
    for j in range(out.shape[0]):
        for i in range(out.shape[1]):
            out[j, i] = as_float(rows[j, i])


# Few queries: read and joined to the local attention in one pass.


def numba_join(
    query: Tensor, pages: "Pages", distance: Tensor, rotation: Rotation, scoring: Scoring, local: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """`merge(*local, *retrieved_attention(...))` for tensors that it `serves`, in the order of the queries."""
    shape = (*query.shape[:3], pages.table.shape[-1])
    scaled = query.to(working_dtype(query)) * scoring.scale_of(query)
    joined, weights, own = (scaled.new_empty(x) for x in (local[0].shape, shape, shape[:3]))
    table, distance = (of_heads(x, shape[1]).expand(shape) for x in (pages.table, distance))
    tensors = scaled, *rotation.by_partner, table, distance, *pages[:2], *local, joined, weights, own
    # Contiguous: numba compiles a loop anew for arrays of another layout, and a slower one.
    arrays = [as_array(x.contiguous()) for x in tensors]
    in_parts(
        lambda start, stop: join_loop(*arrays, scoring.softcap or 0.0, start, stop),
        query.shape[:3].numel(),
        size=shape[-1] * pages.keys.shape[3],
    )
    return joined.to(local[0].dtype), weights, own


@compiled
def join_loop(
    query: Any, cos: Any, sin: Any, partner: Any, table: Any, distance: Any, keys: Any, values: Any, out: Any,
    lse: Any, joined: Any, weights: Any, own: Any, softcap: float, start: int, stop: int,
) -> None:  # fmt: skip
    """Fills `joined [B,H,T,Dv]`, `weights [B,H,T,k]`, `own [B,H,T]` of queries start..stop, over all rows and heads."""
    heads, length, dim = query.shape[1:]
    stride = keys.shape[3]
    turned = np.empty(dim, query.dtype)
    scores = np.empty((table.shape[3], stride), query.dtype)
    for flat in range(start, stop):
        row, head, step = flat // (heads * length), flat // length % heads, flat % length
        group = head // (heads // keys.shape[1])
        weight, total = weights[row, head, step], joined[row, head, step]
        for j in range(len(weight)):
            weight[j] = -np.inf
            page = table[row, head, step, j]
            if page < 0:
                continue
            rotate(query[row, head, step], cos, sin, partner, distance[row, head, step, j], turned)
            inner_products(keys[row, group, page], turned, scores[j])
            soft_cap(scores[j], softcap)
            weight[j] = scores[j, stride - 1]
        local = joint_gates(lse[row, head, step], weight)
        own[row, head, step] = local
        for i in range(len(total)):
            total[i] = as_float(out[row, head, step, i]) * local
        for j in range(len(weight)):
            if table[row, head, step, j] >= 0:
                gated_softmax(scores[j, : stride - 1], weight[j])
                add_weighted(scores[j, : stride - 1], values[row, group, table[row, head, step, j]], total)


def numba_merge(out: Tensor, lse: Tensor, inside: Tensor, gates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`merge` on a CPU in one pass, without gradients; the results are contiguous, whatever the inputs are."""
    joined, weights = gates.new_empty(out.shape), gates.clone(memory_format=torch.contiguous_format)
    own = weights.new_empty(lse.shape)
    rows, (k, dim) = lse.numel(), inside.shape[-2:]
    arrays = [as_array(x.reshape(rows, -1)) for x in (out, lse, joined, weights, own)]
    in_parts(lambda start, stop: _merge(*arrays, inside.reshape(rows, k, dim).numpy(), start, stop), rows)
    return joined.to(out.dtype), weights, own


@compiled
def _merge(out: Any, lse: Any, joined: Any, weights: Any, own: Any, inside: Any, start: int, stop: int) -> None:
    """Fills rows start..stop of `joined [R,Dv]` and `own [R,1]`, and turns those of `weights [R,k]` from logits."""
    for row in range(start, stop):
        local = joint_gates(lse[row, 0], weights[row])
        own[row, 0] = local
        for i in range(out.shape[1]):
            joined[row, i] = as_float(out[row, i]) * local
        add_weighted(weights[row], inside[row], joined[row])
