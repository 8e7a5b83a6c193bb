"""Block selection for many queries on a CPU, as in prefill: landmark keys are scored by tiles of queries.

A product of matrices finds the candidates. They are scored again one by one, as `selection_numba` does it for a few
queries, so that both choose the same blocks.
"""

from typing import Any

import numpy as np
from torch import Tensor

from landmark.index.base import ResidentKeys
from landmark.index.keys import score
from landmark.memory.geometry import Past
from landmark.memory.selection_numba import choose_by, insert_if_best, landmark_at, place
from landmark.ops.numba_loops import compiled, norm_of, rotate_rows
from landmark.ops.numba_tiles import LANES, add_product, to_columns
from landmark.ops.rotary import Rotation

MOST_BLOCKS = 1 << 13  # scores of more by one tile leave the second-level cache


def choose_many(query: Tensor, past: Past, landmarks: ResidentKeys, rotation: Rotation) -> tuple[Tensor, Tensor]:
    """What `selection_numba.choose_few` gives for `query [B,H,T,D]`; not more than MOST_BLOCKS blocks are searched."""
    return choose_by(_choose, query, past, landmarks, rotation)


@compiled
def _choose(
    query: Any, cos: Any, sin: Any, partner: Any, positions: Any, bounds: Any, keys: Any, first: Any, behind: Any,
    shared: Any, blocks: Any, distance: Any, slack: float, modulus: int, stride: int, stingy: bool, start: int,
    stop: int,
) -> None:  # fmt: skip
    """Fills `blocks` and `distance [B,H,T,k]` of the queries start..stop, counted over all rows and heads."""
    heads, length, dim = query.shape[1:]
    dtype, k = query.dtype, blocks.shape[3]
    turned, columns = np.empty((LANES, dim), dtype), np.zeros((dim, LANES), dtype)
    most = 0
    for row in range(len(bounds)):
        most = max(most, bounds[row, 0] - first[row])
    scores = np.empty((most, LANES), dtype)
    highest, best = np.empty((k, LANES), dtype), np.empty((LANES, k), dtype)
    lowest, each, away = np.empty(LANES, dtype), np.arange(LANES), np.empty(LANES, np.int64)
    flat = start
    while flat < stop:
        row, head, step = flat // (heads * length), flat // length % heads, flat % length
        some = min(LANES, length - step, stop - flat)
        flat += some
        group, found = head // (heads // keys.shape[1]), blocks[row, head, step : step + some]
        lies = keys[row, group], modulus, behind[row, group], shared[row]
        upto, count, gap = bounds[row]
        oldest = first[row]
        queries, places = query[row, head, step : step + some], positions[row, step : step + some]
        rotate_rows(queries, each[:some], cos, sin, partner, places, turned)
        to_columns(turned[:some], columns)
        searched = scores[: max(0, upto - oldest)]
        _score_all(*lies, columns, oldest, searched)
        _highest(searched, highest, lowest)
        best[:], found[:] = -np.inf, -1
        for lane in range(some):
            lowest[lane] = highest[k - 1, lane] - 2 * slack * norm_of(turned[lane])
        for j in range(len(searched)):
            high = 0
            for lane in range(LANES):
                high += searched[j, lane] >= lowest[lane]
            if high:
                for lane in range(some):
                    if searched[j, lane] >= lowest[lane]:
                        landmarks, slot, _ = landmark_at(oldest + j, *lies)
                        new = score(turned, lane, landmarks, None, slot)
                        insert_if_best(new, oldest + j, best[lane], found[lane])
        for newest in range(upto, count):  # with slots, each of these is scored from its own
            for lane in range(some):
                away[lane] = max(0, places[lane] - gap - (newest - upto + 1) * stride)
            rotate_rows(queries, each[:some], cos, sin, partner, away, turned)
            landmarks, slot, _ = landmark_at(newest, *lies)
            for lane in range(some):
                new = score(turned, lane, landmarks, None, slot)
                insert_if_best(new, newest, best[lane], found[lane])
        for lane in range(some):
            place(found[lane], places[lane], upto, gap, stride, stingy, distance[row, head, step + lane])


@compiled
def _score_all(keys: Any, modulus: int, behind: Any, shared: int, columns: Any, oldest: int, scores: Any) -> None:
    """Scores [n,LANES] of the blocks from number `oldest` on, by a product for each run of slots."""
    scores[:] = 0
    done = 0
    while done < len(scores):
        landmarks, slot, run = landmark_at(oldest + done, keys, modulus, behind, shared)
        run = min(len(scores) - done, run)
        add_product(landmarks[slot : slot + run], columns, scores[done : done + run])
        done += run


@compiled
def _highest(scores: Any, highest: Any, scratch: Any) -> None:
    """Writes the highest of each column of scores [n,LANES] to `highest [k,LANES]`, sorted; NaN is none of them."""
    highest[:] = -np.inf
    for j in range(len(scores)):
        for lane in range(LANES):
            scratch[lane] = scores[j, lane]
        for rank in range(len(highest)):
            for lane in range(LANES):
                new, held = scratch[lane], highest[rank, lane]
                highest[rank, lane], scratch[lane] = (new, held) if new > held else (held, new)
