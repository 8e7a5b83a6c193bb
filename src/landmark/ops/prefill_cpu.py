"""Grouped softmax for prefill on a CPU: many queries over a window, in loops compiled by numba, without gradients.

The same arithmetic as in `landmark.ops.blockwise`, a tile of queries and a block of keys at a time: scores are used
while they are in the first-level cache, where a matrix of scores would pass through main memory several times.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from landmark.ops.nonfinite import all_finite
from landmark.ops.numba_loops import compiled
from landmark.ops.numba_tiles import LANES, add_product, exp, gated_softmax_tile, soft_cap_tile, to_columns
from landmark.ops.parallel import in_parts
from landmark.ops.scoring import Scoring, working_dtype


def serves(value: Tensor, block_size: int) -> bool:
    """Whether the loops serve these values [B,Hkv,L,D]: on a CPU, and finite but for those of landmarks.

    A query's weight of a later token of its block is 0, and here that does not hide NaN.
    """
    if value.device.type != "cpu":
        return False
    blocks = value.shape[2] // (block_size + 1)
    whole = blocks * (block_size + 1)
    ordinary = value[:, :, :whole].unflatten(2, (blocks, block_size + 1))[:, :, :, :-1]
    return all_finite(ordinary, value[:, :, whole:])


def many_queries_attention(
    query: Tensor, key: Tensor, value: Tensor, positions: Tensor, *, block_size: int, scoring: Scoring
) -> tuple[Tensor, Tensor]:
    """Grouped softmax attention (Mohtashami & Jaggi 2023, section 3.1), as `blockwise_attention` but without gradients.

    Shapes: query [B,H,T,D] after rotary, key, value [B,Hkv,L,D], which start a block; `positions`, long [B,T], are the
    indices of the queries among the keys. Returns the output [B,H,T,D] in query's dtype and the logarithm of the joint
    softmax's denominator [B,H,T] in float32 (float64 for float64 inputs), -inf where a query sees nothing.
    """
    rows, heads, length, _ = query.shape
    dtype = working_dtype(query)
    scaled = query.to(dtype) * scoring.scale_of(query)
    out, lse = scaled.new_empty(query.shape), scaled.new_empty(query.shape[:3])
    sinks = scaled.new_full((heads,), -torch.inf) if scoring.sinks is None else scoring.sinks.to(dtype)
    tensors = scaled, key.to(dtype), value.to(dtype), positions, sinks, out, lse
    # Contiguous: numba compiles a loop anew for arrays of another layout, and a slower one.
    arrays = [x.detach().contiguous().numpy() for x in tensors]
    in_parts(
        lambda start, stop: _attend(*arrays, block_size + 1, scoring.softcap or 0.0, start, stop),
        rows * heads * length,
        size=key.shape[2],
    )
    return out.to(query.dtype), lse


@compiled
def _attend(
    query: Any, key: Any, value: Any, positions: Any, sinks: Any, out: Any, lse: Any,
    stride: int, softcap: float, start: int, stop: int,
) -> None:  # fmt: skip
    """Writes `out [B,H,T,D]` and `lse [B,H,T]` of the queries start..stop, counted over all rows and heads."""
    heads, length, dim = query.shape[1:]
    block, dtype = stride - 1, query.dtype
    columns, average = np.zeros((dim, LANES), dtype), np.empty((dim, LANES), dtype)
    gates, scores = np.empty((key.shape[2] // stride + 1, LANES), dtype), np.empty((stride, LANES), dtype)
    highest, total = np.empty(LANES, dtype), np.empty(LANES, dtype)
    seen = np.zeros(LANES, np.int32)  # keys of its own block that each query sees
    flat = start
    while flat < stop:
        row, head, step = flat // (heads * length), flat // length % heads, flat % length
        own, some, inside = positions[row, step] // stride, 0, 0
        most = min(LANES, length - step, stop - flat)
        while some < most and positions[row, step + some] // stride == own:  # a tile of queries of one block
            seen[some] = min(positions[row, step + some] % stride + 1, block)  # a landmark does not see itself
            inside = max(inside, seen[some])
            some += 1
        flat += some
        group, first = head // (heads // key.shape[1]), own * stride
        keys, values = key[row, group], value[row, group]
        to_columns(query[row, head, step : step + some], columns)
        local, earlier = scores[:inside], gates[:own]
        local[:], earlier[:] = 0, 0
        add_product(keys[first : first + len(local)], columns, local)
        add_product(keys[block:first:stride], columns, earlier)
        soft_cap_tile(local, softcap)
        soft_cap_tile(earlier, softcap)
        _joint_softmax(local, earlier, seen, sinks[head], highest, total)
        for lane in range(some):
            lse[row, head, step + lane] = highest[lane]
        average[:] = 0
        add_product(values[first : first + len(local)].T, local, average)
        for c in range(own):  # values of landmarks may be anything and are not read
            scores[:] = 0
            add_product(keys[c * stride : c * stride + block], columns, scores[:block])
            soft_cap_tile(scores[:block], softcap)
            gated_softmax_tile(scores[:block], earlier[c], highest, total)
            add_product(values[c * stride : c * stride + block].T, scores[:block], average)
        for lane in range(some):
            for i in range(dim):
                out[row, head, step + lane, i] = average[i, lane]


@compiled
def _joint_softmax(local: Any, earlier: Any, seen: Any, sink: Any, lse: Any, total: Any) -> None:
    """Turns scores of a tile, of its own block `local [m,LANES]` and `earlier [n,LANES]` gates, into weights in place.

    A query sees the first `seen [LANES]` keys of its own block; `sink` is one more logit. Writes the logarithm of the
    denominator to `lse [LANES]`; `total [LANES]` is scratch memory.
    """
    lse[:] = sink
    for j in range(len(local)):
        for lane in range(LANES):
            local[j, lane] = local[j, lane] if j < seen[lane] else -np.inf
            lse[lane] = local[j, lane] if local[j, lane] > lse[lane] else lse[lane]
    for c in range(len(earlier)):
        for lane in range(LANES):
            lse[lane] = earlier[c, lane] if earlier[c, lane] > lse[lane] else lse[lane]
    for lane in range(LANES):
        lse[lane] = lse[lane] if lse[lane] > -np.inf else 0  # a query that sees nothing
        total[lane] = exp(sink - lse[lane])
    _exponentials(local, lse, total)
    _exponentials(earlier, lse, total)
    for lane in range(LANES):
        lse[lane] += np.log(total[lane])
        total[lane] = 1 / total[lane] if total[lane] > 0 else 0
    for rows in (local, earlier):
        for j in range(len(rows)):
            for lane in range(LANES):
                rows[j, lane] *= total[lane]


@compiled
def _exponentials(scores: Any, highest: Any, total: Any) -> None:
    """Turns scores into their exponentials less `highest [LANES]`, in place, and adds them to `total [LANES]`."""
    for j in range(len(scores)):
        for lane in range(LANES):
            scores[j, lane] = exp(scores[j, lane] - highest[lane])
            total[lane] += scores[j, lane]
