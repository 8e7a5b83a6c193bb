"""Attention to retrieved blocks in plain PyTorch, on any device.

`gathered_blocks` copies the blocks of a few queries at a time, without gradients. `trainable_blocks` has gradients:
all queries that chose a block read it together. `merged` joins either to local attention.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring, working_dtype

if TYPE_CHECKING:
    from landmark.ops.retrieved import Pages

# Gathered bytes of a tile: on a CPU little enough to be in cache when they are used.
_TILE_BYTES = 4 << 20
_TILE_BYTES_ACCELERATOR = 8 << 20


def of_heads(x: Tensor, heads: int) -> Tensor:
    """`x [B,H,..]` for each of `heads` query heads, from one for each of them, for each of their groups, or for all."""
    sharing = heads // x.shape[1]
    return x if sharing == 1 else x[:, :, None].expand(-1, -1, sharing, *[-1] * (x.dim() - 2)).flatten(1, 2)


def gathered_blocks(
    query: Tensor, pages: "Pages", distance: Tensor, rotation: Rotation, scoring: Scoring
) -> tuple[Tensor, Tensor]:
    """See `landmark.ops.retrieved.retrieved_attention`."""
    work = _laid_out(query, pages, distance)
    stride, dim, k = pages.keys.shape[3], query.shape[-1], pages.table.shape[-1]
    items, queries = _tile_sizes(query, work.query.shape[1], k, stride)
    gates = query.new_empty(*work.query.shape[:2], k, dtype=working_dtype(query))
    inside = gates.new_empty(*gates.shape, pages.values.shape[-1])
    # Every tile fills the same buffers: fresh ones would cost page after page in faults.
    rooms = [x.new_empty(items * k, *x.shape[3:]) for x in (pages.keys, pages.values)]
    for start in range(0, len(work.query), items):
        some = slice(start, start + items)
        table = work.table[some]
        keys, values = (
            torch.index_select(x.flatten(0, 2), 0, table.clamp(min=0).flatten(), out=room[: table.numel()])
            for x, room in zip((pages.keys, pages.values), rooms, strict=True)
        )
        for first in range(0, work.query.shape[1], queries):
            those = slice(first, first + queries)
            turned = rotation.apply(work.query[some, those, None].to(gates.dtype), work.distance[some, those])
            scaled = turned.expand(-1, -1, k, dim) * scoring.scale_of(query)
            inside[some, those], gates[some, those] = _read(scaled, keys, values, table, scoring)
    return work.by_head(inside.flatten(-2)).unflatten(-1, inside.shape[-2:]), work.by_head(gates)


class _Work(NamedTuple):
    """The same task as M items, each a set of blocks with the R queries that share it."""

    query: Tensor  # [M,R,D]
    table: Tensor  # [M,k]: pages counted through all rows and heads; -1 is no block
    distance: Tensor  # [M,R,k]
    by_head: Callable[[Tensor], Tensor]  # [M,R,X] -> [B,H,T,X]


def _laid_out(query: Tensor, pages: "Pages", distance: Tensor) -> _Work:
    rows, heads, length, dim = query.shape
    kv_heads, capacity = pages.keys.shape[1:3]
    groups, k = heads // kv_heads, pages.table.shape[-1]
    first = torch.arange(rows * kv_heads, device=query.device).view(rows, kv_heads, 1, 1, 1) * capacity

    def among_all(numbers: Tensor) -> Tensor:
        """Pages counted through all rows and heads, from pages `numbers [B,Hkv,...]` of each."""
        return torch.where(numbers < 0, -1, numbers + first).reshape(-1, k)

    if pages.table.shape[1] == heads:
        # Queries that share the blocks of their head are one item.
        sharing = length if pages.table.shape[2] == 1 else 1
        return _Work(
            query.reshape(-1, sharing, dim),
            among_all(pages.table.unflatten(1, (kv_heads, groups)).flatten(2, 3)[:, :, :, None]),
            distance.reshape(-1, sharing, k),
            lambda x: x.view(rows, heads, length, -1),
        )
    return _Work(
        query.unflatten(1, (kv_heads, groups)).transpose(2, 3).reshape(-1, groups, dim),
        among_all(of_heads(pages.table, kv_heads)[:, :, :, None]),
        of_heads(distance, kv_heads).reshape(-1, 1, k).expand(-1, groups, -1),
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


def _read(query: Tensor, keys: Tensor, values: Tensor, table: Tensor, scoring: Scoring) -> tuple[Tensor, Tensor]:
    """One tile: query [m,r,k,D] scaled and rotated, keys and values [m * k,stride,...], table [m,k]."""
    items, queries, k, dim = query.shape
    keys, values = keys.to(query.dtype), values.to(query.dtype)
    scores = scoring.cap(query.transpose(1, 2).reshape(items * k, queries, dim) @ keys.transpose(1, 2))
    missing = (table < 0).view(-1, 1)
    gates = scores[..., -1].masked_fill(missing, -torch.inf)
    # What is read for no block is the first one: it must not count.
    inside = (scores[..., :-1].softmax(-1) @ values[:, :-1]).masked_fill_(missing[..., None], 0.0)
    return inside.view(items, k, queries, -1).transpose(1, 2), gates.view(items, k, queries).transpose(1, 2)


def merged(out: Tensor, lse: Tensor, inside: Tensor, gates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `landmark.ops.retrieved.merge`."""
    total = torch.logaddexp(lse, gates.logsumexp(-1))
    total = total.masked_fill(total == -torch.inf, 0.0)[..., None]
    weights, own = torch.exp(gates - total), torch.exp(lse[..., None] - total)
    joined = (weights[..., None] * inside).sum(-2) + out * own
    return joined.to(out.dtype), weights, own[..., 0]


def trainable_blocks(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    blocks: Tensor,
    distance: Tensor,
    *,
    rotation: Rotation,
    scoring: Scoring,
    hidden: int = 0,
) -> tuple[Tensor, Tensor]:
    """Attention of each query inside each of the blocks chosen for it (Mohtashami & Jaggi 2023, section 3.2).

    Args:
        query: [B,H,T,D] before rotary.
        keys, values: [B,Hkv,n,stride,D], keys rotated by their offset in the block.
        blocks: long [B,H,T,k] in 0..n-1, those that each query reads.
        distance: long [B,H,T,k]: positions from the start of the block to the query.
        hidden: masked positions at the beginning of block 0.

    Returns what `retrieved_attention` does: per chosen block the average [B,H,T,k,D] of its ordinary tokens' values and
    the logit of its gate [B,H,T,k], in float32 or float64. Nothing of the size of queries times keys is built, nor are
    keys copied for each query.
    """
    working, (kv_heads, count) = working_dtype(query), keys.shape[1:3]
    with torch.autocast(query.device.type, enabled=False):
        turned = rotation.apply(query[..., None, :].to(working), distance).expand(*blocks.shape, -1)
        turned = turned * scoring.scale_of(query)
        heads = torch.arange(len(keys) * kv_heads, device=keys.device).view(-1, kv_heads, 1, 1, 1)
        pages = (heads * count + blocks.unflatten(1, (kv_heads, -1))).flatten()
        order = pages.argsort(stable=True)
        groups = turned.flatten(0, -2)[order].split(pages.bincount(minlength=heads.numel() * count).tolist())
        inside, gates = [], []
        for page, some in enumerate(groups):
            if not len(some):
                continue
            first = hidden if page % count == 0 else 0
            key, value = (x.flatten(0, 2)[page, first:].to(working) for x in (keys, values))
            scores = scoring.cap(some @ key.T)
            weights = torch.nn.functional.dropout(scores[:, :-1].softmax(-1), scoring.dropout)
            inside.append(weights @ value[:-1])
            gates.append(scores[:, -1])
        back = order.argsort()
        return torch.cat(inside)[back].view(*blocks.shape, -1), torch.cat(gates)[back].view(blocks.shape)
