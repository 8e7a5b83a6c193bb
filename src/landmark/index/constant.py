"""The index of a layer whose landmark keys are all equal: one key stands for all blocks.

In the first layer of a model every landmark has the same key before rotary, and index keys are rotated by the
same offset. Then all old blocks tie, the newest win, and nothing needs to be scored twice.
"""

import copy

import torch
from torch import Tensor

from landmark.index.base import Index, ResidentKeys
from landmark.store.block_buffer import kept_of, oldest_numbers


class ConstantIndex:
    """One landmark key per row and head, `[B,Hkv,D]`; implements `landmark.index.Index`.

    Keeps the newest `max_blocks` blocks of each row, all if None.
    """

    def __init__(self, rows: int, max_blocks: int | None = None) -> None:
        self._counts = [0] * rows
        self._max_blocks = max_blocks
        self._key: Tensor | None = None

    def append(self, row: int, keys: Tensor) -> None:
        if self._key is None:
            # Also made in inference mode it may be written to outside of it.
            with torch.inference_mode(False):
                self._key = keys.new_zeros(len(self._counts), keys.shape[0], keys.shape[-1])
        self._key[row] = keys[:, -1]
        self._counts[row] += keys.shape[1]

    def search(self, query: Tensor, k: int, upto: list[int]) -> tuple[Tensor, Tensor]:
        ends = torch.tensor(upto, device=query.device)[:, None]
        numbers = ends - 1 - torch.arange(k, device=query.device)
        numbers = torch.where(numbers < self._oldest(query.device), -1, numbers)[:, None, None]
        scores = self._score(query).masked_fill(numbers < 0, -torch.inf)
        return scores, numbers.expand_as(scores)

    def resident_keys(self, k: int, upto: list[int]) -> ResidentKeys | None:
        assert self._key is not None, "an index without blocks has no keys to give"
        first = torch.tensor(upto, device=self._key.device) - k
        first = torch.maximum(first, self._oldest(first.device)[:, 0])
        return ResidentKeys(self._key[:, :, None], first, 1, float(self._key.norm()))

    def scores(self, query: Tensor, upto: list[int]) -> Tensor:
        numbers = self.numbers(query.device)
        hidden = (numbers < 0) | (numbers >= torch.tensor(upto, device=query.device)[:, None])
        return self._score(query).masked_fill(hidden[:, None, None], -torch.inf)

    def numbers(self, device: torch.device) -> Tensor:
        oldest = self._oldest(device)
        counts = torch.tensor(self._counts, device=device)[:, None]
        numbers = oldest + torch.arange(max(self._kept()), device=device)
        return torch.where(numbers < counts, numbers, -1)

    def _kept(self) -> list[int]:
        return [kept_of(count, self._max_blocks) for count in self._counts]

    def _oldest(self, device: torch.device) -> Tensor:
        return oldest_numbers(tuple(self._counts), self._max_blocks, device)[:, None]

    def _score(self, query: Tensor) -> Tensor:
        """Score [B,H,T,1] of each query with the one key."""
        assert self._key is not None, "an index without blocks has no key to score"
        grouped = query.unflatten(1, (self._key.shape[1], -1))
        return (grouped @ self._key[:, :, None, :, None]).flatten(1, 2)

    def keys(self, numbers: Tensor) -> Tensor:
        assert self._key is not None, "an index without blocks has no keys to give"
        return self._key[:, :, None].expand(-1, -1, numbers.shape[1], -1)

    def reorder(self, rows: list[int]) -> None:
        self._counts = [self._counts[row] for row in rows]
        if self._key is not None:
            self._key = self._key.index_select(0, torch.tensor(rows, device=self._key.device))

    def fork(self) -> Index:
        return copy.deepcopy(self)  # a key a row

    def view(self) -> Index:
        return self

    @property
    def nbytes(self) -> int:
        return 0 if self._key is None else self._key[0].nbytes * sum(count > 0 for count in self._counts)
