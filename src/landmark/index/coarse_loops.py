"""Compiled loops of `landmark.index.coarse`: landmark keys into short codes, and the search through them."""

from functools import partial
from typing import Any

import numpy as np

from landmark.index.topk import insert
from landmark.ops.compiled import compiled

CODES = 16  # leading coordinates kept of a key, in one byte each
LARGEST = 127
LANES = 256  # landmarks in a tile: widened, their codes stay in the nearest cache
_GROUPS = 16  # lanes j, j + 16, j + 32, ... of a tile are passed over at once if none of them can be among the best
_BATCH = 64  # queries that meet a tile while it is in cache
_INEXACT = 2.0**-23  # what arithmetic in float32 may lose of each term


@compiled
def encode(
    keys: Any, mean: Any, basis: Any, steps: Any, codes: Any, rests: Any, reach: Any, modulus: int, start: int,
    stop: int,
) -> None:  # fmt: skip
    """Writes codes and rests of the blocks numbered start..stop of one row and head.

    `mean [D]` and `basis [D,D]` take a key of `keys [S,D]` to its coordinates, and `steps [CODES]` is what codes count
    in. Fills `codes [tiles,CODES,LANES]`, `rests [tiles,LANES]` and raises `reach [2]`, the largest norms of keys and
    of their coordinates.
    """
    dim = keys.shape[1]
    centred = np.empty(dim, np.float64)
    for number in range(start, stop):
        slot = number % modulus
        tile, lane = slot // LANES, slot % LANES
        norm, total, rest, fits = 0.0, 0.0, 0.0, True
        for i in range(dim):
            norm += np.float64(keys[slot, i]) ** 2
            centred[i] = keys[slot, i] - mean[i]
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
    keys: Any, means: Any, key_bases: Any, query_bases: Any, steps: Any, reach: Any, codes: Any, rests: Any,
    bounds: Any, query: Any, best: Any, found: Any, read: Any, modulus: int, shrink: float, start: int, stop: int,
) -> None:  # fmt: skip
    """Fills `best` and `found [R,k]` of the queries start..stop of `query [R,D]`, and `read [R]`: keys read for each.

    Queries share the rows and heads of `keys [B,Hkv,S,D]` evenly. Of each row the blocks from one of `bounds [B,2]` to
    the other are searched. `key_bases` to `rests` are those of `landmark.index.coarse`.
    """
    sharing = query.shape[0] // (keys.shape[0] * keys.shape[1])
    turned, constants = np.empty((_BATCH, CODES + 1), query.dtype), np.empty(_BATCH, np.float64)
    wide, tops = np.empty((CODES + 1, LANES), query.dtype), np.empty(LANES, query.dtype)
    highest = np.empty(LANES // 4, query.dtype)
    while start < stop:
        row, head = start // sharing // keys.shape[1], start // sharing % keys.shape[1]
        count = min(_BATCH, stop - start, sharing - start % sharing)
        for i in range(count):
            best[start + i], found[start + i], read[start + i] = -np.inf, -1, 0
            constants[i] = _turn(
                query[start + i], means[row, head], query_bases[row, head], steps[row, head], reach[row, head], shrink,
                turned[i],
            )  # fmt: skip
        number, end = bounds[row]
        while number < end:
            slot = number % modulus
            tile, lane = slot // LANES, slot % LANES
            run = min(LANES - lane, end - number, modulus - slot)
            _widen(codes[row, head, tile], rests[row, head, tile], wide)
            landmarks = keys[row, head, slot : slot + run]
            for i in range(count):
                _bounds(turned[i], wide, tops)
                _highest_of_groups(tops, highest)
                read[start + i] += _read_those_above(
                    query[start + i], landmarks, number, tops[lane:], lane, highest, constants[i], best[start + i],
                    found[start + i],
                )  # fmt: skip
            number += run
        start += count


@compiled
def _turn(query: Any, mean: Any, basis: Any, steps: Any, reach: Any, shrink: float, out: Any) -> Any:
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
def _widen(codes: Any, rests: Any, out: Any) -> None:
    """A tile of codes, and last its rests, as numbers of one kind."""
    for i in range(CODES):
        for j in range(LANES):
            out[i, j] = codes[i, j]
    for j in range(LANES):
        out[CODES, j] = rests[j]


@compiled
def _bounds(turned: Any, wide: Any, out: Any) -> None:
    for j in range(LANES):
        total = turned[CODES] * wide[CODES, j]
        for i in range(CODES):
            total += turned[i] * wide[i, j]
        out[j] = total


@partial(compiled, without_nan=True)
def _highest_of_groups(values: Any, highest: Any) -> None:
    """The highest value of each group of lanes, in the first _GROUPS places: four by four, then those four by four."""
    some = LANES // 4
    for j in range(some):
        highest[j] = max(max(values[j], values[j + some]), max(values[j + 2 * some], values[j + 3 * some]))
    for j in range(_GROUPS):
        a, b = max(highest[j], highest[j + _GROUPS]), max(highest[j + 2 * _GROUPS], highest[j + 3 * _GROUPS])
        highest[j] = max(a, b)


@compiled
def _read_those_above(
    query: Any, landmarks: Any, number: int, tops: Any, lane: int, highest: Any, constant: Any, best: Any, found: Any
) -> Any:
    """Scores the landmarks whose bound is not below the k-th best so far, and returns how many those were.

    `landmarks [run,D]` are numbered from `number`; their bounds are `tops` and a constant. The first is at `lane`.
    """
    read = 0
    limit = query.dtype.type(best[-1] - constant)
    for group in range(_GROUPS):
        if highest[group] < limit:
            continue
        for j in range((group - lane) % _GROUPS, landmarks.shape[0], _GROUPS):
            if tops[j] < limit:
                continue
            read += 1
            score = query.dtype.type(0)
            for i in range(query.shape[0]):
                score += query[i] * landmarks[j, i]
            if score >= best[-1] and score > -np.inf:
                insert(best, found, score, number + j)
                limit = query.dtype.type(best[-1] - constant)
    return read
