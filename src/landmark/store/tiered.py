"""Tiered block store: an LRU cache on the device, within a budget, over a lower tier that keeps all blocks."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from landmark.ops.retrieved import Pages
from landmark.store.base import (
    BackingStore,
    BlockShape,
    CacheMisses,
    ResidentBlocks,
    Traffic,
    check_budget,
    copy_blocks,
    step_bytes,
)
from landmark.store.lru import PageTable, SlotPlan

_CPU = torch.device("cpu")


class CachedBlocks(NamedTuple):
    """Slots `keys [B,Hkv,S,stride,D]` and `values` of a cache, and the page table that says what lies in them."""

    keys: Tensor
    values: Tensor
    table: PageTable


class TieredStore:
    """LRU cache of the blocks that `below` keeps; computing from it gives what computing from a `DeviceStore` gives.

    Implements `landmark.store.base.BlockStore`. In host memory it is also a `landmark.store.base.BackingStore`, so that
    tiers stack: a cache on a GPU over a cache in host memory over files.

    Args:
        below: the lower tier, which keeps all blocks.
        budget: bytes of the cache, for all rows of the layer.
        device: where the cache lies.
        step_blocks: blocks of a key-value head that one query, with all heads of its group, may open. A budget that is
            too small for them is then refused at the first block, not at the first query.

    Raises ValueError for a budget that holds less than a query needs, or less in host memory than on the device.
    """

    def __init__(self, below: BackingStore, *, budget: int, device: torch.device = _CPU, step_blocks: int = 1) -> None:
        if isinstance(below, TieredStore) and below.budget < budget:
            raise ValueError(
                f"a budget of {below.budget} bytes on the host is less than the {budget} of the device above it: "
                "raise the one or lower the other"
            )
        self.budget = budget
        self._calls = self._requested = self._cache_misses = 0
        self._moved = Traffic()
        self._below = below
        self._device = device
        self._step_blocks = step_blocks
        self._cache: _Cache | None = None  # until a block is read or appended
        if below.shape is not None:
            self._check(below.shape, len(below.counts))

    def _check(self, shape: BlockShape, rows: int) -> None:
        check_budget(self.budget, shape, rows, self._step_blocks)

    def _empty_cache(self, shape: BlockShape, counts: list[int]) -> "_Cache":
        self._check(shape, len(counts))
        return _Cache(shape, counts, self.budget // step_bytes(shape, len(counts), 1), self._device)

    def append(self, row: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor] | None:
        """See `BackingStore.append`. Raises OSError if a file cannot take the blocks; the store is then unchanged.

        New blocks are cached at once, as they would be fetched: the next queries are likely to read them.
        """
        cache, first = self._cache, self._below.counts[row]
        if cache is None:
            cache = self._empty_cache(BlockShape.of(keys, values), self._below.counts)
        kept = self._below.append(row, keys.cpu(), values.cpu())
        if self._cache is None:
            self._cache, cache.first = cache, first if len(self._below.counts) == 1 else None
        cache.admit(row, first, *(kept or (keys, values)))
        return kept

    def pages(self, blocks: Tensor) -> Iterator[tuple[slice, Pages]]:
        """See `BlockStore.pages`. Raises ValueError if one query reads more blocks than there are slots."""
        cache = self._filled_cache()
        requested = cache.by_head(blocks)
        start, length = 0, requested.shape[2]
        while True:
            plan, moved = self._fetch_missing(cache, requested, start)
            self._count(plan.distinct, len(plan.misses.rows), moved)
            part = slice(start, plan.stop) if plan.stop - start < length else slice(None)
            yield part, Pages(cache.keys, cache.values, cache.page_table(plan.slots, blocks))
            start = plan.stop
            if start == length:
                return

    def _count(self, requested: int, cache_misses: int, moved: Traffic | None) -> None:
        self._calls, self._requested = self._calls + 1, self._requested + requested
        self._cache_misses += cache_misses
        if moved is not None:
            self._moved += moved

    @property
    def traffic(self) -> Traffic:
        return Traffic(self._calls, self._requested, self._cache_misses) + self._moved

    def resident_blocks(self) -> None:
        return None

    def cached_blocks(self) -> CachedBlocks:
        """Its slots and their page table, for a caller that assigns slots itself and then calls `fetch_assigned`."""
        cache = self._filled_cache()
        return CachedBlocks(cache.keys, cache.values, cache.table)

    def fetch_assigned(self, distinct: int, misses: CacheMisses | None) -> None:
        """Fetches the blocks for which slots of `cached_blocks` were assigned; None for none of the `distinct` ones."""
        if misses is None:
            self._count(distinct, 0, None)
        else:
            self._count(distinct, len(misses.rows), self._fetch_below(self._filled_cache(), misses))

    def behind(self, first: int) -> ResidentBlocks | None:
        """All blocks of the one row from number `first` on, counted from there; None if not each has kept its slot.

        Where nothing was cached so far, they are fetched if they fit. For a store that is asked for no others.
        """
        fresh, cache, count = self._cache is None, self._filled_cache(), self.counts[0] - first
        if fresh and count <= cache.table.slots:
            wanted = np.tile(np.arange(first, first + count), (1, cache.shape.heads, 1, 1))
            self._moved += self._fetch_missing(cache, wanted, 0)[1]
            cache.first = first
        return ResidentBlocks(cache.keys, cache.values, cache.table.slots) if cache.first == first else None

    def fetch(self, misses: CacheMisses, keys: Tensor, values: Tensor) -> Traffic:
        cache = self._filled_cache()
        requested, ranks = _by_head(misses, cache.keys.shape[:2])
        plan, moved = self._fetch_missing(cache, requested, 0)
        taken = misses.rows, misses.heads, plan.slots[misses.rows, misses.heads, 0, ranks]
        filled = misses.rows, misses.heads, misses.slots
        return moved + copy_blocks((cache.keys, cache.values), taken, (keys, values), filled)

    def _filled_cache(self) -> "_Cache":
        if self._cache is None:
            shape = self._below.shape
            assert shape is not None, "an empty store has no blocks to read"
            self._cache = self._empty_cache(shape, self._below.counts)
        return self._cache

    def _fetch_missing(self, cache: "_Cache", requested: np.ndarray, start: int) -> tuple[SlotPlan, Traffic]:
        """Caches the blocks of the queries from `start` on, as many as fit."""
        plan = cache.table.request(requested, start)
        if plan.stop == start < requested.shape[2]:
            groups = requested.shape[1] // cache.shape.heads
            check_budget(self.budget, cache.shape, len(requested), groups * requested.shape[3])
        if len(plan.misses.rows) == 0:
            return plan, Traffic()
        return plan, self._fetch_below(cache, plan.misses)

    def _fetch_below(self, cache: "_Cache", misses: CacheMisses) -> Traffic:
        cache.first = None
        try:
            return self._below.fetch(misses, cache.keys, cache.values)
        except BaseException:
            cache.table.invalidate(misses)
            raise

    def reorder(self, rows: list[int]) -> None:
        """See `BlockStore.reorder`. Where the number of rows changes, the cache is emptied and divided anew."""
        cache, shape = self._cache, self._below.shape
        if shape is not None and len(rows) != len(self._below.counts):
            self._check(shape, len(rows))
            cache = None
        elif cache is not None:
            cache.reorder(rows)
        self._below.reorder(rows)
        self._cache = cache

    def fork(self) -> "TieredStore":
        """A store of the same blocks with a cache of its own, empty at first, of the same budget."""
        return TieredStore(self._below.fork(), budget=self.budget, device=self._device, step_blocks=self._step_blocks)

    @property
    def shape(self) -> BlockShape | None:
        return self._below.shape

    @property
    def counts(self) -> list[int]:
        return self._below.counts

    @property
    def nbytes(self) -> int:
        return self._below.nbytes


class _Cache:
    """The cache slots of a layer, `keys [B,Hkv,S,stride,D]` and `values [B,Hkv,S,stride,Dv]`, and their page table.

    While `first` is a number, all blocks of the one row from that on lie in the order of their numbers, from slot 0 on.
    """

    def __init__(self, shape: BlockShape, counts: list[int], slots: int, device: torch.device) -> None:
        self.shape = shape
        self.first: int | None = None
        self.table = PageTable(counts, shape.heads, slots)
        self.keys, self.values = shape.empty(len(counts), slots, device)
        for x in (self.keys, self.values):
            x[:, :, 0] = 0  # read, with weight 0, where there is no block

    def admit(self, row: int, first: int, keys: Tensor, values: Tensor) -> None:
        """Caches the last new blocks of a row that fit, of `keys [Hkv,m,stride,D]` and values from `first` on."""
        count = keys.shape[1]
        if self.first is not None and first + count > self.first + self.table.slots:
            self.first = None
        self.table.grow(first + count)
        fitting = min(count, self.table.slots)
        misses = self.table.admit(row, first + count - fitting, fitting)
        rows, heads, numbers, slots = (torch.from_numpy(x).to(keys.device) for x in misses)
        for cached, blocks in ((self.keys, keys), (self.values, values)):
            cached[rows, heads, slots] = blocks[heads, numbers - first].to(cached.device)

    def by_head(self, blocks: Tensor) -> np.ndarray:
        """The blocks that each head reads: `blocks [B,H,T,k]`, or [B,1,T,k] repeated for every key-value head."""
        if blocks.shape[1] < self.shape.heads:
            blocks = blocks.expand(-1, self.shape.heads, -1, -1)
        return blocks.cpu().contiguous().numpy()

    def page_table(self, slots: np.ndarray, blocks: Tensor) -> Tensor:
        """`slots` on the device; of a single head where heads share `blocks`, and so have the same slots."""
        if blocks.shape[1] < slots.shape[1]:
            assert (slots == slots[:, :1]).all(), "heads share their blocks after they had blocks of their own"
            slots = slots[:, :1]
        return torch.from_numpy(slots).to(blocks.device)

    def reorder(self, rows: list[int]) -> None:
        """Makes row i what row `rows[i]` was, for as many rows as before."""
        self.first = None
        self.table.reorder(rows)
        moved = [i for i, row in enumerate(rows) if i != row]
        sources, used = [rows[i] for i in moved], self.table.used
        for x in (self.keys, self.values):
            x[moved, :, :used] = x[sources, :, :used]


def _by_head(misses: CacheMisses, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Cache misses as the blocks that one query of each row and head reads, [B,Hkv,1,n], and the rank of each there."""
    ranks = misses.ranks(shape[1])
    requested = np.full((*shape, 1, ranks.max() + 1), -1)
    requested[misses.rows, misses.heads, 0, ranks] = misses.blocks
    return requested, ranks
