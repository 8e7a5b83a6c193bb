"""Grouped softmax for decoding: few queries over a short window, in few operations.

With one query and a window of some hundred keys, the number of operations counts, not their size: a loop compiled by
numba on a CPU, dense matrices elsewhere.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from landmark.ops.numba_loops import (
    add_weighted,
    as_array,
    compiled,
    exp,
    gated_softmax,
    inner_products,
    rotate,
    soft_cap,
)
from landmark.ops.parallel import in_parts
from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring, working_dtype

FEW_QUERIES = 16  # queries in a chunk up to which the number of operations costs more than their size


def is_few(query: Tensor) -> bool:
    """Whether `query [B,H,T,D]` is better served here than by attention in tiles of queries."""
    return query.shape[2] <= FEW_QUERIES


def few_queries_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor,
    rotation: Rotation,
    *,
    block_size: int,
    scoring: Scoring,
) -> tuple[Tensor, Tensor]:
    """Grouped softmax attention (Mohtashami & Jaggi 2023, section 3.1), as `blockwise_attention` but without gradients.

    Shapes: query [B,H,T,D] before rotary, key, value [B,Hkv,L,D], which start a block, keys rotated to their index;
    `positions`, long [B,T], are the indices of the queries among the keys. Returns the output [B,H,T,D] in query's
    dtype and the logarithm of the joint softmax's denominator [B,H,T] in float32 (float64 for float64 inputs), -inf
    where a query sees nothing.
    """
    if query.device.type == "cpu" and key.dtype == value.dtype == query.dtype:
        return _looped(query, key, value, positions, rotation, block_size + 1, scoring)
    turned = rotation.apply(query, positions[:, None])
    return dense(turned, key, value, positions, block_size + 1, scoring)


def _looped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor,
    rotation: Rotation,
    stride: int,
    scoring: Scoring,
) -> tuple[Tensor, Tensor]:
    rows, heads, length, _ = query.shape
    scaled = query.to(working_dtype(query)) * scoring.scale_of(query)
    out = scaled.new_zeros(query.shape)
    lse = scaled.new_empty(query.shape[:3])
    sinks = scaled.new_full((heads,), -torch.inf) if scoring.sinks is None else scoring.sinks.to(scaled.dtype)
    tensors = scaled, *rotation.by_partner, key, value, positions, sinks, out, lse
    # Contiguous: numba compiles a loop anew for arrays of another layout, and a slower one.
    arrays = [as_array(x.contiguous()) for x in tensors]
    in_parts(
        lambda start, stop: attend_loop(*arrays, stride, scoring.softcap or 0.0, start, stop),
        rows * heads * length,
        size=key.shape[2],
    )
    return out.to(query.dtype), lse


@compiled
def attend_loop(
    query: Any, cos: Any, sin: Any, partner: Any, key: Any, value: Any, positions: Any, sinks: Any,
    out: Any, lse: Any, stride: int, softcap: float, start: int, stop: int,
) -> None:  # fmt: skip
    """Writes `out [B,H,T,D]` and `lse [B,H,T]` of the queries start..stop, counted over all rows and heads."""
    heads, length = query.shape[1:3]
    turned, scores = np.empty(query.shape[3], query.dtype), np.empty(key.shape[2], query.dtype)
    for flat in range(start, stop):
        row, head, step = flat // (heads * length), flat // length % heads, flat % length
        group = head // (heads // key.shape[1])
        last = positions[row, step]
        own = last // stride * stride  # where the query's own block begins
        seen = scores[: last + 1]
        rotate(query[row, head, step], cos, sin, partner, last, turned)
        inner_products(key[row, group], turned, seen)
        soft_cap(seen, softcap)
        end = min(last + 1, own + stride - 1)  # a landmark does not see itself
        highest = sinks[head]
        for j in range(stride - 1, own, stride):
            highest = max(highest, seen[j])
        for j in range(own, end):
            highest = max(highest, seen[j])
        if highest == -np.inf:
            lse[row, head, step] = highest
            continue
        total = exp(sinks[head] - highest)
        for j in range(own, end):
            seen[j] = exp(seen[j] - highest)
            total += seen[j]
        for j in range(stride - 1, own, stride):
            seen[j] = exp(seen[j] - highest)
            total += seen[j]
        for j in range(own, end):
            seen[j] /= total
        for first in range(0, own, stride):  # values of landmarks may be anything and are not read
            landmark = first + stride - 1
            gated_softmax(seen[first:landmark], seen[landmark] / total)
            add_weighted(seen[first:landmark], value[row, group, first:landmark], out[row, head, step])
        add_weighted(seen[own:end], value[row, group, own:end], out[row, head, step])
        lse[row, head, step] = highest + np.log(total)


def dense(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor,
    stride: int,
    scoring: Scoring,
) -> tuple[Tensor, Tensor]:
    """The same for rotated queries by dense matrices [B,H,T,L], on any device."""
    dtype, kv_heads, length = working_dtype(query), key.shape[1], key.shape[2]
    grouped = (query.to(dtype) * scoring.scale_of(query)).unflatten(1, (kv_heads, -1)).flatten(2, 3)
    scores = scoring.cap_((grouped @ key.to(dtype).transpose(2, 3)).view(*query.shape[:3], -1))
    joint = scores.masked_fill(_outside(positions, length, stride), -torch.inf)
    lse = joint.logsumexp(-1)
    if scoring.sinks is not None:
        lse = torch.logaddexp(lse, scoring.sinks[:, None].to(dtype))
    weights = joint.sub_(lse.masked_fill(lse == -torch.inf, 0.0)[..., None]).exp_()
    whole = length // stride * stride
    if whole:
        # The gate of an earlier block is distributed among its ordinary tokens; all other gates are 0.
        blocks = weights[..., :whole].unflatten(-1, (-1, stride))
        inside = scores[..., :whole].unflatten(-1, (-1, stride))[..., :-1].softmax(-1)
        blocks[..., :-1].add_(inside.mul_(blocks[..., -1:]))
        blocks[..., -1] = 0.0
    # Values of landmarks, and those behind all queries of a row, have weight 0 and may be anything.
    index = torch.arange(length, device=value.device)
    unread = (index % stride == stride - 1) | (index > positions.amax(1, keepdim=True))
    value = value.to(dtype).masked_fill(unread[:, None, :, None], 0.0)
    out = weights.view(*key.shape[:2], -1, length) @ value
    return out.view(query.shape).to(query.dtype), lse


def _outside(positions: Tensor, keys: int, stride: int) -> Tensor:
    """Mask of keys neither in a query's local set nor among its gates: bool [B,1,T,L]."""
    position, index = positions[:, None, :, None], torch.arange(keys, device=positions.device)
    own, block = position // stride, index // stride
    is_landmark = index % stride == stride - 1
    return torch.where(is_landmark, block >= own, (block != own) | (index > position))
