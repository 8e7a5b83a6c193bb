"""Storage of a KV cache in a context: landmark keys are mapped or loaded, keys and values stay on disk."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from landmark.contexts.snapshot import Snapshot
from landmark.contexts.writer import Writer
from landmark.index.base import Index
from landmark.index.delegating import Delegating
from landmark.index.exact import ExactIndex
from landmark.index.hierarchical import HierarchicalIndex
from landmark.index.options import IndexOptions, make_index
from landmark.memory.storage import Budgets
from landmark.store.base import BlockStore, ResidentBlocks
from landmark.store.files import Extent, ExtentMap, ExtentTarget, FileStore
from landmark.store.resident import ResidentStore


class ContextStorage:
    """Storage of one landmark layer, the `layer`-th of the context's; implements `landmark.memory.storage.Storage`.

    With a `Writer` new blocks go into the context, otherwise into a temporary file. `landmarks [Hkv,capacity,D]` are
    the landmark keys of the blocks there, which the index takes over, and `index_state` is what an index computed of
    them (codes, lists); both are released here once the index has them. That state is written with every commit, so
    that opening need not compute it. `resident` are all these blocks on the device, None where they are read from disk.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        layer: int,
        landmarks: Tensor,
        index_state: Mapping[str, Tensor],
        *,
        options: IndexOptions,
        budgets: Budgets,
        resident: ResidentBlocks | None = None,
    ) -> None:
        self._snapshot = snapshot
        self._layer = layer
        self._landmarks: Tensor | None = landmarks
        self._index_state = index_state
        self._options = options
        self._budgets = budgets
        self._resident = resident

    def index(self, rows: int, max_blocks: int | None, *, constant_keys: bool, device: torch.device) -> Index:
        if self._landmarks is None:
            raise ValueError(f"the cache of a context cannot be reset: open {self._snapshot.path} again")
        index = make_index(self._options, rows, max_blocks, constant_keys=constant_keys, device=device)
        blocks = self._snapshot.blocks
        if blocks:
            if isinstance(index, ExactIndex) and rows == 1 and device.type == "cpu":
                index.adopt(self._landmarks, blocks)
            else:
                index.append(0, self._landmarks[:, :blocks].to(device))
        if isinstance(index, HierarchicalIndex):
            index.resume(self._index_state)
        self._landmarks, self._index_state = None, {}
        if isinstance(self._snapshot, Writer):
            writer, layer = self._snapshot, self._layer
            if isinstance(index, HierarchicalIndex):
                writer.save_index_state(index_prefix(layer), index.tensors)
            return RecordedIndex(index, lambda keys: writer.append_landmarks(layer, keys))  # type: ignore[return-value]
        return index

    def store(self, rows: int, max_blocks: int | None, *, device: torch.device) -> BlockStore:
        if rows != 1:
            raise ValueError(f"a context is one text, and the batch has {rows} rows: ask it one prompt at a time")
        layer, resident, budgets = self._layer, self._resident, self._budgets
        # Without a target new blocks go to a temporary file.
        target = self._snapshot.target(layer) if isinstance(self._snapshot, Writer) else None
        shape, files = self._snapshot.layout.blocks[layer], FileStore([extent_map(self._snapshot, layer, target)])
        if resident is None:
            return budgets.over(files, device, shape)
        return ResidentStore(resident, budgets.beside(resident.nbytes).over(files, device, shape))

    def fork(self) -> "ContextStorage":
        """The same blocks as of now, without the writer: new ones go to a temporary file."""
        branch = copy.copy(self)
        branch._snapshot = self._snapshot.frozen()
        return branch


def extent_map(snapshot: Snapshot, layer: int, target: ExtentTarget | None = None) -> ExtentMap:
    """Where the blocks of a layer lie; new ones are written to `target`."""
    extents = (Extent(one.blocks, layer, 0, one.first, one.count) for one in snapshot.segments if one.count)
    return ExtentMap(extents, target)


def index_prefix(layer: int) -> str:
    """Prefix of the tensors in a commit's state that belong to the index of a layer."""
    return f"index.{layer}."


@dataclass(frozen=True)
class RecordedIndex(Delegating):
    """An index that passes the landmark keys `[Hkv,m,D]` of every new block to `record`; its forks do not."""

    inner: Index
    record: Callable[[Tensor], None]

    def append(self, row: int, keys: Tensor) -> None:
        """Appends landmark keys, as any index does."""
        self.record(keys)
        self.inner.append(row, keys)
