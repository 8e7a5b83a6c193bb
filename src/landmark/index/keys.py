"""Landmark keys per row of a batch, as they are or rounded to fewer bits."""

import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from landmark.ring import BlockRing

KeyFormat = Literal["float32", "bfloat16", "int8"]

Array = np.ndarray[Any, Any]

_LARGEST = 127  # an entry in int8


class KeyRing:
    """A ring of keys; what was rounded on the way in is the key from then on.

    "float32" leaves keys in the dtype that they have. "bfloat16" rounds them to 8 bits of precision. "int8" counts the
    entries of a key in units of its largest over 127, so that each is off by half a unit at most.
    """

    def __init__(self, rows: int, max_blocks: int | None, form: KeyFormat) -> None:
        self.form: KeyFormat = form
        self.longest = 0.0  # no key that came is longer; known on a CPU alone
        self.ring = BlockRing(rows, max_blocks)
        self._units = BlockRing(rows, max_blocks)

    def append(self, row: int, keys: Tensor) -> None:
        """Adds `keys [Hkv,m,D]` as the newest of one row; what is not finite in them counts as 0.

        One NaN among bounds, means or codes would hide every other key. Who opens its block meets it there.
        """
        keys = keys.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        if keys.device.type == "cpu" and keys.numel():
            # Rounding raises an entry by less than a hundredth of the largest.
            self.longest = max(self.longest, 1.01 * math.sqrt(keys.shape[2]) * float(keys.abs().max()))
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
