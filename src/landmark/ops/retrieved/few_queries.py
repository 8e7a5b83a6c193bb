"""Retrieved blocks for a few queries on a CPU: read, and joined to local attention, in one compiled pass."""

from typing import Any

import numpy as np
from torch import Tensor

from landmark.ops.compiled import add_weighted, compiled, in_parts, inner_products, open_gates, rotate, share_out
from landmark.ops.retrieved.pages import Pages, Scores
from landmark.ops.rotary import Rotation


def join_few(
    query: Tensor, pages: Pages, distance: Tensor, rotation: Rotation, scores: Scores, local: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """`merge(*local, *retrieved_attention(...))` for tensors that `reads_in_place`, in the order of the queries."""
    shape = (*query.shape[:3], pages.places.shape[-1])
    joined, weights = query.new_empty(local[0].shape), query.new_empty(shape)
    places, distance = (x.expand(shape) for x in (pages.places, distance))
    tensors = query * scores.scale, *rotation.by_partner, places, distance, *pages[:2], *local, joined, weights
    # Contiguous, for compiled loops over arrays of another layout are slower, and compiled once more.
    arrays = [x.contiguous().numpy() for x in tensors]
    in_parts(
        lambda start, stop: _join(*arrays, scores.softcap or 0.0, start, stop),
        query.shape[:3].numel(),
        size=shape[-1] * pages.keys.shape[3],
    )
    return joined, weights


@compiled
def _join(
    query: Any, cos: Any, sin: Any, partner: Any, places: Any, distance: Any, keys: Any, values: Any, out: Any,
    lse: Any, joined: Any, weights: Any, softcap: float, start: int, stop: int,
) -> None:  # fmt: skip
    """Fills `joined [B,H,T,Dv]` and `weights [B,H,T,k]` of the queries start..stop, counted over all rows and heads."""
    heads, length, dim = query.shape[1:]
    stride = keys.shape[3]
    turned = np.empty(dim, query.dtype)
    scores = np.empty((places.shape[3], stride), query.dtype)
    for flat in range(start, stop):
        row, head, step = flat // (heads * length), flat // length % heads, flat % length
        group = head // (heads // keys.shape[1])
        weight, total = weights[row, head, step], joined[row, head, step]
        for j in range(len(weight)):
            weight[j] = -np.inf
            place = places[row, head, step, j]
            if place < 0:
                continue
            rotate(query[row, head, step], cos, sin, partner, distance[row, head, step, j], turned)
            inner_products(keys[row, group, place], turned, scores[j])
            if softcap:
                for i in range(stride):
                    scores[j, i] = softcap * np.tanh(scores[j, i] / softcap)
            weight[j] = scores[j, stride - 1]
        local = open_gates(lse[row, head, step], weight)
        for i in range(len(total)):
            total[i] = out[row, head, step, i] * local
        for j in range(len(weight)):
            if places[row, head, step, j] >= 0:
                share_out(scores[j, : stride - 1], weight[j])
                add_weighted(scores[j, : stride - 1], values[row, group, places[row, head, step, j]], total)
