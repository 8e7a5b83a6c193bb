"""Landmark keys in lists of those that are alike: a query looks into a few lists only."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from landmark.index.basis import Array
from landmark.index.evidence import Evidence
from landmark.index.head_lists import HeadKeys, HeadLists
from landmark.index.key_ring import KeyRing

_GROWTH = 2  # lists are made anew when there are so many times the blocks they were made for


class Lists:
    """Lists for every row and key-value head of a ring of keys, to find a share `recall` of the best blocks."""

    def __init__(self, rows: int, recall: float) -> None:
        self._recall = recall
        self._heads: list[list[HeadLists]] = [[] for _ in range(rows)]
        self._evidence: list[list[Evidence]] = [[] for _ in range(rows)]

    def search(self, keys: KeyRing, query: Tensor, k: int, upto: list[int]) -> tuple[Array, Array, Array]:
        """Scores and numbers `[B,H,T,k]` as `Index.search` gives them, and how many keys were read `[B,H,T]`."""
        query = query.contiguous()
        best = query.new_full((*query.shape[:3], k), -torch.inf)
        found, read = torch.full(best.shape, -1), torch.zeros(best.shape[:3], dtype=torch.long)
        for row, end in enumerate(upto):
            heads = self._up_to_date(keys, row, query[row])
            for head, lists in enumerate(heads):
                group = query.shape[1] // len(heads)
                some = slice(head * group, (head + 1) * group)
                # The heads of a group lie side by side, so that these are views to write to.
                queries, *out = (x[row, some].flatten(0, 1) for x in (query, best, found, read))
                lists.search(HeadKeys(keys, row, head), self._evidence_of(row, head), queries, end, *out)
        return best.numpy(), found.numpy(), read.numpy()

    def reorder(self, rows: list[int]) -> None:
        """Makes row i what row `rows[i]` was."""
        if rows != list(range(len(self._heads))):
            self._heads = [copy.deepcopy(self._heads[row]) for row in rows]
            self._evidence = [copy.deepcopy(self._evidence[row]) for row in rows]

    def apart(self) -> "Lists":
        """The same lists, with evidence that goes on from here by itself."""
        other = copy.copy(self)
        other._evidence = copy.deepcopy(self._evidence)
        return other

    def _evidence_of(self, row: int, head: int) -> Evidence:
        known = self._evidence[row]
        known += [Evidence() for _ in range(head + 1 - len(known))]
        return known[head]

    def tensors(self) -> dict[str, Tensor]:
        """What was made of the keys, by name, to `resume` from."""
        return {
            f"{row}.{head}.{name}": tensor
            for row, heads in enumerate(self._heads)
            for head, lists in enumerate(heads)
            for name, tensor in (lists.tensors() | self._evidence_of(row, head).tensors()).items()
        }

    def resume(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on with what `tensors` gave, for as many rows, some of the first of whose blocks it was made of."""
        heads: dict[tuple[int, int], dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            row, head, own = name.split(".")
            heads.setdefault((int(row), int(head)), {})[own] = tensor
        for row, head in sorted(heads):
            self._heads[row].append(HeadLists.resume(self._recall, heads[row, head]))
            self._evidence[row].append(Evidence.resume(heads[row, head]))

    @property
    def nbytes(self) -> int:
        """Bytes of what was made of the keys."""
        return sum(lists.nbytes for heads in self._heads for lists in heads)

    def _up_to_date(self, keys: KeyRing, row: int, query: Tensor) -> list[HeadLists]:
        """The lists of a row, with all that came; where they are made, `query [H,T,D]` says what queries are like."""
        count, heads = keys.ring.counts[row], self._heads[row]
        if count and (not heads or count >= _GROWTH * heads[0].made):
            groups = query.chunk(keys.arrays()[0].shape[1])
            heads = [
                HeadLists.over(HeadKeys(keys, row, head), own.flatten(0, 1), self._recall)
                for head, own in enumerate(groups)
            ]
            self._heads[row] = heads
        for head, lists in enumerate(heads):
            lists.update(HeadKeys(keys, row, head))
        return heads
