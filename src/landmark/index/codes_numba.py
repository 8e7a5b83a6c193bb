"""Compiled loops of `landmark.index.codes`: encoding of landmark keys, and search through their codes."""

from functools import partial
from typing import Any

import numpy as np

from landmark.index.keys import score
from landmark.index.topk import insert
from landmark.ops.numba_loops import as_float, compiled

CODES = 16  # leading coordinates of a key that are quantized, to one byte each
MAX_CODE = 127
LANES = 256  # keys in a tile: its codes as floating-point numbers stay in the L1 cache
_GROUPS = 16  # lanes j, j + 16, j + 32, ... of a tile are skipped at once if none of them can be among the best
_BATCH = 64  # queries that are compared with a tile while it is in cache
_SEEDS = 16  # queries whose best blocks are the first candidates of the next batch
_FLOAT32_ERROR = 2.0**-23  # relative error of each term of a sum in float32


@compiled
def encode(
    keys: Any, scales: Any, mean: Any, basis: Any, steps: Any, codes: Any, residual_norms: Any, max_norms: Any,
    modulus: int, start: int, stop: int,
) -> None:  # fmt: skip
    """Writes the codes and residual norms of the blocks numbered start..stop of one row and head.

    `keys [S,D]` have quantization `scales [S]` if that is not None. `mean [D]` and `basis [D,D]` project a key to its
    coordinates, which are quantized in `steps [CODES]`. Fills `codes [tiles,CODES,lanes]` and `residual_norms
    [tiles,lanes]`, and raises `max_norms [2]`, the largest norms of keys and of their coordinates.
    """
    dim, lanes = keys.shape[1], codes.shape[2]
    centred = np.empty(dim, np.float64)
    for number in range(start, stop):
        slot = number % modulus
        tile, lane = slot // lanes, slot % lanes
        norm, total, residual, fits = 0.0, 0.0, 0.0, True
        for i in range(dim):
            x = np.float64(as_float(keys[slot, i]))
            if scales is not None:
                x *= scales[slot]
            norm += x * x
            centred[i] = x - mean[i]
        for i in range(dim):
            x = 0.0
            for j in range(dim):
                x += basis[i, j] * centred[j]
            total += x * x
            if i < CODES:
                code = np.rint(x / steps[i])
                fits &= abs(code) <= MAX_CODE
                codes[tile, i, lane] = np.int8(min(max(code, -MAX_CODE), MAX_CODE))
            else:
                residual += x * x
        # A key that does not fit its codes has an infinite bound, and is always scored in full.
        residual_norms[tile, lane] = np.sqrt(residual) if fits else np.inf
        max_norms[0], max_norms[1] = max(max_norms[0], np.sqrt(norm)), max(max_norms[1], np.sqrt(total))


@compiled
def search_codes(
    keys: Any, key_scales: Any, means: Any, key_bases: Any, query_bases: Any, steps: Any, max_norms: Any, codes: Any,
    residual_norms: Any, ranges: Any, query: Any, best: Any, found: Any, scored: Any, modulus: int, start: int,
    stop: int,
) -> None:  # fmt: skip
    """Fills `best`, `found [R,k]` and `scored [R]`, the number of keys scored, for queries start..stop of `[R,D]`.

    Queries share the rows and heads of `keys [B,Hkv,S,D]` evenly. Of each row the blocks of its range in `ranges [B,2]`
    are searched. `key_scales` are those of `KeyBuffer`, and `means` to `residual_norms` of `landmark.index.codes`.
    """
    sharing = query.shape[0] // (keys.shape[0] * keys.shape[1])
    projected, constants = np.empty((_BATCH, CODES + 1), query.dtype), np.empty(_BATCH, np.float64)
    tile_floats, bounds = np.empty((CODES + 1, LANES), query.dtype), np.empty(LANES, query.dtype)
    maxima = np.empty(LANES // 4, query.dtype)
    # Candidates: queries and lanes with a bound that is high enough, and one entry more to write to.
    pairs, scores = np.empty((2, _BATCH * LANES + 1), np.int64), np.empty(_BATCH * LANES, query.dtype)
    before, count, k = 0, 0, found.shape[1]
    while start < stop:
        row, head = start // sharing // keys.shape[1], start // sharing % keys.shape[1]
        own_keys, own_scales = keys[row, head], None if key_scales is None else key_scales[row, head]
        # Blocks found by the last queries are likely good for the next: good candidates prune more keys from the start.
        before = 0 if start % sharing == 0 else min(count, _SEEDS)
        count = min(_BATCH if before else _SEEDS, stop - start, sharing - start % sharing)
        for i in range(start, start + count):
            best[i], found[i], scored[i] = -np.inf, -1, 0
            constants[i - start] = project_query(
                query[i], means[row, head], query_bases[row, head], steps[row, head], max_norms[row, head], 1.0,
                projected[i - start],
            )  # fmt: skip
            for j in range((start - before) * k, start * k):
                number = found[j // k, j % k]
                if number >= 0:
                    insert_new(score(query, i, own_keys, own_scales, number % modulus), number, best[i], found[i])
        number, end = ranges[row]
        while number < end:
            slot = number % modulus
            tile, lane = slot // LANES, slot % LANES
            run = min(LANES - lane, end - number, modulus - slot)
            to_floats(codes[row, head, tile], residual_norms[row, head, tile], tile_floats)
            collected = 0
            for i in range(start, start + count):
                upper_bounds(projected, i - start, tile_floats, bounds)
                group_maxima(bounds, maxima)
                limit = query.dtype.type(best[i, -1] - constants[i - start])
                after = collect_candidates(bounds, maxima, limit, lane, lane + run, i, pairs, collected)
                scored[i] += after - collected
                collected = after
            _score_candidates(query, own_keys, own_scales, slot - lane, pairs[:, :collected], scores)
            for pair in range(collected):
                i, j = pairs[0, pair], pairs[1, pair]
                if scores[pair] >= best[i, -1]:
                    insert_new(scores[pair], number - lane + j, best[i], found[i])
            number += run
        start += count


@compiled
def project_query(
    query: Any, mean: Any, basis: Any, steps: Any, max_norms: Any, cosine: float, out: Any
) -> Any:  # fmt: skip
    """Writes the factors of codes and residual norm in the bound of a query, `[CODES + 1]`; returns its constant term.

    `cosine` is the largest one assumed between the residuals of a query and a key: 1 gives the bound of
    Cauchy-Schwarz. The constant covers the mean, the rounding of codes and that of arithmetic in float32.
    """
    dim = query.shape[0]
    constant, norm, total, residual, rounded = 0.0, 0.0, 0.0, 0.0, 0.0
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
            residual += x * x
    out[CODES] = max(cosine * np.sqrt(residual), 1e-30)  # never 0: an infinite residual norm must stay infinite
    terms = rounded + np.sqrt(norm) * max_norms[0] + np.sqrt(total) * max_norms[1]
    return constant + rounded + (dim + CODES) * _FLOAT32_ERROR * terms


@compiled
def to_floats(codes: Any, residual_norms: Any, out: Any) -> None:
    """A tile of codes and, as the last row, its residual norms, as floating-point numbers `[CODES + 1,lanes]`."""
    for i in range(CODES):
        for j in range(out.shape[1]):
            out[i, j] = codes[i, j]
    for j in range(out.shape[1]):
        out[CODES, j] = residual_norms[j]


@compiled
def upper_bounds(projected: Any, i: int, tile: Any, out: Any) -> None:
    """Upper bound of the score of query i at each lane of a tile, less the constant of `project_query`."""
    for j in range(out.shape[0]):
        total = projected[i, CODES] * tile[CODES, j]
        for c in range(CODES):
            total += projected[i, c] * tile[c, j]
        out[j] = total


@partial(compiled, without_nan=True)
def group_maxima(values: Any, maxima: Any) -> None:
    """The maximum of each group of lanes, in the first _GROUPS entries: four by four, then those four by four."""
    some = values.shape[0] // 4
    for j in range(some):
        maxima[j] = max(max(values[j], values[j + some]), max(values[j + 2 * some], values[j + 3 * some]))
    if some > _GROUPS:
        for j in range(_GROUPS):
            a, b = max(maxima[j], maxima[j + _GROUPS]), max(maxima[j + 2 * _GROUPS], maxima[j + 3 * _GROUPS])
            maxima[j] = max(a, b)


@compiled
def collect_candidates(
    bounds: Any, maxima: Any, limit: Any, start: int, stop: int, i: int, pairs: Any, collected: int
) -> int:  # fmt: skip
    """Collects query i with each lane of start..stop whose bound is not below `limit`; returns the new count."""
    for group in range(_GROUPS):
        if maxima[group] < limit:
            continue
        for j in range(start + (group - start) % _GROUPS, stop, _GROUPS):
            # Written in any case, and kept or not: the branch would be mispredicted too often.
            pairs[0, collected], pairs[1, collected] = i, j
            collected += not bounds[j] < limit
    return collected


@compiled
def _score_candidates(query: Any, keys: Any, scales: Any, first: int, pairs: Any, scores: Any) -> None:
    """Scores of all candidates at once, so that loads of many keys are in flight at the same time."""
    for pair in range(pairs.shape[1]):
        scores[pair] = score(query, pairs[0, pair], keys, scales, first + pairs[1, pair])


@compiled
def insert_new(new: Any, number: int, best: Any, found: Any) -> None:
    """Inserts a block among the best unless it is there already."""
    for known in found:
        if known == number:
            return
    if new >= best[-1] and new > -np.inf:
        insert(best, found, new, number)
