"""Landmark keys per row of a batch, as they are or rounded to fewer bits."""

import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from numba import types
from numba.extending import overload
from torch import Tensor

from landmark.ops.numba_loops import compiled, in_parts
from landmark.store.block_buffer import BlockBuffer

KeyFormat = Literal["float32", "bfloat16", "int8"]

Array = np.ndarray[Any, Any]

_LARGEST = 127  # an entry in int8


class KeyBuffer:
    """A ring of keys; what was rounded on the way in is the key from then on.

    "float32" leaves keys in the dtype that they have. "bfloat16" rounds them to 8 bits of precision. "int8" counts the
    entries of a key in units of its largest over 127, so that each is off by half a unit at most.
    """

    def __init__(self, rows: int, max_blocks: int | None, form: KeyFormat) -> None:
        self.form: KeyFormat = form
        self.max_norm = 0.0  # no key that came is longer; known on a CPU alone
        self.ring = BlockBuffer(rows, max_blocks)
        self._units = BlockBuffer(rows, max_blocks)

    def append(self, row: int, keys: Tensor) -> None:
        """Adds `keys [Hkv,m,D]` as the newest of one row; what is not finite in them counts as 0.

        One NaN among bounds, means or codes would hide every other key. Who opens its block meets it there.
        """
        keys = keys.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        if keys.device.type == "cpu" and keys.numel():
            # Rounding raises an entry by less than a hundredth of the largest.
            self.max_norm = max(self.max_norm, 1.01 * math.sqrt(keys.shape[2]) * float(keys.abs().max()))
        if self.form == "bfloat16":
            keys = keys.bfloat16()
        elif self.form == "int8":
            units = keys.abs().amax(-1) / _LARGEST
            self._units.append(row, units)
            keys = (keys / units.where(units > 0, 1)[..., None]).round().to(torch.int8)
        self.ring.append(row, keys)

    def span(self, some: slice, dtype: torch.dtype) -> Tensor:
        """Keys `[B,Hkv,n,D]` at some slots; not a copy if they are kept in `dtype`."""
        assert self.ring.data is not None, "a ring without blocks has no keys to give"
        keys = self.ring.data[:, :, some].to(dtype)
        return keys if self.units is None else keys * self.units[:, :, some, None]

    def at(self, numbers: Tensor) -> Tensor:
        """Keys `[B,Hkv,m,D]` of the blocks `numbers [B,m]`; where the number is -1, any finite key."""
        data = self.ring.data
        assert data is not None, "a ring without blocks has no keys to give"
        slots = self.ring.slots(numbers)[:, None, :, None]
        keys = data.gather(2, slots.expand(-1, data.shape[1], -1, data.shape[-1]))
        if self.form == "bfloat16":
            return keys.float()
        units = self.units
        return keys if units is None else keys * units[..., None].gather(2, slots.expand(-1, data.shape[1], -1, -1))

    @property
    def units(self) -> Tensor | None:
        """What the entries of each key count in, `[B,Hkv,S]`; None if they are numbers themselves."""
        return self._units.data

    def reorder(self, rows: list[int]) -> None:
        """Makes row i what row `rows[i]` was."""
        self.ring.reorder(rows)
        self._units.reorder(rows)

    @property
    def nbytes(self) -> int:
        """Bytes of the keys kept, unused capacity left out."""
        return self.ring.nbytes + self._units.nbytes

    def arrays(self) -> tuple[Array, Array | None]:
        """Keys `[B,Hkv,S,D]` and units `[B,Hkv,S]` for compiled loops: bfloat16 as uint16."""
        assert self.ring.data is not None, "a ring without blocks has no keys to give"
        keys = self.ring.data.view(torch.uint16) if self.form == "bfloat16" else self.ring.data
        return keys.numpy(), None if self.units is None else self.units.numpy()


# Keys as `KeyBuffer` keeps them, read in compiled loops.


def plain(x: Any) -> Any:
    """An entry of a key as a number; for compiled code alone."""
    raise NotImplementedError


@overload(plain, inline="always", strict=False)
def _plain(x: Any) -> Any:
    if x == types.uint16:  # bfloat16: the upper half of a float32
        return lambda x: np.uint32(np.uint32(x) << 16).view(np.float32)
    return lambda x: x


@compiled
def score(query: Any, i: int, keys: Any, units: Any, j: int) -> Any:
    """The product of query i of `[.,D]` and key j of `[.,D]`, which counts in `units [.]` if that is not None.

    It depends on these two alone: equal keys tie wherever they lie.
    """
    total = query.dtype.type(0)
    for d in range(query.shape[1]):
        total += query[i, d] * plain(keys[j, d])
    return total if units is None else total * units[j]


def rounding_error(max_norm: float, dim: int, dtype: torch.dtype) -> float:
    """How far `score` of a query of length 1 may be from any other sum of the same `dim` terms; no key is longer."""
    # Each of the two sums may be off by half of that; 8 are for what else takes part, such as units and the length.
    return max_norm * (dim + 8) * torch.finfo(dtype).eps


def paired_scores(query: Tensor, keys: Tensor) -> Tensor:
    """Scores [B,H,T,k] of queries `[B,H,T,k,D]`, each at its own one of `keys [B,Hkv,k,D]`, on a CPU."""
    scores = query.new_empty(query.shape[:4])
    arrays = [x.contiguous().view(-1, x.shape[-1]).numpy() for x in (query, keys)]
    k, sharing = query.shape[3], query.shape[1] // keys.shape[1] * query.shape[2]
    in_parts(lambda start, stop: _score_own(*arrays, scores.view(-1).numpy(), k, sharing, start, stop), scores.numel())
    return scores


@compiled
def _score_own(query: Any, keys: Any, out: Any, k: int, sharing: int, start: int, stop: int) -> None:
    """Fills start..stop of `out` for queries one after the other, of which k times `sharing` share k keys."""
    for i in range(start, stop):
        out[i] = score(query, i, keys, None, i // (sharing * k) * k + i % k)


TILE = 1 << 13


def tiles(start: int, stop: int) -> Iterator[slice]:
    """Slots start..stop by tiles; `start` begins one."""
    return (slice(first, min(first + TILE, stop)) for first in range(start, stop, TILE))


def products(query: Tensor, keys: Tensor, room: Tensor | None = None) -> Tensor:
    """Inner products [B,H,T,n], in `room` if given, of queries `[B,H,T,D]` and keys `[B,Hkv,n,D]`."""
    shape = (*query.shape[:3], keys.shape[2])
    room = query.new_empty(shape[0] * shape[1] * shape[2] * shape[3]) if room is None else room
    scores = room[: shape[0] * shape[1] * shape[2] * shape[3]].view(shape)
    keys = keys.flatten(0, 1)
    grouped = query.reshape(len(keys), -1, query.shape[-1])  # query heads of a group share keys
    torch.bmm(grouped, keys.transpose(1, 2), out=scores.view(len(keys), -1, shape[3]))
    return scores


def products_at(query: Tensor, keys: Tensor, numbers: Tensor) -> Tensor:
    """The same, -inf where `numbers [B,n]` say -1: no block to find."""
    return products(query, keys).masked_fill_((numbers < 0)[:, None, None], -torch.inf)
