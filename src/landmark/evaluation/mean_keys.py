"""Mean keys: a block is found by the mean of its keys instead of its landmark, as in Combiner (Ren et al. 2021)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from landmark.index.base import Index
from landmark.index.delegating import Delegating
from landmark.index.exact import ExactIndex
from landmark.memory.selection import Retrieval
from landmark.memory.storage import ProcessStorage
from landmark.store.base import BlockStore


@dataclass(frozen=True)
class MeanKeyStorage:
    """Storage of one layer of a cache that keeps, beside all blocks, the mean key of each; implements `Storage`.

    Keys are averaged as a query meets them when it opens the block, rotated by their place in it: the score of a block
    is the mean of the scores with its ordinary tokens.
    """

    inner: ProcessStorage
    means: ExactIndex

    @classmethod
    def of_one_text(cls) -> "MeanKeyStorage":
        """For a batch of one row."""
        return cls(ProcessStorage(), ExactIndex(1))

    def index(self, rows: int, max_blocks: int | None, *, constant_keys: bool, device: torch.device) -> Index:
        return self.inner.index(rows, max_blocks, constant_keys=constant_keys, device=device)

    def store(self, rows: int, max_blocks: int | None, *, device: torch.device) -> BlockStore:
        return _Averaging(self.inner.store(rows, max_blocks, device=device), self.means)  # type: ignore[return-value]

    def fork(self) -> "MeanKeyStorage":
        return self

    def search(self, retrieval: Retrieval) -> Retrieval:
        """The same search with mean keys instead of landmark keys."""
        return replace(retrieval, index=self.means)


@dataclass(frozen=True)
class _Averaging(Delegating):
    """A store that passes the mean key of every new block to an index."""

    inner: BlockStore
    means: ExactIndex

    def append(self, row: int, keys: Tensor, values: Tensor) -> None:
        self.inner.append(row, keys, values)
        self.means.append(row, keys[:, :, :-1].float().mean(2))  # without the landmark
