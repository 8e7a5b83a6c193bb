"""LRU page table: maps block numbers to cache slots, and evicts the block requested least recently.

Compiled loops over arrays [B,Hkv,..]: every row and key-value head has slots of its own.
"""

from typing import Any, NamedTuple

import numpy as np

from landmark.ops.numba_loops import array_at, compiled
from landmark.store.base import CacheMisses

_ROOM = 64  # new blocks, so that those of one answer need no larger table


class SlotPlan(NamedTuple):
    """The slots from which the queries up to `stop` read their blocks, once the cache misses are fetched.

    `slots` [B,H,t,k], -1 for no block. `distinct` blocks of a head are read, summed over heads and rows.
    """

    stop: int
    slots: np.ndarray
    misses: CacheMisses
    distinct: int


class PageTable:
    """LRU page table of `slots` slots for each row and key-value head."""

    def __init__(self, counts: list[int], heads: int, slots: int) -> None:
        rows = len(counts)
        self.slots = slots
        self._slot_of = np.full((rows, heads, max(counts) + _ROOM), -1, np.int32)
        self._last_pass = np.zeros(self._slot_of.shape, np.int64)  # the pass that last requested a block
        self._passes = np.zeros(1, np.int64)
        self._block_at = np.full((rows, heads, slots), -1, np.int32)
        # A linked ring from the least to the most recently used slot; the last entry stands between the two ends.
        ring = np.arange(slots + 1, dtype=np.int32)
        self._older, self._newer = (np.tile(np.roll(ring, shift), (rows, heads, 1)) for shift in (1, -1))

    def grow(self, count: int) -> None:
        """Makes room for block numbers below `count`."""
        capacity = self._slot_of.shape[2]
        if count > capacity:
            more = [(0, 0), (0, 0), (0, max(count, 2 * capacity) - capacity)]
            self._slot_of = np.pad(self._slot_of, more, constant_values=-1)
            self._last_pass = np.pad(self._last_pass, more)

    def request(self, blocks: np.ndarray, start: int = 0) -> SlotPlan:
        """Assigns slots to the blocks of as many queries of `blocks [B,n * Hkv,T,k]` from `start` on as fit.

        Blocks that these queries read are not evicted. Where not even one query fits, no slot is assigned.
        """
        assert blocks.max(initial=-1) < self._slot_of.shape[2], "blocks that were never appended are requested"
        stop = blocks.shape[2]
        groups = blocks.shape[1] // self._slot_of.shape[1]
        if (stop - start) * groups * blocks.shape[3] > self.slots:
            stop = int(_last_that_fits(blocks, start, self._last_pass, self._next_pass(), self.slots))
        return self._assign(blocks, start, stop, slice(None))

    def admit(self, row: int, first: int, count: int) -> CacheMisses:
        """Assigns slots to `count` new blocks of one row, from number `first` on; `count` is at most `slots`."""
        blocks = np.tile(np.arange(first, first + count), (1, self._slot_of.shape[1], 1, 1))
        misses = self._assign(blocks, 0, 1, slice(row, row + 1)).misses
        return misses._replace(rows=misses.rows + row)

    def _assign(self, blocks: np.ndarray, start: int, stop: int, rows: slice) -> SlotPlan:
        slots = np.empty((*blocks.shape[:2], stop - start, blocks.shape[3]), np.int64)
        most = min(slots[0, 0].size * (blocks.shape[1] // self._slot_of.shape[1]), self.slots)
        misses = np.empty((4, most * blocks.shape[0] * self._slot_of.shape[1]), np.int64)
        state = (x[rows] for x in (self._slot_of, self._last_pass, self._block_at, self._older, self._newer))
        distinct, missed = _assign_slots(blocks, start, *state, self._next_pass(), slots, misses)
        return SlotPlan(stop, slots, CacheMisses(*misses[:, :missed]), int(distinct))

    def _next_pass(self) -> int:
        self._passes[0] += 1
        return int(self._passes[0])

    def addresses(self, row: int) -> tuple[int, ...]:
        """What `assign_in_place` takes of a row: where its parts lie until the table grows or is reordered."""
        parts = [self._slot_of, self._last_pass, self._block_at, self._older, self._newer]
        return *(x[row].ctypes.data for x in parts), self._passes.ctypes.data, self._slot_of.shape[2]

    def invalidate(self, misses: CacheMisses) -> None:
        """Frees the slots of blocks that could not be fetched."""
        self._slot_of[misses.rows, misses.heads, misses.blocks] = -1
        self._block_at[misses.rows, misses.heads, misses.slots] = -1

    def reorder(self, rows: list[int]) -> None:
        """Makes row i what row `rows[i]` was."""
        self._slot_of, self._last_pass, self._block_at, self._older, self._newer = (
            x[rows] for x in (self._slot_of, self._last_pass, self._block_at, self._older, self._newer)
        )

    @property
    def used(self) -> int:
        """Length of the shortest prefix of the slots that contains all occupied ones."""
        return int(np.flatnonzero((self._block_at >= 0).any(axis=(0, 1))).max(initial=-1)) + 1


@compiled
def _last_that_fits(blocks: Any, start: int, last_pass: Any, now: int, slots: int) -> int:
    """Where the queries from `start` on end that read at most `slots` distinct blocks in every row and head."""
    stop = blocks.shape[2]
    groups = blocks.shape[1] // last_pass.shape[1]
    for row in range(last_pass.shape[0]):
        for head in range(last_pass.shape[1]):
            distinct = 0
            for step in range(start, stop):
                for member in range(head * groups, (head + 1) * groups):
                    for number in blocks[row, member, step]:
                        if number >= 0 and last_pass[row, head, number] != now:
                            last_pass[row, head, number] = now
                            distinct += 1
                if distinct > slots:
                    stop = step
                    break
    return stop


@compiled
def _assign_slots(
    blocks: Any, start: int, slot_of: Any, last_pass: Any, block_at: Any, older: Any, newer: Any, now: int,
    slots: Any, misses: Any,
) -> tuple[int, int]:  # fmt: skip
    """Fills `slots [B,H,t,k]` for the queries from `start` on, and `misses [4,n]`: row, head, block and slot.

    Returns how many distinct blocks of each head they read, and how many of these are cache misses.
    """
    groups = blocks.shape[1] // slot_of.shape[1]
    distinct, missed = 0, 0
    for row in range(slot_of.shape[0]):
        for head in range(slot_of.shape[1]):
            known, ring = slot_of[row, head], (older[row, head], newer[row, head])
            first = missed
            for step in range(slots.shape[2]):
                for member in range(head * groups, (head + 1) * groups):
                    for number in blocks[row, member, start + step]:
                        if number < 0 or last_pass[row, head, number] == now:
                            continue
                        last_pass[row, head, number] = now
                        distinct += 1
                        if known[number] >= 0:
                            _make_newest(ring[0], ring[1], known[number])
                        else:
                            misses[0, missed], misses[1, missed], misses[2, missed] = row, head, number
                            missed += 1
            # All cache hits are among the newest by now: the oldest slot may be evicted.
            for i in range(first, missed):
                slot = newer[row, head, -1]
                if block_at[row, head, slot] >= 0:
                    known[block_at[row, head, slot]] = -1
                block_at[row, head, slot] = misses[2, i]
                known[misses[2, i]] = slot
                misses[3, i] = slot
                _make_newest(ring[0], ring[1], slot)
            for member in range(head * groups, (head + 1) * groups):
                for step in range(slots.shape[2]):
                    for j in range(slots.shape[3]):
                        number = blocks[row, member, start + step, j]
                        slots[row, member, step, j] = known[number] if number >= 0 else -1
    return distinct, missed


@compiled
def assign_in_place(row: Any, slots: int, heads: int, blocks: Any, pages: Any, misses: Any) -> tuple[int, int]:
    """Fills `pages [1,n * Hkv,T,k]` with the slots of `blocks` of one row, as `PageTable.request` where all fit.

    `row` has the fields of `PageTable.addresses`, by name. For `misses`, and what is returned, see `_assign_slots`.
    """
    short, long = np.empty(0, np.int32), np.empty(0, np.int64)
    slot_of = array_at(row.slot_of, (1, heads, row.numbers), short)
    last_pass = array_at(row.last_pass, (1, heads, row.numbers), long)
    block_at = array_at(row.block_at, (1, heads, slots), short)
    older = array_at(row.older, (1, heads, slots + 1), short)
    newer = array_at(row.newer, (1, heads, slots + 1), short)
    passes = array_at(row.passes, (1,), long)
    passes[0] += 1
    return _assign_slots(blocks, 0, slot_of, last_pass, block_at, older, newer, passes[0], pages, misses)


@compiled
def _make_newest(older: Any, newer: Any, slot: int) -> None:
    """Moves a slot to the most recently used end of its ring."""
    end = len(older) - 1
    newer[older[slot]], older[newer[slot]] = newer[slot], older[slot]
    older[slot], newer[slot] = older[end], end
    newer[older[end]] = slot
    older[end] = slot
