"""Retrieved blocks on a CPU, read where they lie: compiled loops over pairs of a query and a block.

Pairs are taken in the order of their blocks, so that a block comes from main memory once for all queries that
chose it.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from landmark.ops.numba_loops import (
    add_weighted,
    compiled,
    in_parts,
    inner_products,
    open_gates,
    rotate,
    share_out,
    soft_cap,
)
from landmark.ops.retrieved.pages import Pages
from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring


def reads_in_place(query: Tensor, pages: Pages) -> bool:
    """Whether `in_place_blocks` serves these tensors."""
    one_dtype = query.dtype in (torch.float32, torch.float64) and query.dtype == pages.keys.dtype == pages.values.dtype
    return one_dtype and query.device.type == pages.keys.device.type == "cpu"


def in_place_blocks(
    query: Tensor, pages: Pages, distance: Tensor, rotation: Rotation, scoring: Scoring
) -> tuple[Tensor, Tensor]:
    """See `landmark.ops.retrieved_attention`."""
    keys, values = (x.flatten(0, 1) for x in pages[:2])
    shape = (*query.shape[:3], pages.table.shape[-1])
    # One line for each key-value head: the pairs of its queries, for every head of its group, with their blocks.
    table, distance = (x.expand(shape).reshape(len(keys), -1) for x in (pages.table, distance))
    queries = query.reshape(len(keys), -1, query.shape[-1]) * scoring.scale_of(query)
    # Queries of a single step hardly ever share blocks.
    order = table.argsort(dim=-1) if shape[2] > 1 else torch.arange(table.shape[1]).repeat(len(table), 1)
    pairs = _arrays(table, order)
    inside = query.new_zeros(*table.shape, keys.shape[2] - 1)
    gates = query.new_full(table.shape, -torch.inf)
    work = _arrays(queries, *rotation.by_partner, distance, keys, inside, gates)
    in_parts(lambda start, stop: _score(*pairs, *work, start, stop), table.numel())
    if scoring.softcap is not None:
        scoring.cap_(inside)
        scoring.cap_(gates.masked_fill_(table < 0, 0.0)).masked_fill_(table < 0, -torch.inf)
    torch.softmax(inside, dim=-1, out=inside)
    out = query.new_zeros(*table.shape, values.shape[-1])
    work = _arrays(inside, values, out)
    in_parts(lambda start, stop: _average(*pairs, *work, start, stop), table.numel())
    return out.view(*shape, -1), gates.view(shape)


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [x.detach().numpy() for x in tensors]


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


# Retrieved blocks for a few queries on a CPU: read, and joined to local attention, in one compiled pass.


def join_few(
    query: Tensor, pages: Pages, distance: Tensor, rotation: Rotation, scoring: Scoring, local: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """`merge(*local, *retrieved_attention(...))` for tensors that `reads_in_place`, in the order of the queries."""
    shape = (*query.shape[:3], pages.table.shape[-1])
    joined, weights = query.new_empty(local[0].shape), query.new_empty(shape)
    table, distance = (x.expand(shape) for x in (pages.table, distance))
    scaled = query * scoring.scale_of(query)
    tensors = scaled, *rotation.by_partner, table, distance, *pages[:2], *local, joined, weights
    # Contiguous, for compiled loops over arrays of another layout are slower, and compiled once more.
    arrays = [x.contiguous().numpy() for x in tensors]
    in_parts(
        lambda start, stop: _join(*arrays, scoring.softcap or 0.0, start, stop),
        query.shape[:3].numel(),
        size=shape[-1] * pages.keys.shape[3],
    )
    return joined, weights


@compiled
def _join(
    query: Any, cos: Any, sin: Any, partner: Any, table: Any, distance: Any, keys: Any, values: Any, out: Any,
    lse: Any, joined: Any, weights: Any, softcap: float, start: int, stop: int,
) -> None:  # fmt: skip
    """Fills `joined [B,H,T,Dv]` and `weights [B,H,T,k]` of the queries start..stop, counted over all rows and heads."""
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
        local = open_gates(lse[row, head, step], weight)
        for i in range(len(total)):
            total[i] = out[row, head, step, i] * local
        for j in range(len(weight)):
            if table[row, head, step, j] >= 0:
                share_out(scores[j, : stride - 1], weight[j])
                add_weighted(scores[j, : stride - 1], values[row, group, table[row, head, step, j]], total)


# Joining what was read in retrieved blocks to the local attention: one softmax over both.


def merge(out: Tensor, lse: Tensor, inside: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
    """Joins local attention and retrieved blocks under one softmax.

    `out [B,H,T,Dv]` is the local output and `lse [B,H,T]` the logarithm of its denominator; `inside [B,H,T,k,Dv]` and
    `gates [B,H,T,k]` are those of `retrieved_attention`. Returns the output in out's dtype and the weight of each gate
    [B,H,T,k]. Where gradients are wanted all four inputs get theirs.
    """
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in (out, lse, inside, gates))
    if out.device.type == "cpu" and out.dtype == gates.dtype and not wanted:
        return _in_one_pass(out, lse, inside, gates)
    total = torch.logaddexp(lse, gates.logsumexp(-1))
    total = total.masked_fill(total == -torch.inf, 0.0)[..., None]
    weights = torch.exp(gates - total)
    joined = (weights[..., None] * inside).sum(-2) + out * torch.exp(lse[..., None] - total)
    return joined.to(out.dtype), weights


def _in_one_pass(out: Tensor, lse: Tensor, inside: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
    # Contiguous, whatever the inputs are.
    joined, weights = out.new_empty(out.shape), gates.clone(memory_format=torch.contiguous_format)
    rows, (k, dim) = lse.numel(), inside.shape[-2:]
    arrays = [x.reshape(rows, -1).numpy() for x in (out, lse, joined, weights)]
    in_parts(lambda start, stop: _merge(*arrays, inside.reshape(rows, k, dim).numpy(), start, stop), rows)
    return joined, weights


@compiled
def _merge(out: Any, lse: Any, joined: Any, weights: Any, inside: Any, start: int, stop: int) -> None:
    """Fills rows start..stop of `joined [R,Dv]`, and turns those of `weights [R,k]` from logits into weights."""
    for row in range(start, stop):
        local = open_gates(lse[row, 0], weights[row])
        for i in range(out.shape[1]):
            joined[row, i] = out[row, i] * local
        add_weighted(weights[row], inside[row], joined[row])
