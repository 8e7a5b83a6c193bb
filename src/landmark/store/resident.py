"""Block store of a text that was read before: its blocks on the device, shared by all branches of it."""

import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from landmark.ops.retrieved import Pages
from landmark.store.base import BackingStore, BlockShape, CacheMisses, ResidentBlocks, Traffic
from landmark.store.tiered import TieredStore

_AT_ONCE = 32 << 20  # bytes that are brought to the device in a piece


class ResidentStore:
    """The first blocks of the one row of `tier` in place on the device, `base [1,Hkv,n,stride,D]`, where none changes.

    Implements `landmark.store.base.BlockStore`. Forks share `base`. Blocks behind it are those of the tier, which has
    slots for some of them on the device; as long as all of them have one, all blocks are resident. For several rows,
    which are beams or answers to one prompt, the tier alone is read.
    """

    def __init__(self, base: ResidentBlocks, tier: TieredStore) -> None:
        self._base: ResidentBlocks | None = base
        self._tier = tier

    def append(self, row: int, keys: Tensor, values: Tensor) -> None:
        """See `TieredStore.append`."""
        self.resident_blocks()  # those of a fork get their slots before new ones do
        self._tier.append(row, keys, values)

    def pages(self, blocks: Tensor) -> Iterator[tuple[slice, Pages]]:
        """See `TieredStore.pages`; nothing is fetched, nor read by the host, where all blocks are resident."""
        base, resident = self._base, self.resident_blocks()
        if resident is not None:
            yield slice(None), resident.pages(blocks)
        elif base is None:
            yield from self._tier.pages(blocks)
        else:
            here = blocks < base.modulus
            first = base.pages(blocks.masked_fill(~here, -1))
            for part, behind in self._tier.pages(blocks.masked_fill(here, -1)):
                yield part, first._replace(table=first.table[:, :, part], behind=behind)

    def resident_blocks(self) -> ResidentBlocks | None:
        if self._base is None or self._tier.counts == [self._base.modulus]:
            return self._base
        behind = self._tier.behind(self._base.modulus)
        return None if behind is None else self._base._replace(behind=behind)

    def reorder(self, rows: list[int]) -> None:
        self._tier.reorder(rows)
        if rows != [0]:
            self._base = None

    def fork(self) -> "ResidentStore":
        """A store that shares the first blocks; those behind them it fetches from below its tier."""
        branch = copy.copy(self)
        branch._tier = self._tier.fork()
        return branch

    @property
    def nbytes(self) -> int:
        return self._tier.nbytes

    @property
    def traffic(self) -> Traffic:
        """That of blocks behind the first; these are read in place."""
        return self._tier.traffic


def room_for(shape: BlockShape, blocks: int, device: torch.device) -> ResidentBlocks:
    """Memory of a device for so many blocks of one row, at least one; `bring` fills it."""
    return ResidentBlocks(*shape.empty(1, blocks, device), blocks)


def bring(below: BackingStore, room: ResidentBlocks, most: int | None) -> Iterator[int]:
    """Fills `room` with the first blocks of the one row of `below`; yields the bytes of each piece, up to `most`.

    Raises what `below` does where blocks cannot be read.
    """
    heads, blocks = room.keys.shape[1:3]
    block_bytes = room.nbytes // blocks
    piece = max(1, min(most or _AT_ONCE, _AT_ONCE) // block_bytes)
    for first in range(0, blocks, piece):
        count = min(piece, blocks - first)
        at = np.tile(np.arange(first, first + count), heads)
        of_head = np.repeat(np.arange(heads), count)
        below.fetch(CacheMisses(np.zeros_like(at), of_head, at, at), room.keys, room.values)
        yield count * block_bytes
