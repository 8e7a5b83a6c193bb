"""Buffer of landmark keys in float32, bfloat16 or int8, and inner products of queries with them."""

import copy
import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from landmark.ops.numba_loops import as_array, as_float, compiled
from landmark.ops.parallel import in_parts
from landmark.store.block_buffer import BlockBuffer

KeyFormat = Literal["float32", "bfloat16", "int8"]

Array = np.ndarray[Any, Any]

ALL = slice(None)
_MAX_INT8 = 127


class KeyBuffer:
    """Landmark keys of the blocks of every row; the rounded key is the key from then on.

    "float32" stores keys in the dtype they have. "bfloat16" rounds them to 8 bits of precision. "int8" quantizes each
    key with a scale of its own, its largest entry over 127, so that an entry is off by half a scale at most.
    """

    def __init__(self, rows: int, max_blocks: int | None, format: KeyFormat) -> None:
        self.format: KeyFormat = format
        self.max_norm = 0.0  # upper bound of the norms of all keys appended; on a CPU only
        self.blocks = BlockBuffer(rows, max_blocks)
        self._scales = BlockBuffer(rows, max_blocks)

    def append(self, row: int, keys: Tensor) -> None:
        """Adds `keys [Hkv,m,D]` as the newest of one row; entries that are not finite are replaced by 0.

        One NaN among bounds, centroids or codes would hide every other key. It remains in the block itself.
        """
        keys = keys.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        if keys.device.type == "cpu" and keys.numel():
            self.max_norm = max(self.max_norm, _norm_bound(float(keys.abs().max()), keys.shape[2]))
        if self.format == "bfloat16":
            keys = keys.bfloat16()
        elif self.format == "int8":
            scales = keys.abs().amax(-1) / _MAX_INT8
            self._scales.append(row, scales)
            keys = (keys / scales.where(scales > 0, 1)[..., None]).round().to(torch.int8)
        self.blocks.append(row, keys)

    def adopt(self, keys: Tensor, count: int) -> None:
        """`append` of the first `count` of `keys [Hkv,capacity,D]` to an empty buffer of one row, on a CPU.

        They are not copied where they can stay as they are: finite and not rounded.
        """
        used = keys[:, :count]
        low, high = map(float, used.aminmax())
        if self.format != "float32" or not math.isfinite(high - low):
            self.append(0, used)
            return
        self.max_norm = _norm_bound(max(-low, high), keys.shape[2])
        self.blocks.adopt(keys, count)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, heads and dimensions of the keys; no heads before the first key."""
        if self.blocks.data is None:
            return len(self.blocks.counts), 0, 0
        rows, heads, _, dim = self.blocks.data.shape
        return rows, heads, dim

    def span(self, slots: slice, dtype: torch.dtype) -> Tensor:
        """Keys `[B,Hkv,n,D]` at a slice of slots; not a copy if they are stored in `dtype`."""
        assert self.blocks.data is not None, "an empty buffer has no keys"
        keys = self.blocks.data[:, :, slots].to(dtype)
        return keys if self.scales is None else keys * self.scales[:, :, slots, None]

    def at(self, numbers: Tensor, rows: slice = ALL, heads: slice = ALL) -> Tensor:
        """Keys `[B,Hkv,m,D]` of the blocks `numbers [B,m]`; any finite key where the number is -1.

        B and Hkv count the `rows` and `heads` that are asked for.
        """
        assert self.blocks.data is not None, "an empty buffer has no keys"
        data = self.blocks.data[rows, heads]
        slots = self.blocks.slots(numbers)[:, None, :, None]
        keys = data.gather(2, slots.expand(-1, data.shape[1], -1, data.shape[-1]))
        if self.format == "bfloat16":
            return keys.float()
        if self.scales is None:
            return keys
        scales = self.scales[rows, heads, :, None]
        return keys * scales.gather(2, slots.expand(-1, data.shape[1], -1, -1))

    @property
    def scales(self) -> Tensor | None:
        """Quantization scale of each key, `[B,Hkv,S]`; None if keys are stored as floating-point numbers."""
        return self._scales.data

    def reordered(self, rows: list[int]) -> "KeyBuffer":
        """Another buffer whose row i is row `rows[i]` of this one, which stays as it is for those that share it."""
        other = copy.copy(self)
        other.blocks, other._scales = copy.copy(self.blocks), copy.copy(self._scales)
        other.blocks.reorder(rows)
        other._scales.reorder(rows)
        return other

    @property
    def nbytes(self) -> int:
        """Bytes of the keys kept, unused capacity left out."""
        return self.blocks.nbytes + self._scales.nbytes

    def arrays(self) -> tuple[Array, Array | None]:
        """Keys `[B,Hkv,S,D]` and scales `[B,Hkv,S]` for compiled loops."""
        assert self.blocks.data is not None, "an empty buffer has no keys"
        return as_array(self.blocks.data), None if self.scales is None else self.scales.numpy()


def _norm_bound(largest: float, dim: int) -> float:
    # Rounding raises an entry by less than one percent of the largest.
    return 1.01 * math.sqrt(dim) * largest


# Compiled loops over the arrays of a `KeyBuffer`


@compiled
def score(query: Any, i: int, keys: Any, scales: Any, j: int) -> Any:
    """Inner product of query i of `[.,D]` and key j of `[.,D]`, with quantization `scales [.]` if that is not None.

    It depends on these two only: equal keys tie wherever they lie.
    """
    total = query.dtype.type(0)
    for d in range(query.shape[1]):
        total += query[i, d] * as_float(keys[j, d])
    return total if scales is None else total * scales[j]


def rounding_error(max_norm: float, dim: int, dtype: torch.dtype) -> float:
    """How far `score` of a query of norm 1 and a key of up to `max_norm` may be from another sum of the `dim` terms."""
    # Each of the two sums may be off by half of that; 8 more terms cover scales and the norm itself.
    return max_norm * (dim + 8) * torch.finfo(dtype).eps


def paired_scores(query: Tensor, keys: Tensor) -> Tensor:
    """Scores [B,H,T,k] of queries `[B,H,T,k,D]`, each with its own one of `keys [B,Hkv,k,D]`, on a CPU."""
    scores = query.new_empty(query.shape[:4])
    arrays = [x.contiguous().view(-1, x.shape[-1]).numpy() for x in (query, keys)]
    k, sharing = query.shape[3], query.shape[1] // keys.shape[1] * query.shape[2]
    out = scores.view(-1).numpy()
    in_parts(lambda start, stop: _score_pairs(*arrays, out, k, sharing, start, stop), scores.numel())
    return scores


@compiled
def _score_pairs(query: Any, keys: Any, out: Any, k: int, sharing: int, start: int, stop: int) -> None:
    """Fills start..stop of `out`, one query after the other; `sharing` times k of them share k keys."""
    for i in range(start, stop):
        out[i] = score(query, i, keys, None, i // (sharing * k) * k + i % k)


# Matrix products


TILE = 1 << 13  # slots


def slot_tiles(start: int, stop: int, longest: int = TILE) -> Iterator[slice]:
    """Slots start..stop in tiles of up to `longest`, of which `start` begins the first."""
    return (slice(first, min(first + longest, stop)) for first in range(start, stop, longest))


def inner_products(query: Tensor, keys: Tensor, out: Tensor | None = None) -> Tensor:
    """Inner products [B,H,T,n] of queries `[B,H,T,D]` and keys `[B,Hkv,n,D]`, in the flat buffer `out` if given."""
    shape = (*query.shape[:3], keys.shape[2])
    size = shape[0] * shape[1] * shape[2] * shape[3]
    scores = (query.new_empty(size) if out is None else out[:size]).view(shape)
    keys = keys.flatten(0, 1)
    grouped = query.reshape(len(keys), -1, query.shape[-1])  # query heads of a group share keys
    torch.bmm(grouped, keys.transpose(1, 2), out=scores.view(len(keys), -1, shape[3]))
    return scores


def masked_inner_products(query: Tensor, keys: Tensor, numbers: Tensor) -> Tensor:
    """The same, -inf where the block number in `numbers [B,n]` is -1."""
    return inner_products(query, keys).masked_fill_((numbers < 0)[:, None, None], -torch.inf)
