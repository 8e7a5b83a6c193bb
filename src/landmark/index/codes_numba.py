"""Compiled loops of `landmark.index.codes`: landmark keys into short codes, and the search through them."""

from functools import partial
from typing import Any

import numpy as np

from landmark.index.keys import plain, score
from landmark.index.topk import insert
from landmark.ops.numba_loops import compiled

CODES = 16  # leading coordinates kept of a key, in one byte each
LARGEST = 127
LANES = 256  # landmarks in a tile: widened, their codes stay in the nearest cache
_GROUPS = 16  # lanes j, j + 16, j + 32, ... of a tile are passed over at once if none of them can be among the best
_BATCH = 64  # queries that meet a tile while it is in cache
_SEEDS = 16  # queries whose best are tried first by the next batch of queries
_INEXACT = 2.0**-23  # what arithmetic in float32 may lose of each term


@compiled
def encode(
    keys: Any, units: Any, mean: Any, basis: Any, steps: Any, codes: Any, rests: Any, reach: Any, modulus: int,
    start: int, stop: int,
) -> None:  # fmt: skip
    """Writes codes and rests of the blocks numbered start..stop of one row and head.

    `keys [S,D]` count in `units [S]` if that is not None. `mean [D]` and `basis [D,D]` take a key to its coordinates,
    and `steps [CODES]` is what codes count in. Fills `codes [tiles,CODES,lanes]`, `rests [tiles,lanes]` and raises
    `reach [2]`, the largest norms of keys and of their coordinates.
    """
    dim, lanes = keys.shape[1], codes.shape[2]
    centred = np.empty(dim, np.float64)
    for number in range(start, stop):
        slot = number % modulus
        tile, lane = slot // lanes, slot % lanes
        norm, total, rest, fits = 0.0, 0.0, 0.0, True
        for i in range(dim):
            x = np.float64(plain(keys[slot, i]))
            if units is not None:
                x *= units[slot]
            norm += x * x
            centred[i] = x - mean[i]
        for i in range(dim):
            x = 0.0
            for j in range(dim):
                x += basis[i, j] * centred[j]
            total += x * x
            if i < CODES:
                code = np.rint(x / steps[i])
                fits &= abs(code) <= LARGEST
                codes[tile, i, lane] = np.int8(min(max(code, -LARGEST), LARGEST))
            else:
                rest += x * x
        rests[tile, lane] = np.sqrt(rest) if fits else np.inf  # then its bound is infinite, and it is always read
        reach[0], reach[1] = max(reach[0], np.sqrt(norm)), max(reach[1], np.sqrt(total))


@compiled
def search_codes(
    keys: Any, key_units: Any, means: Any, key_bases: Any, query_bases: Any, steps: Any, reach: Any, codes: Any,
    rests: Any, bounds: Any, query: Any, best: Any, found: Any, read: Any, modulus: int, start: int, stop: int,
) -> None:  # fmt: skip
    """Fills `best` and `found [R,k]` of the queries start..stop of `query [R,D]`, and `read [R]`: keys read for each.

    Queries share the rows and heads of `keys [B,Hkv,S,D]` evenly. Of each row the blocks from one of `bounds [B,2]` to
    the other are searched. `key_units` are those of `KeyBuffer`, and `means` to `rests` of `landmark.index.codes`.
    """
    sharing = query.shape[0] // (keys.shape[0] * keys.shape[1])
    turned, constants = np.empty((_BATCH, CODES + 1), query.dtype), np.empty(_BATCH, np.float64)
    wide, tops = np.empty((CODES + 1, LANES), query.dtype), np.empty(LANES, query.dtype)
    highest = np.empty(LANES // 4, query.dtype)
    # Queries and lanes whose bounds are high enough, and one entry more to write to.
    pairs, scores = np.empty((2, _BATCH * LANES + 1), np.int64), np.empty(_BATCH * LANES, query.dtype)
    before, count, k = 0, 0, found.shape[1]
    while start < stop:
        row, head = start // sharing // keys.shape[1], start // sharing % keys.shape[1]
        landmarks, units = keys[row, head], None if key_units is None else key_units[row, head]
        # What the last queries found is likely good for the next, and few keys are read by who begins with good ones.
        before = 0 if start % sharing == 0 else min(count, _SEEDS)
        count = min(_BATCH if before else _SEEDS, stop - start, sharing - start % sharing)
        for i in range(start, start + count):
            best[i], found[i], read[i] = -np.inf, -1, 0
            constants[i - start] = turn(
                query[i], means[row, head], query_bases[row, head], steps[row, head], reach[row, head], 1.0,
                turned[i - start],
            )  # fmt: skip
            for j in range((start - before) * k, start * k):
                number = found[j // k, j % k]
                if number >= 0:
                    put(score(query, i, landmarks, units, number % modulus), number, best[i], found[i])
        number, end = bounds[row]
        while number < end:
            slot = number % modulus
            tile, lane = slot // LANES, slot % LANES
            run = min(LANES - lane, end - number, modulus - slot)
            widen(codes[row, head, tile], rests[row, head, tile], wide)
            noted = 0
            for i in range(start, start + count):
                bounds_of(turned, i - start, wide, tops)
                group_highs(tops, highest)
                limit = query.dtype.type(best[i, -1] - constants[i - start])
                above = note_those_above(tops, highest, limit, lane, lane + run, i, pairs, noted)
                read[i] += above - noted
                noted = above
            _read_noted(query, landmarks, units, slot - lane, pairs[:, :noted], scores)
            for pair in range(noted):
                i, j = pairs[0, pair], pairs[1, pair]
                if scores[pair] >= best[i, -1]:
                    put(scores[pair], number - lane + j, best[i], found[i])
            number += run
        start += count


@compiled
def turn(query: Any, mean: Any, basis: Any, steps: Any, reach: Any, shrink: float, out: Any) -> Any:
    """Writes what a query multiplies codes and rest with, `[CODES + 1]`; returns what makes the sum a bound."""
    dim = query.shape[0]
    constant, norm, total, rest, rounded = 0.0, 0.0, 0.0, 0.0, 0.0
    out[:] = 0
    for i in range(dim):
        constant += query[i] * mean[i]
        norm += np.float64(query[i]) ** 2
    for i in range(dim):
        x = 0.0
        for j in range(dim):
            x += basis[i, j] * query[j]
        total += x * x
        if i < CODES:
            out[i] = x * steps[i]
            rounded += abs(x) * steps[i] / 2
        else:
            rest += x * x
    out[CODES] = max(shrink * np.sqrt(rest), 1e-30)  # never 0: an infinite rest must stay infinite
    terms = rounded + np.sqrt(norm) * reach[0] + np.sqrt(total) * reach[1]
    return constant + rounded + (dim + CODES) * _INEXACT * terms


@compiled
def widen(codes: Any, rests: Any, out: Any) -> None:
    """A tile of codes, and last its rests, as numbers of one kind."""
    for i in range(CODES):
        for j in range(out.shape[1]):
            out[i, j] = codes[i, j]
    for j in range(out.shape[1]):
        out[CODES, j] = rests[j]


@compiled
def bounds_of(turned: Any, i: int, wide: Any, out: Any) -> None:
    """What query i may score at most at each lane of a tile, less what `turn` returned."""
    for j in range(out.shape[0]):
        total = turned[i, CODES] * wide[CODES, j]
        for c in range(CODES):
            total += turned[i, c] * wide[c, j]
        out[j] = total


@partial(compiled, without_nan=True)
def group_highs(values: Any, highest: Any) -> None:
    """The highest value of each group of lanes, in the first _GROUPS places: four by four, then those four by four."""
    some = values.shape[0] // 4
    for j in range(some):
        highest[j] = max(max(values[j], values[j + some]), max(values[j + 2 * some], values[j + 3 * some]))
    if some > _GROUPS:
        for j in range(_GROUPS):
            a, b = max(highest[j], highest[j + _GROUPS]), max(highest[j + 2 * _GROUPS], highest[j + 3 * _GROUPS])
            highest[j] = max(a, b)


@compiled
def note_those_above(
    tops: Any, highest: Any, limit: Any, start: int, stop: int, i: int, pairs: Any, noted: int
) -> int:  # fmt: skip
    """Notes query i with each lane of start..stop whose bound in `tops` is not below `limit`; returns the new count."""
    for group in range(_GROUPS):
        if highest[group] < limit:
            continue
        for j in range(start + (group - start) % _GROUPS, stop, _GROUPS):
            # Written in any case, and kept or not: nobody can foretell which, and a wrong guess takes long.
            pairs[0, noted], pairs[1, noted] = i, j
            noted += not tops[j] < limit
    return noted


@compiled
def _read_noted(query: Any, landmarks: Any, units: Any, first: int, pairs: Any, scores: Any) -> None:
    """Scores of all noted pairs at once, so that many keys are on their way from memory at the same time."""
    for pair in range(pairs.shape[1]):
        scores[pair] = score(query, pairs[0, pair], landmarks, units, first + pairs[1, pair])


@compiled
def put(new: Any, number: int, best: Any, found: Any) -> None:
    """Puts a landmark among the best unless it is there."""
    for known in found:
        if known == number:
            return
    if new >= best[-1] and new > -np.inf:
        insert(best, found, new, number)
