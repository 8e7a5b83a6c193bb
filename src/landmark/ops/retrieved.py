"""Attention over chosen blocks: every query reads blocks of its own.

Block keys are rotated once, by their offset in the block; a query is rotated by its distance from the start
of the block it reads. Nothing that is gathered is ever rotated.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from landmark.ops.rotary import Rotation
from landmark.ops.tiles import working_dtype

# Gathered bytes of a tile: on a CPU little enough to be in cache when they are used.
_TILE_BYTES = 4 << 20
_TILE_BYTES_ACCELERATOR = 8 << 20


class Blocks(Protocol):
    """Where blocks come from; see `landmark.store.BlockStore.gather`, which is one such place."""

    def gather(
        self, heads: Tensor, numbers: Tensor, out: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]: ...


def retrieved_attention(
    query: Tensor,
    store: Blocks,
    blocks: Tensor,
    distance: Tensor,
    *,
    block_size: int,
    kv_heads: int,
    rotation: Rotation,
    scale: float,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of each query to the blocks chosen for it (Mohtashami & Jaggi 2023, section 3.2).

    Args:
        query: [B,H,T,D] before rotary.
        store: gathers keys [M,k,stride,D] and values [M,k,stride,Dv] for heads [M] (row * kv_heads + head)
            and block numbers [M,k]. The last of the stride positions is the landmark. What it gives for -1
            must be finite.
        blocks: long [B,H,T,k], [B,1,T,k] (heads share blocks) or [B,H,1,k] (queries share blocks); -1 is no
            block.
        distance: long, like blocks but always with T queries: positions from the start of the block to the
            query.

    Returns:
        The average [B,H,T,Dv] over the chosen blocks, each weighted by its gate (0 where a query has no
        block), and the logits of the gates [B,H,T,k], -inf for no block. Both in float32, or float64 for
        float64 queries.
    """
    work = _laid_out(query, blocks, distance, kv_heads)
    stride, dim, k = block_size + 1, query.shape[-1], blocks.shape[-1]
    items, queries = _tile_sizes(query, work.query.shape[1], k, stride)
    gates = query.new_empty(*work.query.shape[:2], k, dtype=working_dtype(query))
    fetched, out = None, gates.new_empty(0)
    for start in range(0, len(work.query), items):
        some = slice(start, start + items)
        numbers = work.blocks[some]
        # Every tile fills the buffers of the first: fresh ones would cost page after page in faults.
        room = fetched and (fetched[0][: len(numbers)], fetched[1][: len(numbers)])
        keys, values = fetched = store.gather(work.heads[some], numbers, room)
        if start == 0:
            out = gates.new_empty(*work.query.shape[:2], values.shape[-1])
        for first in range(0, work.query.shape[1], queries):
            those = slice(first, first + queries)
            turned = rotation.apply(work.query[some, those, None].to(gates.dtype), work.distance[some, those])
            scaled = turned.expand(-1, -1, k, dim) * scale
            out[some, those], gates[some, those] = _read(scaled, keys, values, numbers, softcap)
    return work.by_head(out), work.by_head(gates)


def merge(out: Tensor, lse: Tensor, retrieved: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
    """Joins local attention and retrieved blocks under one softmax.

    `out [B,H,T,Dv]` is the local output and `lse [B,H,T]` the logarithm of its denominator; `retrieved` and
    `gates` are those of `retrieved_attention`. Returns the output in out's dtype and the weight of each gate
    [B,H,T,k].
    """
    total = torch.logaddexp(lse, gates.logsumexp(-1))
    total = total.masked_fill(total == -torch.inf, 0.0)[..., None]
    weights = torch.exp(gates - total)
    joined = out * torch.exp(lse[..., None] - total) + retrieved * weights.sum(-1, keepdim=True)
    return joined.to(out.dtype), weights


class _Work(NamedTuple):
    """The same task as M items, each a set of blocks with the R queries that share it."""

    query: Tensor  # [M,R,D]
    blocks: Tensor  # [M,k]
    distance: Tensor  # [M,R,k]
    heads: Tensor  # [M]
    by_head: Callable[[Tensor], Tensor]  # [M,R,X] -> [B,H,T,X]


def _laid_out(query: Tensor, blocks: Tensor, distance: Tensor, kv_heads: int) -> _Work:
    rows, heads, length, dim = query.shape
    k = blocks.shape[-1]
    groups = heads // kv_heads
    kv = torch.arange(rows * kv_heads, device=query.device)
    if blocks.shape[1] == heads and blocks.shape[2] == length:
        return _Work(
            query.reshape(-1, 1, dim),
            blocks.reshape(-1, k),
            distance.reshape(-1, 1, k),
            kv.repeat_interleave(groups * length),
            lambda x: x.view(rows, heads, length, -1),
        )
    if blocks.shape[1] == heads:
        return _Work(
            query.reshape(-1, length, dim),
            blocks.reshape(-1, k),
            distance.reshape(-1, length, k),
            kv.repeat_interleave(groups),
            lambda x: x.view(rows, heads, length, -1),
        )
    assert blocks.shape[1] == 1, "blocks are shared by all heads or by none"
    return _Work(
        query.unflatten(1, (kv_heads, groups)).transpose(2, 3).reshape(-1, groups, dim),
        blocks.expand(-1, kv_heads, -1, -1).reshape(-1, k),
        distance.expand(-1, kv_heads, -1, -1).reshape(-1, 1, k).expand(-1, groups, -1),
        kv.repeat_interleave(length),
        lambda x: x.view(rows, kv_heads, length, groups, -1).transpose(2, 3).flatten(1, 2),
    )


def _tile_sizes(query: Tensor, sharing: int, k: int, stride: int) -> tuple[int, int]:
    """Items and queries per tile: bounds what is gathered, and the queries and scores that meet it."""
    limit = _TILE_BYTES if query.device.type == "cpu" else _TILE_BYTES_ACCELERATOR
    size = max(4, query.element_size())  # halves are widened to float32 in the tile
    gathered = 2 * k * stride * query.shape[-1] * size
    per_query = 2 * k * (stride + query.shape[-1]) * size
    queries = max(1, min(sharing, limit // per_query))
    return max(1, limit // max(gathered, queries * per_query)), queries


def _read(query: Tensor, keys: Tensor, values: Tensor, blocks: Tensor, softcap: float | None) -> tuple[Tensor, Tensor]:
    """One tile: query [m,r,k,D] scaled and rotated, keys and values [m,k,stride,...], blocks [m,k]."""
    items, queries, k, dim = query.shape
    stride = keys.shape[2]
    keys, values = keys.to(query.dtype), values.to(query.dtype)
    scores = query.transpose(1, 2).reshape(items * k, queries, dim) @ keys.flatten(0, 1).transpose(1, 2)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.view(items, k, queries, stride).transpose(1, 2)
    gates = scores[..., -1].masked_fill((blocks < 0)[:, None], -torch.inf)
    # A query without any block has gates of -inf only; its softmax is not a number and its output 0.
    shares = gates.softmax(-1).nan_to_num(0.0)
    weights = scores.new_zeros(items, queries, k, stride)  # the landmark's own value gets none
    weights[..., :-1] = scores[..., :-1].softmax(-1).mul_(shares[..., None])
    return weights.view(items, queries, -1) @ values.flatten(1, 2), gates
