"""Blocks kept on the device that computes."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from landmark.ops.retrieved import Pages
from landmark.store.base import BlockShape, Misses, Traffic, move
from landmark.store.block_buffer import BlockRing


class DeviceStore:
    """Buffers [B,Hkv,capacity,stride,D]: a block of one head is one contiguous piece.

    Implements `landmark.store.BlockStore`, and on the host `landmark.store.base.Backing`. Keeps the newest
    `max_blocks` blocks of each row, all if None.
    """

    def __init__(self, rows: int, max_blocks: int | None = None) -> None:
        self._keys = BlockRing(rows, max_blocks)
        self._values = BlockRing(rows, max_blocks)

    def append(self, row: int, keys: Tensor, values: Tensor) -> None:
        self._keys.append(row, keys)  # one buffer grows, and frees its old copy, before the other one does
        self._values.append(row, values)

    def pages(self, blocks: Tensor) -> Iterator[tuple[slice, Pages]]:
        yield slice(None), Pages(*self._buffers(), torch.where(blocks < 0, -1, self._keys.slots(blocks)))

    def fetch(self, misses: Misses, keys: Tensor, values: Tensor) -> Traffic:
        slots = self._keys.slots(torch.from_numpy(misses.numbers)).numpy()
        here = misses.rows, misses.heads, misses.places
        return move(self._buffers(), (misses.rows, misses.heads, slots), (keys, values), here)

    def _buffers(self) -> tuple[Tensor, Tensor]:
        keys, values = self._keys.data, self._values.data
        assert keys is not None, "a store without blocks has none to give"
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
        """Nothing: what is read where it lies is not counted. See `landmark.store.tiered.distinct_blocks`."""
        return Traffic()

    @property
    def nbytes(self) -> int:
        return self._keys.nbytes + self._values.nbytes

    @property
    def resident(self) -> int:
        return self.nbytes
