"""Landmark keys in few bytes: enough to rule most of them out without reading them.

In a basis where the first few coordinates say most about inner products, those coordinates of a key are kept in one
byte each, and of the others their norm. It bounds their share of a score by Cauchy and Schwarz.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from landmark.index.codes_numba import CODES, LANES, LARGEST, encode, search_codes
from landmark.index.keys import KeyBuffer
from landmark.ops.numba_loops import in_parts

# Coordinates in which a few say most about the inner products of some keys and queries.


Array = np.ndarray[Any, Any]

_KEY_NOISE = 1e-4  # added to the second moments of keys in every direction, as a share of what they are


class Basis(NamedTuple):
    """A key k has coordinates `keys` (k - mean), a query q has `queries` q: q.k is q.mean plus their inner product."""

    mean: Array  # [D]
    keys: Array  # [D,D]
    queries: Array  # [D,D], the inverse of `keys`, transposed


def basis_for(keys: Array, queries: Array) -> Basis:
    """A basis for `keys [n,D]` and `queries [m,D]`, in float64.

    It makes the second moments of both one and the same diagonal matrix, largest entries first. Few queries say little
    of others to come: D more are thought of that favour no direction.
    """
    dim = keys.shape[1]
    mean = keys.mean(0, dtype=np.float64)
    of_keys = _second_moments(keys - mean, _KEY_NOISE * len(keys))
    of_queries = _second_moments(queries.astype(np.float64), dim)
    root = np.linalg.cholesky(of_keys)
    squares, axes = np.linalg.eigh(root.T @ of_queries @ root)
    scale = squares[::-1, None] ** 0.25
    turn = axes.T[::-1]
    inverse_root = np.linalg.inv(root)
    return Basis(mean, scale * (turn @ inverse_root), (turn @ root.T) / scale)


def _second_moments(x: Array, prior: float) -> Array:
    """Mean of x xᵀ over `x [n,D]` and `prior` more vectors of the same mean square without a direction."""
    dim = x.shape[1]
    total = x.T @ x
    level = np.trace(total) / (dim * len(x)) if len(x) else 0.0
    if not 0 < level < np.inf:  # nothing to go by: any basis will do
        return np.eye(dim)
    return (total + prior * level * np.eye(dim)) / (len(x) + prior)


_GROWTH = 8  # a basis is made anew when there are so many times the blocks it was made for
_SAMPLE = 8192  # keys that it is made from
_HEADROOM = 1.5  # the largest coordinate that a code can say, over the largest of those keys


class Coding(NamedTuple):
    """How keys of one row and head become codes."""

    mean: Array  # [D]
    key_basis: Array  # [D,D]
    query_basis: Array  # [D,D]
    steps: Array  # [CODES]: what the codes count in
    reach: Array  # [2]: largest norms of the keys and of their coordinates, once they are encoded


def coding_for(keys: Array, queries: Array) -> Coding:
    """Codes for `keys [n,D]`, and others like them, that say most of products with `queries [m,D]`; all in float64."""
    basis = basis_for(keys, queries)
    coordinates = (keys - basis.mean) @ basis.keys[:CODES].T
    largest, steps = np.abs(coordinates).max(0), np.ones(CODES)
    # A direction without keys has a step too, of no length that matters.
    steps[: len(largest)] = np.maximum(largest, 1e-6 * largest.max() + 1e-30) * _HEADROOM / LARGEST
    return Coding(*basis, steps, np.zeros(2))


class _Arrays(NamedTuple):
    """What the compiled loops read, per row and key-value head."""

    means: Array  # [B,Hkv,D]; like the next four, what `Coding` has
    key_bases: Array  # [B,Hkv,D,D]
    query_bases: Array  # [B,Hkv,D,D]
    steps: Array  # [B,Hkv,CODES]
    reach: Array  # [B,Hkv,2]
    codes: Array  # [B,Hkv,tiles,CODES,LANES]
    rests: Array  # [B,Hkv,tiles,LANES]: norms of the coordinates that have no code


class Coarse:
    """Codes of the landmark keys of a ring, in a basis of their own for each row and key-value head."""

    def __init__(self, rows: int) -> None:
        self._made = [0] * rows  # blocks that had come when the row's basis was made
        self._encoded = [0] * rows  # blocks that had come when codes were last written
        self._arrays: _Arrays | None = None

    def search(self, keys: KeyBuffer, query: Tensor, k: int, upto: list[int]) -> tuple[Array, Array, Array]:
        """Scores and numbers `[B,H,T,k]` as `Index.search` gives them, and how many keys were read `[B,H,T]`."""
        ring, queries = keys.ring, query.contiguous().numpy()
        arrays = self._with_all(keys, queries)
        bounds = np.array([(ring.oldest(row), min(ring.counts[row], end)) for row, end in enumerate(upto)])
        best = np.empty((*queries.shape[:3], k), queries.dtype)
        found, read = np.empty(best.shape, np.int64), np.empty(best.shape[:3], np.int64)
        inputs = *keys.arrays(), *arrays, bounds, queries.reshape(-1, queries.shape[3])
        outputs = best.reshape(-1, k), found.reshape(-1, k), read.reshape(-1)
        modulus = ring.modulus
        in_parts(
            lambda start, stop: search_codes(*inputs, *outputs, modulus, start, stop),
            read.size,
            size=max(ring.counts),
        )
        return best, found, read

    def view(self) -> "Coarse":
        """The same codes: what is found by them does not depend on other searches."""
        return self

    def reorder(self, rows: list[int]) -> None:
        """Makes row i what row `rows[i]` was."""
        self._made = [self._made[row] for row in rows]
        self._encoded = [self._encoded[row] for row in rows]
        if self._arrays is not None:
            self._arrays = _Arrays._make(array[rows] for array in self._arrays)

    def tensors(self) -> dict[str, Tensor]:
        """What was made of the keys, by name, to `resume` from."""
        if self._arrays is None:
            return {}
        tiles = -(-max(self._encoded) // LANES)
        used = self._arrays._replace(codes=self._arrays.codes[:, :, :tiles], rests=self._arrays.rests[:, :, :tiles])
        return {name: torch.from_numpy(array) for name, array in used._asdict().items()} | {
            "counts": torch.tensor([self._made, self._encoded])
        }

    def resume(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on with what `tensors` gave, for as many rows, some of the first of whose blocks it was made of."""
        self._arrays = _Arrays._make(tensors[name].numpy() for name in _Arrays._fields)
        self._made, self._encoded = tensors["counts"].tolist()

    @property
    def nbytes(self) -> int:
        """Bytes of the codes of the blocks that came, unused capacity left out."""
        if self._arrays is None:
            return 0
        heads, tiles = self._arrays.codes.shape[1:3]
        each = heads * (CODES + self._arrays.rests.itemsize)
        return sum(min(count, tiles * LANES) for count in self._encoded) * each

    def _with_all(self, keys: KeyBuffer, queries: Array) -> _Arrays:
        """The arrays, brought up to date; where a basis is made, `queries [B,H,T,D]` say what queries are like."""
        ring = keys.ring
        arrays = self._arrays = _with_room(self._arrays, keys, queries.dtype)
        for row, count in enumerate(ring.counts):
            oldest = ring.oldest(row)
            if count and count >= _GROWTH * self._made[row]:
                numbers = torch.arange(oldest, count, -(-(count - oldest) // _SAMPLE))
                sample = keys.at(numbers.expand(len(ring.counts), -1))[row].to(torch.float64).numpy()
                for head, own in enumerate(np.split(queries[row], len(sample))):
                    coding = coding_for(sample[head], own.reshape(-1, queries.shape[3]).astype(np.float64))
                    for array, one in zip(arrays, coding, strict=False):
                        array[row, head] = one
                self._made[row], self._encoded[row] = count, oldest
            start = max(self._encoded[row], oldest)
            if start < count:
                _encode(arrays, row, keys, start, count)
                self._encoded[row] = count
        return arrays


def _with_room(arrays: _Arrays | None, keys: KeyBuffer, dtype: np.dtype[Any]) -> _Arrays:
    """The arrays with tiles for all of the ring."""
    assert keys.ring.data is not None, "a ring without blocks has no keys to encode"
    rows, heads, slots, dim = keys.ring.data.shape
    tiles, had = -(-slots // LANES), 0 if arrays is None else arrays.codes.shape[2]
    if arrays is not None and tiles <= had:
        return arrays
    codes = np.zeros((rows, heads, tiles, CODES, LANES), np.int8)
    rests = np.zeros((rows, heads, tiles, LANES), dtype)
    if arrays is None:
        shapes = (dim,), (dim, dim), (dim, dim), (CODES,), (2,)
        return _Arrays._make((*(np.zeros((rows, heads, *shape)) for shape in shapes), codes, rests))
    codes[:, :, :had], rests[:, :, :had] = arrays.codes, arrays.rests
    return arrays._replace(codes=codes, rests=rests)


def _encode(arrays: _Arrays, row: int, keys: KeyBuffer, start: int, stop: int) -> None:
    landmarks, units = keys.arrays()
    written = arrays.means, arrays.key_bases, arrays.steps, arrays.codes, arrays.rests, arrays.reach

    def work(first: int, last: int) -> None:
        for head in range(first, last):
            own = landmarks[row, head], None if units is None else units[row, head]
            encode(*own, *(array[row, head] for array in written), keys.ring.modulus, start, stop)

    in_parts(work, landmarks.shape[1], size=stop - start)
