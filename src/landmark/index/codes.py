"""Quantized codes of landmark keys: a few bytes per key that bound its score with any query from above.

Keys are projected onto a basis that concentrates inner-product energy in the leading coordinates. These are quantized
to int8, and of the others the norm is kept: by Cauchy-Schwarz it bounds their part of the score.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from landmark.index.codes_numba import CODES, LANES, MAX_CODE, encode, search_codes
from landmark.index.keys import Array, KeyBuffer
from landmark.ops.parallel import in_parts

_KEY_NOISE = 1e-4  # isotropic noise added to the second moments of keys, relative to their mean
_REFIT_GROWTH = 8  # quantizers are fitted anew when there are so many times the blocks they were fitted for
_SAMPLE = 8192  # keys that a quantizer is fitted to
_HEADROOM = 1.5  # the largest coordinate that a code can represent, relative to the largest of those keys


# Basis and quantizer


class Basis(NamedTuple):
    """A key k has coordinates `keys` (k - mean), a query q has `queries` q: q.k is q.mean plus their inner product."""

    mean: Array  # [D]
    keys: Array  # [D,D]
    queries: Array  # [D,D], the inverse of `keys`, transposed


def basis_for(keys: Array, queries: Array) -> Basis:
    """A basis for `keys [n,D]` and `queries [m,D]`, in float64.

    In it the second moments of both are the same diagonal matrix, largest entries first. As a few queries are no good
    estimate of those to come, they are regularized with D isotropic pseudo-queries.
    """
    dim = keys.shape[1]
    mean = keys.mean(0, dtype=np.float64)
    of_keys = _second_moments(keys - mean, _KEY_NOISE * len(keys))
    of_queries = _second_moments(queries.astype(np.float64), dim)
    root = np.linalg.cholesky(of_keys)
    squares, axes = np.linalg.eigh(root.T @ of_queries @ root)
    scale = squares[::-1, None] ** 0.25
    rotation = axes.T[::-1]
    inverse_root = np.linalg.inv(root)
    return Basis(mean, scale * (rotation @ inverse_root), (rotation @ root.T) / scale)


def _second_moments(x: Array, prior: float) -> Array:
    """Mean of x xᵀ over `x [n,D]` and `prior` isotropic pseudo-vectors of the same mean square."""
    dim = x.shape[1]
    total = x.T @ x
    level = np.trace(total) / (dim * len(x)) if len(x) else 0.0
    if not 0 < level < np.inf:  # no data: any basis will do
        return np.eye(dim)
    return (total + prior * level * np.eye(dim)) / (len(x) + prior)


class Quantizer(NamedTuple):
    """Turns the keys of one row and head into codes."""

    mean: Array  # [D]
    key_basis: Array  # [D,D]
    query_basis: Array  # [D,D]
    steps: Array  # [CODES]: quantization steps
    max_norms: Array  # [2]: largest norms of the keys encoded so far, and of their coordinates


def fit_quantizer(keys: Array, queries: Array) -> Quantizer:
    """A quantizer for keys like `keys [n,D]`, with the most energy of products with `queries [m,D]`; all in float64."""
    basis = basis_for(keys, queries)
    coordinates = (keys - basis.mean) @ basis.keys[:CODES].T
    largest, steps = np.abs(coordinates).max(0), np.ones(CODES)
    # A direction without keys needs a step above 0, of any size.
    steps[: len(largest)] = np.maximum(largest, 1e-6 * largest.max() + 1e-30) * _HEADROOM / MAX_CODE
    return Quantizer(*basis, steps, np.zeros(2))


# State as tensors


_Record = TypeVar("_Record", bound=tuple[Any, ...])


def to_tensors(record: Any) -> dict[str, Tensor]:
    """The arrays of a named tuple, by the names under which contexts save them."""
    return {_saved_name(field): torch.from_numpy(array) for field, array in record._asdict().items()}


def from_tensors(kind: type[_Record], tensors: Mapping[str, Tensor], shapes: Sequence[Sequence[int]]) -> _Record:
    """The named tuple `kind` of the arrays that `to_tensors` gave.

    Raises ValueError unless they have these `shapes`, in which -1 is any length, and the dtype that their kind has.
    Compiled loops check no bounds: what they get must fit.
    """
    fields: tuple[str, ...] = kind._fields  # type: ignore[attr-defined]
    return kind(*(_checked(tensors, field, shape) for field, shape in zip(fields, shapes, strict=True)))


def _checked(tensors: Mapping[str, Tensor], field: str, shape: Sequence[int]) -> Array:
    found = tensors.get(_saved_name(field))
    if found is None:
        raise ValueError(f"the saved state of the index has no {field}")
    dtypes = _WHOLE.get(field, (torch.float32, torch.float64))
    if found.dtype not in dtypes or len(found.shape) != len(shape):
        raise ValueError(f"the saved state of the index has {field} as {found.dtype} {list(found.shape)}")
    if any(wanted not in (-1, length) for wanted, length in zip(shape, found.shape, strict=True)):
        raise ValueError(f"the saved state of the index has {field} {list(found.shape)}, not {list(shape)}")
    return found.numpy()


def counts_of(tensors: Mapping[str, Tensor], shape: Sequence[int], most: int) -> list[Any]:
    """The `counts` of a saved state as whole numbers; ValueError unless they have this shape and are 0 to `most`."""
    found = tensors.get("counts", torch.empty(0))
    if (
        found.dtype != torch.int64
        or list(found.shape) != list(shape)
        or not bool(((found >= 0) & (found <= most)).all())
    ):
        raise ValueError(f"the saved state of the index has counts that do not fit {most} blocks")
    return found.tolist()


# Of fields that hold no real numbers.
_WHOLE = {"codes": (torch.int8,), "numbers": (torch.int32,), "starts": (torch.int64,)}


def _saved_name(field: str) -> str:
    return {"residual_norms": "rests", "max_norms": "reach", "starts": "first"}.get(field, field)


# Codes of all rows and heads


class _Arrays(NamedTuple):
    """Quantizers and codes per row and key-value head, as compiled loops read them."""

    means: Array  # [B,Hkv,D]; like the next four, the fields of `Quantizer`
    key_bases: Array  # [B,Hkv,D,D]
    query_bases: Array  # [B,Hkv,D,D]
    steps: Array  # [B,Hkv,CODES]
    max_norms: Array  # [B,Hkv,2]
    codes: Array  # [B,Hkv,tiles,CODES,LANES]
    residual_norms: Array  # [B,Hkv,tiles,LANES]: norms of the coordinates that have no code


class QuantizedCodes:
    """Codes of all landmark keys of a `KeyBuffer`, with a quantizer for each row and key-value head."""

    def __init__(self, rows: int) -> None:
        self._fitted = [0] * rows  # blocks of each row when its quantizers were fitted
        self._encoded = [0] * rows  # blocks of each row that have codes
        self._arrays: _Arrays | None = None

    def search(self, keys: KeyBuffer, query: Tensor, k: int, upto: list[int]) -> tuple[Array, Array, Array]:
        """Scores and block numbers `[B,H,T,k]` as of `Index.search`, and the number of keys scored `[B,H,T]`."""
        blocks, queries = keys.blocks, query.contiguous().numpy()
        arrays = self._up_to_date(keys, queries)
        ranges = np.array([(blocks.oldest(row), min(blocks.counts[row], end)) for row, end in enumerate(upto)])
        best = np.empty((*queries.shape[:3], k), queries.dtype)
        found, scored = np.empty(best.shape, np.int64), np.empty(best.shape[:3], np.int64)
        inputs = *keys.arrays(), *arrays, ranges, queries.reshape(-1, queries.shape[3])
        outputs = best.reshape(-1, k), found.reshape(-1, k), scored.reshape(-1)
        modulus = blocks.modulus
        in_parts(
            lambda start, stop: search_codes(*inputs, *outputs, modulus, start, stop),
            scored.size,
            size=max(blocks.counts),
        )
        return best, found, scored

    def view(self) -> "QuantizedCodes":
        """The same codes: results do not depend on other searches."""
        return self

    def reorder(self, rows: list[int]) -> None:
        """Makes row i what row `rows[i]` was."""
        self._fitted = [self._fitted[row] for row in rows]
        self._encoded = [self._encoded[row] for row in rows]
        if self._arrays is not None:
            self._arrays = _Arrays._make(array[rows] for array in self._arrays)

    def tensors(self) -> dict[str, Tensor]:
        """The whole state by name, for `resume`."""
        if self._arrays is None:
            return {}
        tiles = -(-max(self._encoded) // LANES) + 1  # so that a few more blocks need no larger arrays
        used = self._arrays._replace(
            codes=self._arrays.codes[:, :, :tiles], residual_norms=self._arrays.residual_norms[:, :, :tiles]
        )
        return to_tensors(used) | {"counts": torch.tensor([self._fitted, self._encoded])}

    def resume(self, tensors: Mapping[str, Tensor], keys: KeyBuffer) -> None:
        """Restores the state of codes of some of the first of `keys`; ValueError if it has none for them."""
        rows, heads, dim = keys.shape
        each = (dim,), (dim, dim), (dim, dim), (CODES,), (2,), (-1, CODES, LANES), (-1, LANES)
        arrays = from_tensors(_Arrays, tensors, [(rows, heads, *shape) for shape in each])
        fitted, encoded = counts_of(tensors, (2, rows), min(keys.blocks.counts))
        tiles = arrays.codes.shape[2]
        if arrays.residual_norms.shape[2] != tiles or max(encoded) > tiles * LANES:
            raise ValueError(f"the saved state of the index has {tiles} tiles of codes for {max(encoded)} blocks")
        self._arrays, self._fitted, self._encoded = arrays, fitted, encoded

    @property
    def nbytes(self) -> int:
        """Bytes of the codes, unused capacity left out."""
        if self._arrays is None:
            return 0
        heads, tiles = self._arrays.codes.shape[1:3]
        each = heads * (CODES + self._arrays.residual_norms.itemsize)
        return sum(min(count, tiles * LANES) for count in self._encoded) * each

    def _up_to_date(self, keys: KeyBuffer, queries: Array) -> _Arrays:
        """The arrays with codes of all blocks; quantizers that are due are fitted to keys and `queries [B,H,T,D]`."""
        blocks = keys.blocks
        arrays = self._arrays = _with_capacity(self._arrays, keys, queries.dtype)
        for row, count in enumerate(blocks.counts):
            oldest = blocks.oldest(row)
            if count and count >= _REFIT_GROWTH * self._fitted[row]:
                numbers = torch.arange(oldest, count, -(-(count - oldest) // _SAMPLE))
                sample = keys.at(numbers[None], slice(row, row + 1))[0].to(torch.float64).numpy()
                for head, own in enumerate(np.split(queries[row], len(sample))):
                    quantizer = fit_quantizer(sample[head], own.reshape(-1, queries.shape[3]).astype(np.float64))
                    for array, one in zip(arrays, quantizer, strict=False):
                        array[row, head] = one
                self._fitted[row], self._encoded[row] = count, oldest
            start = max(self._encoded[row], oldest)
            if start < count:
                _encode_row(arrays, row, keys, start, count)
                self._encoded[row] = count
        return arrays


def _with_capacity(arrays: _Arrays | None, keys: KeyBuffer, dtype: np.dtype[Any]) -> _Arrays:
    """The arrays with tiles for all slots in use; where they are too few, for all slots of the buffer."""
    assert keys.blocks.data is not None, "an empty buffer has no keys to encode"
    rows, heads, slots, dim = keys.blocks.data.shape
    tiles, before = -(-slots // LANES), 0 if arrays is None else arrays.codes.shape[2]
    if arrays is not None and keys.blocks.used() <= before * LANES:
        return arrays
    codes = np.zeros((rows, heads, tiles, CODES, LANES), np.int8)
    residual_norms = np.zeros((rows, heads, tiles, LANES), dtype)
    if arrays is None:
        shapes = (dim,), (dim, dim), (dim, dim), (CODES,), (2,)
        return _Arrays._make((*(np.zeros((rows, heads, *shape)) for shape in shapes), codes, residual_norms))
    codes[:, :, :before], residual_norms[:, :, :before] = arrays.codes, arrays.residual_norms
    return arrays._replace(codes=codes, residual_norms=residual_norms)


def _encode_row(arrays: _Arrays, row: int, keys: KeyBuffer, start: int, stop: int) -> None:
    """Writes the codes of the blocks numbered start..stop of one row."""
    landmarks, scales = keys.arrays()
    fields = arrays.means, arrays.key_bases, arrays.steps, arrays.codes, arrays.residual_norms, arrays.max_norms

    def work(first: int, last: int) -> None:
        for head in range(first, last):
            own = landmarks[row, head], None if scales is None else scales[row, head]
            encode(*own, *(array[row, head] for array in fields), keys.blocks.modulus, start, stop)

    in_parts(work, landmarks.shape[1], size=stop - start)
