"""Exact search that first looks at a few bytes of every landmark key and reads only keys that may be among the best."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from landmark.index.base import ResidentKeys
from landmark.index.codes import Coarse
from landmark.index.codes_numba import LANES
from landmark.index.exact import ExactIndex
from landmark.index.ivf import Lists
from landmark.index.keys import KeyFormat

_COARSE_FROM = 2048  # blocks; fewer are scored as fast as looked at
_WORTHWHILE = 1 / 16  # of the keys read: reading more, one by one, takes longer than scoring all


class HierarchicalIndex(ExactIndex):
    """Landmark keys on a CPU and, once there are many, their codes; implements `landmark.index.Index`.

    Finds what `ExactIndex` finds for `recall` 1, and below about that share of it: see `landmark.index.ivf`.
    Keys without any favoured direction defeat the codes: then every key is scored until there are twice as many.

    Raises ValueError for a `recall` outside [0.5, 1] and for keys not on a CPU or neither float32 nor float64.
    """

    def __init__(
        self, rows: int, max_blocks: int | None = None, *, keys: KeyFormat = "float32", recall: float = 1.0
    ) -> None:
        check_recall(recall)
        super().__init__(rows, max_blocks, keys=keys)
        self._recall = recall
        self._coarse = self._codes(rows)
        self._coarse_from = _COARSE_FROM
        self.keys_scored: Tensor | None = None  # keys read for each query [B,H,T] of the last search; None if all were

    def append(self, row: int, keys: Tensor) -> None:
        if keys.device.type != "cpu" or keys.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"the hierarchical index takes float32 or float64 keys on a CPU, not {keys.dtype} on {keys.device}: "
                "choose the exact index"
            )
        super().append(row, keys)

    def search(self, query: Tensor, k: int, upto: list[int]) -> tuple[Tensor, Tensor]:
        self.keys_scored = None
        used = self._ring.used()
        if used < self._coarse_from:
            return super().search(query, k, upto)
        best, found, read = (torch.from_numpy(x) for x in self._coarse.search(self._keys, query, k, upto))
        self.keys_scored = read
        # The first tile may be read whole by a query that nothing went before.
        if read.double().mean() > _WORTHWHILE * used + LANES:
            self._coarse, self._coarse_from = self._codes(len(self._ring.counts)), 2 * used
        return best, found

    def _codes(self, rows: int) -> Coarse | Lists:
        return Coarse(rows) if self._recall == 1 else Lists(rows, self._recall)

    def resident_keys(self, k: int, upto: list[int]) -> ResidentKeys | None:
        return super().resident_keys(k, upto) if self._ring.used() < self._coarse_from else None

    def reorder(self, rows: list[int]) -> None:
        super().reorder(rows)
        self._coarse.reorder(rows)

    def view(self) -> "HierarchicalIndex":
        other = copy.copy(self)
        other._coarse = self._coarse.view()
        return other

    def _empty(self, rows: int) -> "HierarchicalIndex":
        return HierarchicalIndex(rows, keys=self._keys.form, recall=self._recall)

    def tensors(self) -> dict[str, Tensor]:
        """What was made of the keys to search them, by name: all of it can be made again, but that takes a while."""
        return {self._kind + name: tensor for name, tensor in self._coarse.tensors().items()}

    def resume(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over what `tensors` gave of an index that had some of the first of these keys, in this format.

        What was made for another recall is left.
        """
        own = {name.removeprefix(self._kind): x for name, x in tensors.items() if name.startswith(self._kind)}
        if own:
            self._coarse.resume(own)

    @property
    def _kind(self) -> str:
        return f"{self._keys.form}@{self._recall}/"

    @property
    def nbytes(self) -> int:
        return super().nbytes + self._coarse.nbytes


def check_recall(recall: float) -> None:
    """Raises ValueError for a recall that cannot be asked for."""
    if not 0.5 <= recall <= 1:
        raise ValueError(f"recall is {recall}: it must be from 0.5 to 1, where 1 is exact")
