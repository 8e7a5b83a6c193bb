"""Block store without a budget: all blocks lie in the memory of one device."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from landmark.ops.retrieved import Pages
from landmark.store.base import BlockShape, CacheMisses, ResidentBlocks, Traffic, copy_blocks
from landmark.store.block_buffer import BlockBuffer


class DeviceStore:
    """Keys `[B,Hkv,capacity,stride,D]` and values of blocks on a device; a block of one head is contiguous.

    Implements `landmark.store.base.BlockStore`, and in host memory `landmark.store.base.BackingStore`. Keeps the newest
    `max_blocks` blocks of each row, all if None.
    """

    def __init__(self, rows: int, max_blocks: int | None = None) -> None:
        self._keys = BlockBuffer(rows, max_blocks)
        self._values = BlockBuffer(rows, max_blocks)

    def append(self, row: int, keys: Tensor, values: Tensor) -> None:
        self._keys.append(row, keys)  # one buffer grows, and frees its old copy, before the other one does
        self._values.append(row, values)

    def pages(self, blocks: Tensor) -> Iterator[tuple[slice, Pages]]:
        yield slice(None), Pages(*self._buffers(), torch.where(blocks < 0, -1, self._keys.slots(blocks)))

    def resident_blocks(self) -> ResidentBlocks:
        return ResidentBlocks(*self._buffers(), self._keys.modulus)

    def fetch(self, misses: CacheMisses, keys: Tensor, values: Tensor) -> Traffic:
        slots = self._keys.slots(torch.from_numpy(misses.blocks)).numpy()
        filled = misses.rows, misses.heads, misses.slots
        return copy_blocks(self._buffers(), (misses.rows, misses.heads, slots), (keys, values), filled)

    def _buffers(self) -> tuple[Tensor, Tensor]:
        keys, values = self._keys.data, self._values.data
        assert keys is not None, "an empty store has no blocks to read"
        assert values is not None
        return keys, values

    def reorder(self, rows: list[int]) -> None:
        self._keys.reorder(rows)
        self._values.reorder(rows)

    def fork(self) -> "DeviceStore":
        """A copy of all blocks: what lies in one growing buffer cannot be shared."""
        branch = copy.copy(self)
        branch._keys, branch._values = copy.copy(self._keys), copy.copy(self._values)
        branch.reorder(list(range(len(self.counts))))  # takes buffers of its own
        return branch

    @property
    def shape(self) -> BlockShape | None:
        if self._keys.data is None:
            return None
        keys, values = self._buffers()
        return BlockShape.of(keys[0], values[0])

    @property
    def counts(self) -> list[int]:
        return self._keys.counts

    @property
    def traffic(self) -> Traffic:
        """Always zero: blocks are read in place, and none is moved."""
        return Traffic()

    @property
    def nbytes(self) -> int:
        return self._keys.nbytes + self._values.nbytes
