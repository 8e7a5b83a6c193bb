"""Blocks kept on the device that computes."""

import torch
from torch import Tensor

from landmark.ring import BlockRing


class DeviceStore:
    """Buffers [B,Hkv,capacity,stride,D]: a block of one head is one contiguous piece.

    Implements `landmark.store.BlockStore`. Keeps the newest `max_blocks` blocks of each row, all if None.
    """

    def __init__(self, rows: int, max_blocks: int | None = None) -> None:
        self._keys = BlockRing(rows, max_blocks)
        self._values = BlockRing(rows, max_blocks)

    @property
    def kv_heads(self) -> int:
        assert self._keys.data is not None, "a store without blocks knows no heads"
        return self._keys.data.shape[1]

    def append(self, row: int, keys: Tensor, values: Tensor) -> None:
        self._keys.append(row, keys)  # one buffer grows, and frees its old copy, before the other one does
        self._values.append(row, values)

    def gather(self, heads: Tensor, numbers: Tensor, out: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        keys, values = (None, None) if out is None else out
        return _pick(self._keys, heads, numbers, keys), _pick(self._values, heads, numbers, values)

    def reorder(self, rows: list[int]) -> None:
        self._keys.reorder(rows)
        self._values.reorder(rows)

    @property
    def nbytes(self) -> int:
        return self._keys.nbytes + self._values.nbytes


def _pick(ring: BlockRing, heads: Tensor, numbers: Tensor, out: Tensor | None) -> Tensor:
    assert ring.data is not None, "a store without blocks has none to give"
    capacity, entry = ring.data.shape[2], ring.data.shape[3:]
    places = (heads[:, None] * capacity + ring.slots(numbers)).flatten()
    flat = ring.data.view(-1, entry.numel())
    if out is None:
        return torch.index_select(flat, 0, places).view(*numbers.shape, *entry)
    torch.index_select(flat, 0, places, out=out.view(len(places), -1))
    return out
