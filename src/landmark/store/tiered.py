"""Blocks in a bounded number of slots on the device that computes, over a lower tier that keeps them all."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from landmark.ops.retrieved import Pages
from landmark.store.base import Backing, BlockShape, Misses, Traffic, check_budget, move, step_bytes
from landmark.store.lru import Paging, Plan

# What a store moved, and how often a block was where it was wanted.


def distinct_blocks(blocks: Tensor, kv_heads: int) -> int:
    """Blocks that must be read for `blocks [B,H,T,k]` (-1 is none): distinct ones of each key-value head, summed.

    Any store must read as many; for one that counts no traffic.
    """
    grouped = blocks.reshape(len(blocks) * kv_heads, -1).cpu().numpy()
    return sum(int(np.count_nonzero(np.unique(numbers) >= 0)) for numbers in grouped)


_CPU = torch.device("cpu")


class TieredStore:
    """Slots for some of the blocks that `below` keeps; the blocks wanted least recently make room for others.

    Implements `landmark.store.BlockStore`; what is computed from it is the same as from a `DeviceStore`. On a CPU it
    is also a `landmark.store.base.Backing`: slots of a GPU lie over slots of the host, those over files.

    Args:
        below: keeps all blocks.
        budget: bytes that the slots of all rows may take.
        device: where the slots lie.
        step_blocks: blocks of a key-value head that a single query, with all heads of its group, may open: tells at
            the first block, not at the first query, that the budget is too small.

    Raises ValueError for a budget that holds less than a query needs, or less on the host than on the device.
    """

    def __init__(self, below: Backing, *, budget: int, device: torch.device = _CPU, step_blocks: int = 1) -> None:
        if isinstance(below, TieredStore) and below.budget < budget:
            raise ValueError(
                f"a budget of {below.budget} bytes on the host is less than the {budget} of the device above it: "
                "raise the one or lower the other"
            )
        self.budget = budget
        self.traffic = Traffic()
        self._below = below
        self._device = device
        self._step_blocks = step_blocks
        self._slots: _Slots | None = None
        if below.shape is not None:
            self._slots = self._fresh_slots(below.shape, below.counts)

    def _fresh_slots(self, shape: BlockShape, counts: list[int]) -> "_Slots":
        check_budget(self.budget, shape, len(counts), self._step_blocks)
        return _Slots(shape, counts, self.budget // step_bytes(shape, len(counts), 1), self._device)

    def append(self, row: int, keys: Tensor, values: Tensor) -> None:
        """See `BlockStore.append`. Raises OSError if a file cannot take the blocks; the store then has those before.

        New blocks get slots at once, for the next queries are likely to want them.
        """
        slots, first = self._slots, self._below.counts[row]
        if slots is None:
            slots = self._fresh_slots(BlockShape.of(keys, values), self._below.counts)
        self._below.append(row, keys.cpu(), values.cpu())
        self._slots = slots
        slots.admit(row, first, keys, values)

    def pages(self, blocks: Tensor) -> Iterator[tuple[slice, Pages]]:
        """See `BlockStore.pages`. Raises ValueError if one query wants more blocks than there are slots."""
        slots = self._slots
        assert slots is not None, "a store without blocks has none to give"
        wanted = slots.by_head(blocks)
        start, length = 0, wanted.shape[2]
        while True:
            plan, moved = self._bring(slots, wanted, start)
            self.traffic += Traffic(1, plan.distinct, len(plan.misses.rows)) + moved
            part = slice(start, plan.stop) if plan.stop - start < length else slice(None)
            yield part, Pages(slots.keys, slots.values, slots.places(plan.places, blocks))
            start = plan.stop
            if start == length:
                return

    def fetch(self, misses: Misses, keys: Tensor, values: Tensor) -> Traffic:
        slots = self._slots
        assert slots is not None, "a store without blocks has none to give"
        wanted, ranks = _by_head(misses, slots.keys.shape[:2])
        plan, moved = self._bring(slots, wanted, 0)
        there = misses.rows, misses.heads, plan.places[misses.rows, misses.heads, 0, ranks]
        here = misses.rows, misses.heads, misses.places
        return moved + move((slots.keys, slots.values), there, (keys, values), here)

    def _bring(self, slots: "_Slots", wanted: np.ndarray, start: int) -> tuple[Plan, Traffic]:
        """Brings the blocks of the next queries from below into slots."""
        plan = slots.paging.plan(wanted, start)
        if plan.stop == start < wanted.shape[2]:
            groups = wanted.shape[1] // slots.shape.heads
            check_budget(self.budget, slots.shape, len(wanted), groups * wanted.shape[3])
        if len(plan.misses.rows) == 0:
            return plan, Traffic()
        try:
            return plan, self._below.fetch(plan.misses, slots.keys, slots.values)
        except BaseException:
            slots.paging.forget(plan.misses)
            raise

    def reorder(self, rows: list[int]) -> None:
        """See `BlockStore.reorder`. Where the number of rows changes slots begin empty, as many as the budget holds."""
        slots = self._slots
        if slots is not None and len(rows) != len(self._below.counts):
            slots = self._fresh_slots(slots.shape, [self._below.counts[row] for row in rows])
        elif slots is not None:
            slots.reorder(rows)
        self._below.reorder(rows)
        self._slots = slots

    def fork(self) -> "TieredStore":
        """A store of the same blocks with slots of its own, empty at first, of the same budget."""
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

    @property
    def resident(self) -> int:
        held = 0 if self._slots is None else self._slots.paging.held * self._slots.shape.piece_bytes
        return held + self._below.resident


class _Slots:
    """The slots of a layer, `keys [B,Hkv,S,stride,D]` and `values [B,Hkv,S,stride,Dv]`, and what lies in them."""

    def __init__(self, shape: BlockShape, counts: list[int], slots: int, device: torch.device) -> None:
        self.shape = shape
        self.paging = Paging(counts, shape.heads, slots)
        # Left uninitialised, so that slots nobody has used yet take no memory on a CPU. Also made in inference mode
        # they may be written to outside of it.
        with torch.inference_mode(False):
            self.keys, self.values = (
                torch.empty(len(counts), shape.heads, slots, shape.stride, dim, dtype=shape.dtype, device=device)
                for dim in (shape.key_dim, shape.value_dim)
            )
            for x in (self.keys, self.values):
                x[:, :, 0] = 0  # read, with weight 0, where there is no block

    def admit(self, row: int, first: int, keys: Tensor, values: Tensor) -> None:
        """Puts new blocks of a row into slots, `keys [Hkv,m,stride,D]` from number `first` on, the last that fit."""
        count = keys.shape[1]
        self.paging.grow(first + count)
        fitting = min(count, self.paging.slots)
        misses = self.paging.admit(row, first + count - fitting, fitting)
        rows, heads, numbers, places = (torch.from_numpy(x).to(keys.device) for x in misses)
        for slots, blocks in ((self.keys, keys), (self.values, values)):
            slots[rows, heads, places] = blocks[heads, numbers - first].to(slots.device)

    def by_head(self, blocks: Tensor) -> np.ndarray:
        """Wanted blocks of every head: `blocks [B,H,T,k]`, or [B,1,T,k] for all heads of each key-value head alike."""
        if blocks.shape[1] < self.shape.heads:
            blocks = blocks.expand(-1, self.shape.heads, -1, -1)
        return blocks.cpu().contiguous().numpy()

    def places(self, places: np.ndarray, blocks: Tensor) -> Tensor:
        """Places on the device; a single head's where heads share `blocks`, and so lie alike in their slots."""
        if blocks.shape[1] < places.shape[1]:
            assert (places == places[:, :1]).all(), "heads chose together, after they had chosen each for itself"
            places = places[:, :1]
        return torch.from_numpy(places).to(blocks.device)

    def reorder(self, rows: list[int]) -> None:
        """Makes row i what row `rows[i]` was, for as many rows as before."""
        self.paging.reorder(rows)
        moved = [i for i, row in enumerate(rows) if i != row]
        sources, used = [rows[i] for i in moved], self.paging.used
        for x in (self.keys, self.values):
            x[moved, :, :used] = x[sources, :, :used]


def _by_head(misses: Misses, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Misses as blocks that a single query of each row and head wants, [B,Hkv,1,n], and the rank of each there."""
    flat = misses.rows * shape[1] + misses.heads
    counts = np.bincount(flat, minlength=shape[0] * shape[1])
    ranks = np.arange(len(flat)) - (np.cumsum(counts) - counts)[flat]
    wanted = np.full((*shape, 1, counts.max()), -1)
    wanted[misses.rows, misses.heads, 0, ranks] = misses.numbers
    return wanted, ranks
