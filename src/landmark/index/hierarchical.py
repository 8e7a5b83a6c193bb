"""Hierarchical index: scans quantized codes of all landmark keys, and scores in full those that may be among the best.

The hierarchy is one of precision. With a recall below 1 the codes are laid out in the inverted lists of an IVF index.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from landmark.index.base import ResidentKeys
from landmark.index.codes import QuantizedCodes
from landmark.index.codes_numba import LANES
from landmark.index.exact import ExactIndex
from landmark.index.ivf import IVF
from landmark.index.keys import KeyFormat

_CODES_FROM = 2048  # blocks; fewer are scored in the time of a scan
_MAX_SCORED_SHARE = 1 / 16  # of the keys; scoring more of them one by one is slower than scoring all at once


class HierarchicalIndex(ExactIndex):
    """Landmark keys on a CPU and, from 2,048 blocks on, quantized codes; implements `landmark.index.base.Index`.

    Finds what `ExactIndex` finds for `recall` 1, and about that share of it below (`landmark.index.ivf`). Codes do not
    prune keys without any preferred direction: then every key is scored until there are twice as many blocks.

    Raises ValueError for a `recall` outside [0.5, 1] and for keys not on a CPU or neither float32 nor float64.
    """

    def __init__(
        self, rows: int, max_blocks: int | None = None, *, keys: KeyFormat = "float32", recall: float = 1.0
    ) -> None:
        check_recall(recall)
        super().__init__(rows, max_blocks, keys=keys)
        self._recall = recall
        self._codes = self._no_codes(rows)
        self._codes_from = _CODES_FROM
        self.keys_scored: Tensor | None = None  # for each query [B,H,T] of the last search; None if all were

    def append(self, row: int, keys: Tensor) -> None:
        if keys.device.type != "cpu" or keys.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"the hierarchical index takes float32 or float64 keys on a CPU, not {keys.dtype} on {keys.device}: "
                "choose the exact index"
            )
        super().append(row, keys)

    def search(self, query: Tensor, k: int, upto: list[int]) -> tuple[Tensor, Tensor]:
        self.keys_scored = None
        used = self._blocks.used()
        if used < self._codes_from:
            return super().search(query, k, upto)
        best, found, scored = (torch.from_numpy(x) for x in self._codes.search(self._keys, query, k, upto))
        self.keys_scored = scored
        # The first query of a batch may score the whole first tile.
        if scored.double().mean() > _MAX_SCORED_SHARE * used + LANES:
            self._codes, self._codes_from = self._no_codes(len(self._blocks.counts)), 2 * used
        return best, found

    def _no_codes(self, rows: int) -> QuantizedCodes | IVF:
        return QuantizedCodes(rows) if self._recall == 1 else IVF(rows, self._recall)

    def resident_keys(self, k: int, upto: list[int]) -> ResidentKeys | None:
        return super().resident_keys(k, upto) if self._blocks.used() < self._codes_from else None

    def reorder(self, rows: list[int]) -> None:
        super().reorder(rows)
        self._codes = copy.copy(self._codes)  # as with the keys
        self._codes.reorder(rows)

    def view(self) -> "HierarchicalIndex":
        other = copy.copy(self)
        other._codes = self._codes.view()
        return other

    def _empty(self, rows: int) -> "HierarchicalIndex":
        return HierarchicalIndex(rows, keys=self._keys.format, recall=self._recall)

    def tensors(self) -> dict[str, Tensor]:
        """The state of the codes or of the IVF index, by name; building it anew from the keys is slow."""
        return {self._prefix + name: tensor for name, tensor in self._codes.tensors().items()}

    def resume(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores the state of an index over some of the first of these keys, in this format.

        State of an index with another recall or format of keys is ignored. Raises ValueError for state that is not of
        such keys: whoever saved it, nothing is read beyond its arrays.
        """
        own = {name.removeprefix(self._prefix): x for name, x in tensors.items() if name.startswith(self._prefix)}
        if own:
            self._codes.resume(own, self._keys)

    @property
    def _prefix(self) -> str:
        return f"{self._keys.format}@{self._recall}/"

    @property
    def nbytes(self) -> int:
        return super().nbytes + self._codes.nbytes


def check_recall(recall: float) -> None:
    """Raises ValueError for a recall that no index can be asked for."""
    if not 0.5 <= recall <= 1:
        raise ValueError(f"recall is {recall}: it must be from 0.5 to 1, where 1 is exact")
