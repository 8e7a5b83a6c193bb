"""The index of layer 0, where all landmark keys are equal: one key stands for all blocks.

Before the first attention a landmark is nothing but the embedding of the landmark token, so every landmark of layer 0
has the same key before rotary, and keys in memory are all rotated by the same offset in the block. All blocks tie, and
the newest win.
"""

import copy

import torch
from torch import Tensor

from landmark.index.base import Index, ResidentKeys
from landmark.store.block_buffer import kept_of, oldest_numbers


def has_constant_keys(layer: int) -> bool:
    """Whether all landmark keys of a layer, counted from 0, are equal before rotary."""
    return layer == 0


class ConstantIndex:
    """One landmark key per row and head, `[B,Hkv,D]`; implements `landmark.index.base.Index`.

    Keeps the newest `max_blocks` blocks of each row, all if None.
    """

    def __init__(self, rows: int, max_blocks: int | None = None) -> None:
        self._counts = [0] * rows
        self._max_blocks = max_blocks
        self._key: Tensor | None = None

    def append(self, row: int, keys: Tensor) -> None:
        if self._key is None:
            # Allocated outside inference mode, so that it stays writable.
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
        key = self._shared_key()
        first = torch.tensor(upto, device=key.device) - k
        first = torch.maximum(first, self._oldest(first.device)[:, 0])
        # On a GPU nobody asks for the norm, and the host would wait for it.
        max_norm = float(key.norm()) if key.device.type == "cpu" else torch.inf
        return ResidentKeys(key[:, :, None], first, 1, max_norm)

    def scores(self, query: Tensor, upto: list[int]) -> Tensor:
        numbers = self.numbers(query.device)
        hidden = (numbers < 0) | (numbers >= torch.tensor(upto, device=query.device)[:, None])
        return self._score(query).masked_fill(hidden[:, None, None], -torch.inf)

    def numbers(self, device: torch.device) -> Tensor:
        kept = max(kept_of(count, self._max_blocks) for count in self._counts)
        numbers = self._oldest(device) + torch.arange(kept, device=device)
        return torch.where(numbers < torch.tensor(self._counts, device=device)[:, None], numbers, -1)

    def _oldest(self, device: torch.device) -> Tensor:
        return oldest_numbers(tuple(self._counts), self._max_blocks, device)[:, None]

    def _score(self, query: Tensor) -> Tensor:
        """Score [B,H,T,1] of each query with the one key."""
        key = self._shared_key()
        grouped = query.unflatten(1, (key.shape[1], -1))
        return (grouped @ key[:, :, None, :, None]).flatten(1, 2)

    def _shared_key(self) -> Tensor:
        assert self._key is not None, "an index without blocks has no key"
        return self._key

    def keys(self, numbers: Tensor) -> Tensor:
        return self._shared_key()[:, :, None].expand(-1, -1, numbers.shape[1], -1)

    def reorder(self, rows: list[int]) -> None:
        self._counts = [self._counts[row] for row in rows]
        if self._key is not None:
            self._key = self._key.index_select(0, torch.tensor(rows, device=self._key.device))

    def fork(self) -> Index:
        return copy.deepcopy(self)  # one key per row

    def view(self) -> Index:
        return self

    @property
    def nbytes(self) -> int:
        return 0 if self._key is None else self._key[0].nbytes * sum(count > 0 for count in self._counts)
