"""Compiled loops of `landmark.index.ivf`: the search through the codes of inverted lists."""

from typing import Any, NamedTuple

import numpy as np

from landmark.index.codes_numba import (
    CODES,
    collect_candidates,
    group_maxima,
    insert_new,
    project_query,
    to_floats,
    upper_bounds,
)
from landmark.index.keys import score
from landmark.ops.numba_loops import compiled

LANES = 64  # keys in a tile: the last tile of a list is padded, which costs less the smaller tiles are
_BATCH = 64  # queries that are compared with a tile while it is in cache


class InvertedLists(NamedTuple):
    """Codes of blocks by list. Every list begins with a new tile; the last list is that of the newest blocks."""

    numbers: Any  # [tiles,LANES]: block number of each lane, -1 for none
    codes: Any  # [tiles,CODES,LANES]
    residual_norms: Any  # [tiles,LANES]: norms of the coordinates that have no code
    starts: Any  # [lists + 2]: first tile of each list, and the end of the last one


@compiled
def probe_lists(
    keys: Any, scales: Any, quantizer: Any, lists: Any, block_range: Any, list_scores: Any, limits: Any, query: Any,
    best: Any, found: Any, scored: Any, modulus: int, cosine: float, start: int, stop: int,
) -> None:  # fmt: skip
    """Fills `best`, `found [R,k]` and `scored [R]`, the number of keys scored, for queries start..stop of `[R,D]`.

    One row and head: `keys [S,D]` have quantization `scales [S]` if that is not None, and `quantizer` is that of their
    codes. A query searches the blocks from `block_range[0]` to `block_range[1]` in three rounds: in the list of the
    newest blocks, in the lists with `list_scores [R,lists]` not below the second of its `limits [R,2]`, and in the
    others not below the first. `cosine` as in `project_query`.
    """
    count, last = stop - start, len(lists.starts) - 2
    projected, constants = np.empty((count, CODES + 1), query.dtype), np.empty(count, np.float64)
    tile_floats, bounds = np.empty((CODES + 1, LANES), query.dtype), np.empty(LANES, query.dtype)
    maxima = np.empty(LANES // 4, query.dtype)
    # Candidates: queries and lanes with a bound that is high enough, and one entry more to write to.
    pairs, scores = np.empty((2, _BATCH * LANES + 1), np.int64), np.empty(_BATCH * LANES, query.dtype)
    for i in range(count):
        best[start + i], found[start + i], scored[start + i] = -np.inf, -1, 0
        constants[i] = project_query(
            query[start + i], quantizer.mean, quantizer.query_basis, quantizer.steps, quantizer.max_norms, cosine,
            projected[i],
        )  # fmt: skip
    order, stops = np.empty(0, np.int64), np.empty(last + 2, np.int64)
    for round in range(3):
        order = _queries_by_list(list_scores[start:stop], limits[start:stop], round, stops)
        for one in range(last + 1):
            for begin in range(stops[one], stops[one + 1], _BATCH):
                batch = order[begin : min(begin + _BATCH, stops[one + 1])]
                for tile in range(lists.starts[one], lists.starts[one + 1]):
                    numbers, collected = lists.numbers[tile], 0
                    to_floats(lists.codes[tile], lists.residual_norms[tile], tile_floats)
                    for i in batch:
                        upper_bounds(projected, i, tile_floats, bounds)
                        if best[start + i, -1] == -np.inf:
                            _score_highest(
                                bounds, query, start + i, keys, scales, numbers, block_range, modulus, best, found
                            )
                        group_maxima(bounds, maxima)
                        limit = query.dtype.type(best[start + i, -1] - constants[i])
                        after = collect_candidates(bounds, maxima, limit, 0, LANES, start + i, pairs, collected)
                        scored[start + i] += after - collected
                        collected = after
                    for pair in range(collected):
                        slot = max(numbers[pairs[1, pair]], 0) % modulus
                        scores[pair] = score(query, pairs[0, pair], keys, scales, slot)
                    for pair in range(collected):
                        i, number = pairs[0, pair], numbers[pairs[1, pair]]
                        if scores[pair] >= best[i, -1] and block_range[0] <= number < block_range[1]:
                            insert_new(scores[pair], number, best[i], found[i])


@compiled
def _queries_by_list(list_scores: Any, limits: Any, round: int, stops: Any) -> Any:
    """The queries that probe each list in one of the three rounds, one list after the other.

    Those of list l are `stops[l]` to `stops[l + 1]`. In round 0 all probe the list of the newest blocks only.
    """
    last = list_scores.shape[1]
    stops[:] = 0
    if round == 0:
        stops[last + 1] = len(list_scores)
        return np.arange(len(list_scores))
    low = limits[:, 1] if round == 1 else limits[:, 0]
    high = np.full(len(list_scores), np.inf, limits.dtype) if round == 1 else limits[:, 1]
    for i in range(len(list_scores)):
        for one in range(last):
            stops[one + 1] += low[i] <= list_scores[i, one] < high[i]
    for one in range(last + 1):
        stops[one + 1] += stops[one]
    order, ends = np.empty(stops[-1] + 1, np.int64), stops.copy()
    for i in range(len(list_scores)):
        for one in range(last):
            if low[i] <= list_scores[i, one] < high[i]:
                order[ends[one]] = i
                ends[one] += 1
    return order


@compiled
def _score_highest(
    bounds: Any, query: Any, i: int, keys: Any, scales: Any, numbers: Any, block_range: Any, modulus: int, best: Any,
    found: Any,
) -> None:  # fmt: skip
    """Scores the blocks of a tile with the highest bounds, for a query with fewer than k blocks found so far."""
    for _ in range(len(best[i])):
        top, lane = -np.inf, -1
        for j in range(LANES):
            number = numbers[j]
            if bounds[j] > top and block_range[0] <= number < block_range[1]:
                known = False
                for one in found[i]:
                    known |= one == number
                if not known:
                    top, lane = bounds[j], j
        if lane < 0:
            return
        insert_new(score(query, i, keys, scales, numbers[lane] % modulus), numbers[lane], best[i], found[i])
