"""Which block lies in which slot: whoever was wanted least recently makes room.

Compiled loops over arrays [B,Hkv,..]; every row and key-value head has slots of its own.
"""

from typing import Any, NamedTuple

import numpy as np

from landmark.ops.numba_loops import compiled
from landmark.store.base import Misses


class Plan(NamedTuple):
    """The queries up to `stop` read their blocks at `places` [B,H,t,k], -1 for none, once `misses` are there.

    `distinct` blocks of a head are read, summed over heads and rows.
    """

    stop: int
    places: np.ndarray
    misses: Misses
    distinct: int


class Paging:
    """Blocks at `slots` slots of each row and key-value head."""

    def __init__(self, counts: list[int], heads: int, slots: int) -> None:
        rows = len(counts)
        self.slots = slots
        self._slot_of = np.full((rows, heads, max(counts)), -1, np.int32)
        self._seen = np.zeros(self._slot_of.shape, np.int64)  # the pass that last came by a block
        self._passes = 0
        self._block_at = np.full((rows, heads, slots), -1, np.int32)
        # A ring from the slot wanted least recently to the newest; the last entry stands between the two ends.
        ring = np.arange(slots + 1, dtype=np.int32)
        self._older, self._newer = (np.tile(np.roll(ring, shift), (rows, heads, 1)) for shift in (1, -1))

    def grow(self, count: int) -> None:
        """Makes room for block numbers below `count`."""
        room = self._slot_of.shape[2]
        if count > room:
            more = [(0, 0), (0, 0), (0, max(count, 2 * room) - room)]
            self._slot_of = np.pad(self._slot_of, more, constant_values=-1)
            self._seen = np.pad(self._seen, more)

    def plan(self, wanted: np.ndarray, start: int = 0) -> Plan:
        """Gives slots to the blocks of the queries of `wanted [B,n * Hkv,T,k]` from `start` on, as many as fit.

        Slots that these queries read stay. Where not even one query fits, none is given any.
        """
        assert wanted.max(initial=-1) < self._slot_of.shape[2], "blocks that never came are wanted"
        stop = wanted.shape[2]
        groups = wanted.shape[1] // self._slot_of.shape[1]
        if (stop - start) * groups * wanted.shape[3] > self.slots:
            stop = int(_last_that_fits(wanted, start, self._seen, self._next_pass(), self.slots))
        return self._give(wanted, start, stop, slice(None))

    def admit(self, row: int, first: int, count: int) -> Misses:
        """Gives slots to new blocks of one row, from number `first` on; `count` of them at most as many as slots."""
        numbers = np.arange(first, first + count)
        wanted = np.tile(numbers, (1, self._slot_of.shape[1], 1, 1))
        misses = self._give(wanted, 0, 1, slice(row, row + 1)).misses
        return misses._replace(rows=misses.rows + row)

    def _give(self, wanted: np.ndarray, start: int, stop: int, rows: slice) -> Plan:
        places = np.empty((*wanted.shape[:2], stop - start, wanted.shape[3]), np.int64)
        room = min(places[0, 0].size * (wanted.shape[1] // self._slot_of.shape[1]), self.slots)
        missing = np.empty((4, room * wanted.shape[0] * self._slot_of.shape[1]), np.int64)
        state = (x[rows] for x in (self._slot_of, self._seen, self._block_at, self._older, self._newer))
        distinct, missed = _give_slots(wanted, start, *state, self._next_pass(), places, missing)
        return Plan(stop, places, Misses(*missing[:, :missed]), int(distinct))

    def _next_pass(self) -> int:
        self._passes += 1
        return self._passes

    def forget(self, misses: Misses) -> None:
        """Takes back the slots of blocks that did not come."""
        self._slot_of[misses.rows, misses.heads, misses.numbers] = -1
        self._block_at[misses.rows, misses.heads, misses.places] = -1

    def reorder(self, rows: list[int]) -> None:
        """Makes row i what row `rows[i]` was."""
        self._slot_of, self._seen, self._block_at, self._older, self._newer = (
            x[rows] for x in (self._slot_of, self._seen, self._block_at, self._older, self._newer)
        )

    @property
    def used(self) -> int:
        """Slots, from the first, among which all are that hold a block."""
        return int(np.flatnonzero((self._block_at >= 0).any(axis=(0, 1))).max(initial=-1)) + 1

    @property
    def held(self) -> int:
        """Slots that hold a block, over all rows and heads."""
        return int(np.count_nonzero(self._block_at >= 0))


@compiled
def _last_that_fits(wanted: Any, start: int, seen: Any, now: int, slots: int) -> int:
    """Where the queries from `start` on end that read at most `slots` distinct blocks in every row and head."""
    stop = wanted.shape[2]
    groups = wanted.shape[1] // seen.shape[1]
    for row in range(seen.shape[0]):
        for head in range(seen.shape[1]):
            distinct = 0
            for step in range(start, stop):
                for member in range(head * groups, (head + 1) * groups):
                    for number in wanted[row, member, step]:
                        if number >= 0 and seen[row, head, number] != now:
                            seen[row, head, number] = now
                            distinct += 1
                if distinct > slots:
                    stop = step
                    break
    return stop


@compiled
def _give_slots(
    wanted: Any, start: int, slot_of: Any, seen: Any, block_at: Any, older: Any, newer: Any, now: int,
    places: Any, missing: Any,
) -> tuple[int, int]:  # fmt: skip
    """Fills `places [B,H,t,k]` for the queries from `start` on, and `missing [4,n]`: row, head, number and place.

    Returns how many distinct blocks of each head they read, and how many of these are missing.
    """
    groups = wanted.shape[1] // slot_of.shape[1]
    distinct, missed = 0, 0
    for row in range(slot_of.shape[0]):
        for head in range(slot_of.shape[1]):
            slots, ring = slot_of[row, head], (older[row, head], newer[row, head])
            first = missed
            for step in range(places.shape[2]):
                for member in range(head * groups, (head + 1) * groups):
                    for number in wanted[row, member, start + step]:
                        if number < 0 or seen[row, head, number] == now:
                            continue
                        seen[row, head, number] = now
                        distinct += 1
                        if slots[number] >= 0:
                            _make_newest(ring[0], ring[1], slots[number])
                        else:
                            missing[0, missed], missing[1, missed], missing[2, missed] = row, head, number
                            missed += 1
            # Whatever is read and was there is among the newest by now: the oldest is free to go.
            for i in range(first, missed):
                slot = newer[row, head, -1]
                if block_at[row, head, slot] >= 0:
                    slots[block_at[row, head, slot]] = -1
                block_at[row, head, slot] = missing[2, i]
                slots[missing[2, i]] = slot
                missing[3, i] = slot
                _make_newest(ring[0], ring[1], slot)
            for member in range(head * groups, (head + 1) * groups):
                for step in range(places.shape[2]):
                    for j in range(places.shape[3]):
                        number = wanted[row, member, start + step, j]
                        places[row, member, step, j] = slots[number] if number >= 0 else -1
    return distinct, missed


@compiled
def _make_newest(older: Any, newer: Any, slot: int) -> None:
    """Moves a slot to the newest end of its ring."""
    end = len(older) - 1
    newer[older[slot]], older[newer[slot]] = newer[slot], older[slot]
    older[slot], newer[slot] = older[end], end
    newer[older[end]] = slot
    older[end] = slot
