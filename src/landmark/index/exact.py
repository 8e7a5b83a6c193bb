"""Exact index: every query is scored against every landmark key."""

import copy

import torch
from torch import Tensor

from landmark.index.base import Index, ResidentKeys
from landmark.index.branch import ForkedIndex
from landmark.index.keys import KeyBuffer, KeyFormat, inner_products, masked_inner_products, rounding_error, slot_tiles
from landmark.index.topk import Rescoring, top_newest
from landmark.ops.triton_support import unsupported_reason
from landmark.store.block_buffer import numbers_below, oldest_numbers

# Scores computed at once: on a CPU few enough to be in cache when the best are selected.
_TILE_SCORES = 1 << 21
_TILE_SCORES_ACCELERATOR = 1 << 22
_TILE_QUERIES = 64
_TILE_ROUNDED = 1 << 13  # rounded keys that are dequantized at once
_FEW_QUERIES = 4  # for so few a matrix product does not pay


class ExactIndex:
    """Landmark keys in one growing buffer [B,Hkv,capacity,D]; implements `landmark.index.base.Index`.

    Keeps the newest `max_blocks` blocks of each row, all if None, and stores their keys in the format `keys`.
    """

    def __init__(self, rows: int, max_blocks: int | None = None, *, keys: KeyFormat = "float32") -> None:
        self._keys = KeyBuffer(rows, max_blocks, keys)
        self._blocks = self._keys.blocks

    def append(self, row: int, keys: Tensor) -> None:
        self._keys.append(row, keys)

    def adopt(self, keys: Tensor, count: int) -> None:
        """Appends the first `count` of `keys [Hkv,capacity,D]` on a CPU to an empty index of one row.

        It takes them over where it can: then they are not copied, and later keys are written behind them.
        """
        self._keys.adopt(keys, count)

    def search(self, query: Tensor, k: int, upto: list[int]) -> tuple[Tensor, Tensor]:
        numbers = self._numbers_below(upto, query.device)
        data, few = self._blocks.data, query.shape[2] <= _FEW_QUERIES
        if data is not None and few and query.device.type == "cuda" and unsupported_reason(query, data) is None:
            from landmark.ops.topk_triton import search_landmarks  # needs the package triton

            return search_landmarks(query, data, numbers, k)
        limit = _TILE_SCORES if query.device.type == "cpu" else _TILE_SCORES_ACCELERATOR
        rows = query.shape[0] * query.shape[1]
        # Many queries by many keys: the product of a few queries would be bound by memory bandwidth.
        length = max(1, min(query.shape[2], _TILE_QUERIES, limit // rows))
        span = max(1, min(numbers.shape[1], limit // (rows * length)))
        if self._keys.format != "float32":
            span = min(span, _TILE_ROUNDED)
        # One buffer for all tiles: fresh ones would cost more in page faults than in arithmetic.
        buffer = query.new_empty(rows * length * span)
        found = []
        for some in slot_tiles(0, numbers.shape[1], span):
            labels, keys = numbers[:, None, None, some], self._keys.span(some, query.dtype)
            tiles = [
                top_newest(inner_products(q, keys, buffer), labels, k, self._rescoring(q, some.start))
                for q in query.split(length, dim=2)
            ]
            found.append([torch.cat(column, dim=2) for column in zip(*tiles, strict=True)])
        if len(found) == 1:
            return found[0][0], found[0][1]
        if not found:
            shape = (*query.shape[:3], k)
            return query.new_full(shape, -torch.inf), torch.full(shape, -1, device=query.device)
        scores, blocks = (torch.cat(column, dim=-1) for column in zip(*found, strict=True))
        return top_newest(scores, blocks, k)

    def _rescoring(self, query: Tensor, first: int) -> Rescoring | None:
        """For the scores of some queries and the keys from slot `first` on; None where the scores count as they are."""
        if query.device.type != "cpu":
            return None
        keys, scales = (None if x is None else x.reshape(-1, *x.shape[2:]) for x in self._keys.arrays())
        rows = query.reshape(-1, query.shape[-1]).contiguous()
        tolerance = rows.norm(dim=-1) * rounding_error(self._keys.max_norm, query.shape[-1], query.dtype)
        return Rescoring(rows.numpy(), keys, scales, first, tolerance.numpy())

    def resident_keys(self, k: int, upto: list[int]) -> ResidentKeys | None:
        if self._keys.format != "float32":
            return None
        data, limit = self._blocks.data, self._blocks.max_blocks
        assert data is not None, "an index without blocks has no keys"
        first = oldest_numbers(tuple(self._blocks.counts), limit, data.device)
        return ResidentKeys(data, first, self._blocks.modulus, self._keys.max_norm)

    def scores(self, query: Tensor, upto: list[int]) -> Tensor:
        numbers = self._numbers_below(upto, query.device)
        scores = query.new_full((*query.shape[:3], self._blocks.used()), -torch.inf)
        for some in slot_tiles(0, numbers.shape[1]):
            scores[..., some] = masked_inner_products(query, self._keys.span(some, query.dtype), numbers[:, some])
        return scores

    def numbers(self, device: torch.device) -> Tensor:
        return self._blocks.numbers(device)

    def _numbers_below(self, upto: list[int], device: torch.device) -> Tensor:
        """Block numbers [B,n] of the first n slots, which hold all blocks below `upto`; -1 for others."""
        return numbers_below(tuple(self._blocks.counts), self._blocks.max_blocks, tuple(upto), device)

    def keys(self, numbers: Tensor) -> Tensor:
        return self._keys.at(numbers)

    def reorder(self, rows: list[int]) -> None:
        self._keys = self._keys.reordered(rows)  # branches go on with the buffer that they share
        self._blocks = self._keys.blocks

    def fork(self) -> Index:
        if self._blocks.max_blocks is not None:  # a branch may need blocks that the ring buffer drops
            return copy.deepcopy(self)
        return ForkedIndex(self.view(), self._blocks.counts, self._empty(len(self._blocks.counts)))

    def view(self) -> "ExactIndex":
        return copy.copy(self)

    def _empty(self, rows: int) -> "ExactIndex":
        """An index of the same kind, without blocks."""
        return ExactIndex(rows, keys=self._keys.format)

    @property
    def nbytes(self) -> int:
        return self._keys.nbytes
