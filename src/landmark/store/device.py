"""Blocks kept on the device that computes."""

import torch
from torch import Tensor

from landmark.ops.retrieved import Pages
from landmark.ring import BlockRing


class DeviceStore:
    """Buffers [B,Hkv,capacity,stride,D]: a block of one head is one contiguous piece.

    Implements `landmark.store.BlockStore`. Keeps the newest `max_blocks` blocks of each row, all if None.
    """

    def __init__(self, rows: int, max_blocks: int | None = None) -> None:
        self._keys = BlockRing(rows, max_blocks)
        self._values = BlockRing(rows, max_blocks)

    def append(self, row: int, keys: Tensor, values: Tensor) -> None:
        self._keys.append(row, keys)  # one buffer grows, and frees its old copy, before the other one does
        self._values.append(row, values)

    def locate(self, blocks: Tensor) -> Pages:
        keys, values = self._keys.data, self._values.data
        assert keys is not None, "a store without blocks has none to give"
        assert values is not None
        return Pages(keys, values, torch.where(blocks < 0, -1, self._keys.slots(blocks)))

    def reorder(self, rows: list[int]) -> None:
        self._keys.reorder(rows)
        self._values.reorder(rows)

    @property
    def nbytes(self) -> int:
        return self._keys.nbytes + self._values.nbytes
