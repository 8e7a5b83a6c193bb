"""Copy-on-write branch of an index: the blocks it shares with the index it was forked from, and blocks of its own."""

import copy

import torch
from torch import Tensor

from landmark.index.base import Index, ResidentKeys
from landmark.index.keys import TILE, masked_inner_products, slot_tiles
from landmark.index.topk import top_newest
from landmark.store.block_buffer import numbers_below, slot_numbers


class ForkedIndex:
    """The blocks of `base` below `counts`, per row, and after them those of `own`.

    Implements `landmark.index.base.Index`. `base` may grow, by itself or in other branches, as long as it drops no
    blocks; `own` belongs to the branch.
    """

    def __init__(self, base: Index, counts: list[int], own: Index) -> None:
        self._base = base
        self._shared = list(counts)
        self._counts = list(counts)
        self._own = own
        self._unchanged = True  # whether no block was appended since the fork
        self._base_is_shared = True

    def append(self, row: int, keys: Tensor) -> None:
        self._own.append(row, keys)
        self._counts[row] += keys.shape[1]
        self._unchanged = False

    def search(self, query: Tensor, k: int, upto: list[int]) -> tuple[Tensor, Tensor]:
        scores, numbers = self._base.search(query, k, self._below(upto))
        if self._unchanged:
            return scores, numbers
        own_scores, own_numbers = self._own.search(query, k, self._beyond(upto))
        own_numbers = self._numbers_in_branch(own_numbers)
        return top_newest(torch.cat((scores, own_scores), -1), torch.cat((numbers, own_numbers), -1), k)

    def resident_keys(self, k: int, upto: list[int]) -> ResidentKeys | None:
        if self._unchanged:
            return self._base.resident_keys(k, self._below(upto))
        if not any(self._shared):
            return self._own.resident_keys(k, upto)
        return self._both_resident(k, upto)

    def _both_resident(self, k: int, upto: list[int]) -> ResidentKeys | None:
        """The resident keys of both indexes, of which neither keeps the newest blocks alone."""
        if not all(self._shared):  # a base without blocks has no keys
            return None
        base, own = self._base.resident_keys(k, self._below(upto)), self._own.resident_keys(k, self._beyond(upto))
        if base is None or own is None or base.behind is not None or own.behind is not None:
            return None
        shared = self._shared_column(base.first.device)[:, 0]
        return base._replace(behind=own.keys, shared=shared, max_norm=max(base.max_norm, own.max_norm))

    def scores(self, query: Tensor, upto: list[int]) -> Tensor:
        if self._unchanged:
            return self._base.scores(query, self._below(upto))[..., : max(self._shared)]
        numbers = numbers_below(tuple(self._counts), None, tuple(upto), query.device)
        scores = query.new_full((*query.shape[:3], max(self._counts)), -torch.inf)
        # Whole tiles are scored by the base; the rest is gathered first, and so rounded as in an index never forked.
        whole = min(*self._shared, *upto) // TILE * TILE
        if whole:
            scores[..., :whole] = self._base.scores(query, self._below(upto))[..., :whole]
        for some in slot_tiles(whole, numbers.shape[1]):
            scores[..., some] = masked_inner_products(query, self.keys(numbers[:, some]), numbers[:, some])
        return scores

    def numbers(self, device: torch.device) -> Tensor:
        return slot_numbers(tuple(self._counts), None, device)

    def keys(self, numbers: Tensor) -> Tensor:
        if not any(self._shared):
            return self._own.keys(numbers)
        if self._unchanged:
            return self._base.keys(numbers)
        shared = numbers < self._shared_column(numbers.device)
        own = self._own.keys((numbers - self._shared_column(numbers.device)).masked_fill(shared, -1))
        return torch.where(shared[:, None, :, None], self._base.keys(numbers.masked_fill(~shared, -1)), own)

    def reorder(self, rows: list[int]) -> None:
        """Makes row i what row `rows[i]` was; unless every row stays, the shared blocks are copied."""
        if rows == list(range(len(self._shared))):
            return
        self._base.reorder(rows)
        self._base_is_shared = False
        self._own.reorder(rows)
        self._shared = [self._shared[row] for row in rows]
        self._counts = [self._counts[row] for row in rows]

    def fork(self) -> Index:
        branch = ForkedIndex(self._base.view(), self._shared, self._own.fork())
        branch._unchanged, branch._counts = self._unchanged, list(self._counts)
        return branch

    def view(self) -> Index:
        other = copy.copy(self)
        other._base, other._own = self._base.view(), self._own.view()
        return other

    @property
    def nbytes(self) -> int:
        """Bytes of the keys that the branch shares with no other index."""
        return self._own.nbytes + (0 if self._base_is_shared else self._base.nbytes)

    def _below(self, upto: list[int]) -> list[int]:
        return [min(end, shared) for end, shared in zip(upto, self._shared, strict=True)]

    def _beyond(self, upto: list[int]) -> list[int]:
        return [max(0, end - shared) for end, shared in zip(upto, self._shared, strict=True)]

    def _numbers_in_branch(self, numbers: Tensor) -> Tensor:
        """Numbers `[B,...]` in the branch of the blocks `numbers` of its own index; -1 stays."""
        after = self._shared_column(numbers.device).view(-1, *[1] * (numbers.dim() - 1))
        return torch.where(numbers < 0, -1, numbers + after)

    def _shared_column(self, device: torch.device) -> Tensor:
        return torch.tensor(self._shared, device=device)[:, None]
