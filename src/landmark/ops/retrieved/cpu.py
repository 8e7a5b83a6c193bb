"""Retrieved blocks on a CPU, read where they lie: compiled loops over pairs of a query and a block.

Pairs are taken in the order of their blocks, so that a block comes from main memory once for all queries that
chose it.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from landmark.ops.compiled import add_weighted, compiled, in_parts, inner_products, rotate
from landmark.ops.retrieved.pages import Pages, Scores
from landmark.ops.rotary import Rotation


def reads_in_place(query: Tensor, pages: Pages) -> bool:
    """Whether `in_place_blocks` serves these tensors."""
    one_dtype = query.dtype in (torch.float32, torch.float64) and query.dtype == pages.keys.dtype == pages.values.dtype
    return one_dtype and query.device.type == pages.keys.device.type == "cpu"


def in_place_blocks(
    query: Tensor, pages: Pages, distance: Tensor, rotation: Rotation, scores: Scores
) -> tuple[Tensor, Tensor]:
    """See `landmark.ops.retrieved_attention`."""
    keys, values = (x.flatten(0, 1) for x in pages[:2])
    shape = (*query.shape[:3], pages.places.shape[-1])
    # One line for each key-value head: the pairs of its queries, for every head of its group, with their blocks.
    places, distance = (x.expand(shape).reshape(len(keys), -1) for x in (pages.places, distance))
    queries = query.reshape(len(keys), -1, query.shape[-1]) * scores.scale
    # Queries of a single step hardly ever share blocks.
    order = places.argsort(dim=-1) if shape[2] > 1 else torch.arange(places.shape[1]).repeat(len(places), 1)
    pairs = _arrays(places, order)
    inside = query.new_zeros(*places.shape, keys.shape[2] - 1)
    gates = query.new_full(places.shape, -torch.inf)
    work = _arrays(queries, *rotation.by_partner, distance, keys, inside, gates)
    in_parts(lambda start, stop: _score(*pairs, *work, start, stop), places.numel())
    if scores.softcap is not None:
        for x in (inside, gates.masked_fill_(places < 0, 0.0)):
            x.div_(scores.softcap).tanh_().mul_(scores.softcap)
        gates.masked_fill_(places < 0, -torch.inf)
    torch.softmax(inside, dim=-1, out=inside)
    out = query.new_zeros(*places.shape, values.shape[-1])
    work = _arrays(inside, values, out)
    in_parts(lambda start, stop: _average(*pairs, *work, start, stop), places.numel())
    return out.view(*shape, -1), gates.view(shape)


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [x.detach().numpy() for x in tensors]


@compiled
def _score(
    places: Any, order: Any, queries: Any, cos: Any, sin: Any, partner: Any, distance: Any, keys: Any,
    inside: Any, gates: Any, start: int, stop: int,
) -> None:  # fmt: skip
    """Scores `inside [N,P,block]` and `gates [N,P]` of the pairs at start..stop in `order`, counted over all N."""
    count = places.shape[1]
    chosen = count // queries.shape[1]  # blocks of a query
    block = inside.shape[2]
    turned = np.empty(queries.shape[2], queries.dtype)
    for flat in range(start, stop):
        head = flat // count
        pair = order[head, flat % count]
        place = places[head, pair]
        if place < 0:
            continue
        rotate(queries[head, pair // chosen], cos, sin, partner, distance[head, pair], turned)
        key = keys[head, place]
        inner_products(key, turned, inside[head, pair])
        inner_products(key[block:], turned, gates[head, pair : pair + 1])


@compiled
def _average(places: Any, order: Any, weights: Any, values: Any, out: Any, start: int, stop: int) -> None:
    """Averages `out [N,P,Dv]` of values by `weights [N,P,block]` for the pairs at start..stop in `order`."""
    count = places.shape[1]
    for flat in range(start, stop):
        head = flat // count
        pair = order[head, flat % count]
        if places[head, pair] < 0:
            continue
        add_weighted(weights[head, pair], values[head, places[head, pair]], out[head, pair])
