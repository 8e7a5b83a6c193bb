"""Compiled loops of `landmark.index.ivf`: the search through codes that lie in lists, and their laying out."""

from typing import Any, NamedTuple

import numpy as np

from landmark.index.codes_numba import CODES, bounds_of, group_highs, note_those_above, put, turn, widen
from landmark.index.keys import score
from landmark.ops.numba_loops import compiled

LANES = 64  # landmarks in a tile: a list fills up its last one with nothing, which costs less the smaller tiles are
_BATCH = 64  # queries that meet a tile while it is in cache


class Tiles(NamedTuple):
    """Blocks by list. A list begins with a tile of its own; the last list is that of the newest."""

    numbers: Any  # [tiles,LANES]: the block at each lane, -1 for none
    codes: Any  # [tiles,CODES,LANES]
    rests: Any  # [tiles,LANES]: norms of the coordinates that have no code
    first: Any  # [lists + 2]: the tile with which each list begins, and where the last one ends


@compiled
def search_lists(
    keys: Any, units: Any, coding: Any, lists: Any, bounds: Any, likely: Any, limits: Any, query: Any, best: Any,
    found: Any, read: Any, modulus: int, shrink: float, start: int, stop: int,
) -> None:  # fmt: skip
    """Fills `best` and `found [R,k]` of the queries start..stop of `query [R,D]`, and `read [R]`: keys read for each.

    One row and head: `keys [S,D]` count in `units [S]` if that is not None, and `coding` tells of their codes. A query
    looks for blocks from `bounds[0]` to `bounds[1]` in the last list, then in those that are `likely [R,lists]` as much
    as the second of its `limits [R,2]`, and then in those likely as much as the first.
    """
    count, last = stop - start, len(lists.first) - 2
    turned, constants = np.empty((count, CODES + 1), query.dtype), np.empty(count, np.float64)
    wide, tops = np.empty((CODES + 1, LANES), query.dtype), np.empty(LANES, query.dtype)
    highest = np.empty(LANES // 4, query.dtype)
    # Queries and lanes whose bounds are high enough, and one entry more to write to.
    pairs, scores = np.empty((2, _BATCH * LANES + 1), np.int64), np.empty(_BATCH * LANES, query.dtype)
    for i in range(count):
        best[start + i], found[start + i], read[start + i] = -np.inf, -1, 0
        constants[i] = turn(
            query[start + i], coding.mean, coding.query_basis, coding.steps, coding.reach, shrink, turned[i]
        )
    order, stops = np.empty(0, np.int64), np.empty(last + 2, np.int64)
    for look in range(3):
        order = _by_list(likely[start:stop], limits[start:stop], look, stops)
        for one in range(last + 1):
            for begin in range(stops[one], stops[one + 1], _BATCH):
                who = order[begin : min(begin + _BATCH, stops[one + 1])]
                for tile in range(lists.first[one], lists.first[one + 1]):
                    numbers, noted = lists.numbers[tile], 0
                    widen(lists.codes[tile], lists.rests[tile], wide)
                    for i in who:
                        bounds_of(turned, i, wide, tops)
                        if best[start + i, -1] == -np.inf:
                            _read_likely(tops, query, start + i, keys, units, numbers, bounds, modulus, best, found)
                        group_highs(tops, highest)
                        limit = query.dtype.type(best[start + i, -1] - constants[i])
                        above = note_those_above(tops, highest, limit, 0, LANES, start + i, pairs, noted)
                        read[start + i] += above - noted
                        noted = above
                    for pair in range(noted):
                        slot = max(numbers[pairs[1, pair]], 0) % modulus
                        scores[pair] = score(query, pairs[0, pair], keys, units, slot)
                    for pair in range(noted):
                        i, number = pairs[0, pair], numbers[pairs[1, pair]]
                        if scores[pair] >= best[i, -1] and bounds[0] <= number < bounds[1]:
                            put(scores[pair], number, best[i], found[i])


@compiled
def _by_list(likely: Any, limits: Any, look: int, stops: Any) -> Any:
    """The queries that look into each list at their first, second or third look, one list after the other.

    Those of list l stand from `stops[l]` to `stops[l + 1]`. At first all look into the last list, and nowhere else.
    """
    last = likely.shape[1]
    stops[:] = 0
    if look == 0:
        stops[last + 1] = len(likely)
        return np.arange(len(likely))
    low = limits[:, 1] if look == 1 else limits[:, 0]
    high = np.full(len(likely), np.inf, limits.dtype) if look == 1 else limits[:, 1]
    for i in range(len(likely)):
        for one in range(last):
            stops[one + 1] += low[i] <= likely[i, one] < high[i]
    for one in range(last + 1):
        stops[one + 1] += stops[one]
    order, places = np.empty(stops[-1] + 1, np.int64), stops.copy()
    for i in range(len(likely)):
        for one in range(last):
            if low[i] <= likely[i, one] < high[i]:
                order[places[one]] = i
                places[one] += 1
    return order


@compiled
def _read_likely(
    tops: Any, query: Any, i: int, keys: Any, units: Any, numbers: Any, bounds: Any, modulus: int, best: Any, found: Any
) -> None:  # fmt: skip
    """Scores the blocks of highest bounds in a tile, for a query with too few good ones to rule out any."""
    for _ in range(len(best[i])):
        top, lane = -np.inf, -1
        for j in range(LANES):
            number = numbers[j]
            if tops[j] > top and bounds[0] <= number < bounds[1]:
                known = False
                for one in found[i]:
                    known |= one == number
                if not known:
                    top, lane = tops[j], j
        if lane < 0:
            return
        put(score(query, i, keys, units, numbers[lane] % modulus), numbers[lane], best[i], found[i])
