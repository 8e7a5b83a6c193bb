"""Blocks of one layer behind its local window: an index over landmark keys and a store of keys and values."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from landmark.index.base import Index, ResidentKeys
from landmark.index.branch import ForkedIndex
from landmark.index.exact import ExactIndex
from landmark.memory.decode import FewBlocks, block_row
from landmark.memory.geometry import Past, first_with_slot, real_tokens
from landmark.memory.selection import Retrieval, Retrievals, context_miss
from landmark.ops.decode_cpu import FEW_QUERIES
from landmark.ops.retrieved import Pages, join_retrieved
from landmark.ops.retrieved.pytorch import of_heads
from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring, working_dtype
from landmark.settings import ReadingSettings
from landmark.store.base import BlockStore, ResidentBlocks, Traffic
from landmark.store.block_buffer import kept_of
from landmark.store.tiered import TieredStore

OnSearch = Callable[[Retrieval, Tensor], object]
"""Called with the search for blocks of a chunk and its queries [B,H,T,D], before rotary, in float32 or wider."""


class Opened:
    """The blocks that the queries of a chunk opened.

    Attributes:
        blocks: long [B,H,T,k], absolute block numbers by age, -1 for none; padding opens none.
        gates: [B,H,T,k], the weight of each block's landmark in the joint softmax, 0 for none.
        local: [B,H,T], the weight of local attention in it, attention sinks included; 0 at padding.
        asking: long [B], the queries of each head for which blocks lay in memory.

    A trace keeps one for each layer of each step. Made of arrays, it becomes tensors when it is looked at: Python's
    search for cyclic garbage passes over arrays, and would take a fifth of a step for as many tensors.
    """

    __slots__ = ("_found",)

    def __init__(self, blocks: Any, gates: Any, local: Any, asking: Any) -> None:
        self._found = blocks, gates, local, asking

    @property
    def blocks(self) -> Tensor:
        return torch.as_tensor(self._found[0])

    @property
    def gates(self) -> Tensor:
        return torch.as_tensor(self._found[1])

    @property
    def local(self) -> Tensor:
        return torch.as_tensor(self._found[2])

    @property
    def asking(self) -> Tensor:
        return torch.as_tensor(self._found[3])


class BlockMemory:
    """Blocks that left the local window, numbered from 0 in each row; the newest `max_blocks` are kept, all if None."""

    def __init__(
        self,
        rows: int,
        *,
        block_size: int,
        settings: ReadingSettings,
        index: Index,
        store: BlockStore,
    ) -> None:
        self.counts = [0] * rows  # blocks that were ever appended
        self._queries = self._context_misses = 0
        self._stride = block_size + 1
        self._settings = settings
        self._index = index
        self._store = store
        self._few: FewBlocks | None = None  # until a block is appended

    def kept(self, count: int) -> int:
        """Blocks still kept of `count` that were appended."""
        return kept_of(count, self._settings.max_blocks)

    def append(self, row: int, keys: Tensor, values: Tensor, rotation: Rotation) -> None:
        """Appends blocks `[Hkv, m * stride, D]` of one row, keys before rotary; they are stored rotated by offset."""
        blocks = keys.unflatten(1, (-1, self._stride))
        offsets = torch.arange(self._stride, device=keys.device)
        landmarks = blocks[:, :, -1].float()
        positions = offsets[-1:]
        if self._settings.positions == "true":
            numbers = self.counts[row] + torch.arange(blocks.shape[1], device=keys.device)
            positions = (numbers + 1) * self._stride - 1
        # The store first, which may fail on a full disk: the index then names no block that is missing.
        self._store.append(row, rotation.apply(blocks, offsets), values.unflatten(1, (-1, self._stride)))
        self._index.append(row, rotation.apply(landmarks, positions))
        self.counts[row] += blocks.shape[1]
        self._few = None

    def few(self, group: int) -> FewBlocks | None:
        """What a step of few tokens on a CPU needs of the blocks, at least one; None where loops do not serve.

        `group` query heads share a key-value head.
        """
        if self._few is None:
            self._few = self._made_few(group)
        return self._few

    def _made_few(self, group: int) -> FewBlocks | None:
        sharing = {"per_token_and_head": 1, "per_group": group}.get(self._settings.selection)
        if sharing is None or self._settings.miss_threshold:
            return None
        kept, stingy = [self.kept(count) for count in self.counts], self._settings.positions == "stingy"
        retrieve = self._settings.retrieve
        k = min(retrieve, max(kept))
        upto = [first_with_slot(*row, retrieve, stingy) for row in zip(self.counts, kept, strict=True)]
        landmarks, resident = self._index.resident_keys(k, upto), self._store.resident_blocks()
        if landmarks is None or landmarks.keys.device.type != "cpu":
            return None
        if resident is not None and resident.behind is not None:
            return None  # loops read one buffer
        store = self._store if isinstance(self._store, TieredStore) else None
        lie = resident if store is None else store.cached_blocks()
        if lie is None or lie.keys.device.type != "cpu":
            return None
        rows = [
            block_row(row, landmarks, lie, *bounds, self._settings.gap, stingy, sharing)
            for row, bounds in enumerate(zip(upto, self.counts, strict=True))
        ]
        widest = FEW_QUERIES if store is None else lie.keys.shape[2] // (group * k)
        return FewBlocks(rows, k, max(kept), sharing, widest, store, (landmarks, lie))

    def attend(
        self,
        past: Past,
        rotation: Rotation,
        scoring: Scoring,
        query: Tensor,
        local: tuple[Tensor, Tensor],
        on_search: OnSearch | None = None,
    ) -> tuple[Tensor, Opened]:
        """Opens blocks for `query [B,H,T,D]`, before rotary, and joins them to the `local` output and its lse."""
        retrieval = Retrieval(self._index, past, rotation, scoring)
        real = real_tokens(past.valid, past.width, past.device)
        wide = query.float()
        if on_search is not None:
            on_search(retrieval, wide)
        choice = retrieval.choose(wide, self._settings.selection, real)
        blocks, distance = of_heads(choice.blocks, query.shape[1]).expand(*query.shape[:3], -1), choice.distance
        queries = query.shape[1] * past.asking
        self.count(queries)
        if self._settings.miss_threshold:
            miss = context_miss(retrieval, wide, choice, local[1], self._settings.miss_threshold) | ~real[:, None]
            opening = int((~miss).sum())
            self.count(0, context_misses=queries - opening)
            blocks, distance = blocks.masked_fill(miss[..., None], -1), of_heads(distance, query.shape[1])
            if not opening:
                weights = torch.zeros_like(blocks, dtype=working_dtype(query))
                return local[0], _opened(past, blocks, weights, torch.ones_like(weights[..., 0]))
            pieces = self._opened_pages(choice.blocks, miss)
        else:
            pieces = self._store.pages(choice.blocks)
        out, weights, own = join_retrieved(
            *local, query, pieces, distance, rotation=rotation, scoring=scoring, blocks=max(past.kept)
        )
        return out, _opened(past, blocks, weights, own)

    def _opened_pages(self, blocks: Tensor, miss: Tensor) -> Iterator[tuple[slice, Pages]]:
        """Pages of the chosen `blocks`, without those of queries with a context miss, `miss [B,H,T]`.

        A block that heads or queries share is fetched if any of them opens it.
        """
        unopened = miss.unflatten(1, (blocks.shape[1], -1)).all(2)
        if blocks.shape[2] == 1:
            unopened = unopened.all(2, keepdim=True)
        for part, pages in self._store.pages(blocks.masked_fill(unopened[..., None], -1)):
            yield part, _without(pages, miss[:, :, part, None])

    def count(self, queries: int, context_misses: int = 0) -> None:
        """Counts queries for which blocks lay in memory, and context misses."""
        self._queries, self._context_misses = self._queries + queries, self._context_misses + context_misses

    @property
    def retrievals(self) -> Retrievals:
        """What was counted so far."""
        return Retrievals(self._queries, self._context_misses)

    def fixed(self) -> tuple[ResidentBlocks, ResidentKeys]:
        """All blocks and landmark keys, where they lie until blocks are appended.

        Raises ValueError, with the reason, where not all of them lie on the device.
        """
        blocks = self._store.resident_blocks()
        if blocks is None:
            raise ValueError(
                "blocks lie in a tier below the device: give a larger device_budget, or none, and for a context also a"
                " larger host_budget"
            )
        if isinstance(self._index, ForkedIndex):
            self._index = _joined(self._index, self.counts, blocks.keys.device)
        landmarks = self._index.resident_keys(self._settings.retrieve, self.counts)
        if landmarks is None:
            raise ValueError('landmark keys are not searched one by one: use index="exact" with keys in float32')
        return blocks, landmarks

    def holds(self, blocks: ResidentBlocks | None) -> bool:
        """Whether `blocks`, None for none, are all blocks, where they lie."""
        if blocks is None or not any(self.counts):
            return blocks is None and not any(self.counts)
        mine = self._store.resident_blocks()
        return mine is not None and [*map(id, mine.tensors)] == [*map(id, blocks.tensors)]

    def fork(self) -> "BlockMemory":
        """An independent copy; blocks are shared where the store can."""
        branch = copy.copy(self)
        branch.counts, branch._few = list(self.counts), None
        branch._index, branch._store = self._index.fork(), self._store.fork()
        return branch

    @property
    def traffic(self) -> Traffic:
        """Traffic of the store so far."""
        return self._store.traffic

    def reorder(self, rows: list[int]) -> None:
        """Makes row i a copy of row `rows[i]`."""
        self.counts, self._few = [self.counts[row] for row in rows], None
        self._index.reorder(rows)
        self._store.reorder(rows)

    @property
    def nbytes(self) -> int:
        """Bytes of the keys, values and landmark keys kept."""
        return self._index.nbytes + self._store.nbytes


def _without(pages: Pages, hidden: Tensor) -> Pages:
    """Pages without those of the queries that are `hidden [B,H,T,1]`."""
    table = torch.where(hidden, -1, of_heads(pages.table, hidden.shape[1]))
    behind = None if pages.behind is None else _without(pages.behind, hidden)
    return pages._replace(table=table, behind=behind)


def _joined(fork: ForkedIndex, counts: list[int], device: torch.device) -> ExactIndex:
    """The landmark keys of a fork in one buffer."""
    index, keys = ExactIndex(len(counts)), fork.keys(fork.numbers(device))
    for row, count in enumerate(counts):
        index.append(row, keys[row, :, :count])
    return index


def _opened(past: Past, blocks: Tensor, gates: Tensor, local: Tensor) -> Opened:
    """The blocks opened; padding opens none."""
    if min(past.valid) < past.width:
        padding = ~real_tokens(past.valid, past.width, past.device)[:, None, :, None]
        blocks, gates = blocks.masked_fill(padding, -1), gates.masked_fill(padding, 0.0)
        local = local.masked_fill(padding[..., 0], 0.0)
    return Opened(blocks, gates, local, past.asking_rows)
