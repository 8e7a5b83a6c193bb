from collections import OrderedDict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from landmark.store.lru import PageTable, assign_in_place

SLOTS = 4
FIELDS = ("slot_of", "last_pass", "block_at", "older", "newer", "passes", "numbers")


class LRU:
    """The slots of one head: block numbers from the least to the most recently used."""

    def __init__(self) -> None:
        self.slots: OrderedDict[int, None] = OrderedDict()

    def request(self, numbers: list[int]) -> list[int]:
        """Returns the misses."""
        distinct = list(dict.fromkeys(numbers))
        hits = [number for number in distinct if number in self.slots]
        misses = [number for number in distinct if number not in self.slots]
        for number in hits:
            self.slots.move_to_end(number)
        for number in misses:
            if len(self.slots) == SLOTS:
                self.slots.popitem(last=False)
            self.slots[number] = None
        return misses


def split(queries: list[list[int]]) -> list[list[list[int]]]:
    """Cuts queries as late as possible."""
    pieces = [[queries[0]]]
    for query in queries[1:]:
        if len({*query, *(n for one in pieces[-1] for n in one)} - {-1}) <= SLOTS:
            pieces[-1].append(query)
        else:
            pieces.append([query])
    return pieces


@given(chunks=st.lists(st.lists(st.lists(st.integers(-1, 11), min_size=3, max_size=3), min_size=1, max_size=9)))
def test_a_head_keeps_the_blocks_requested_last(chunks):
    table, expected_lru = PageTable([12], 1, SLOTS), LRU()
    where: dict[int, int] = {}
    for queries in chunks:
        requested, start = np.array(queries).reshape(1, 1, -1, 3), 0
        for piece in split(queries):
            plan = table.request(requested, start)
            assert plan.stop == start + len(piece)
            real = [n for query in piece for n in query if n >= 0]
            assert plan.misses.blocks.tolist() == expected_lru.request(real)
            assert plan.distinct == len(set(real))
            where |= dict(zip(plan.misses.blocks.tolist(), plan.misses.slots.tolist(), strict=True))
            expected = [[where[n] if n >= 0 else -1 for n in query] for query in piece]
            assert plan.slots[0, 0].tolist() == expected
            assert len({where[n] for n in real}) == len(set(real)), "no two blocks share a slot"
            start = plan.stop
        assert table.used == len(expected_lru.slots)


def test_the_fullest_head_of_any_row_decides_where_to_cut():
    table = PageTable([20, 20], 2, SLOTS)
    requested = np.full((2, 4, 3, 2), -1)
    requested[0, 0, :, 0] = 0, 1, 2
    requested[1, 2, :, 0], requested[1, 3, :, 1] = (5, 6, 7), (8, 9, 9)  # two query heads of one key-value head
    assert table.request(requested).stop == 2
    plan = table.request(requested, 2)
    assert plan.stop == 3
    assert [misses.tolist() for misses in plan.misses[:3]] == [[0, 1], [0, 1], [2, 7]]


def test_a_query_that_fits_nowhere_gets_no_slots():
    table = PageTable([9], 1, SLOTS)
    plan = table.request(np.arange(5).reshape(1, 1, 1, 5))
    assert plan.stop == 0
    assert table.used == 0


def test_new_blocks_get_slots_in_every_head_of_their_row():
    table = PageTable([2, 0], 2, SLOTS)
    table.grow(6)
    misses = table.admit(1, 3, 3)
    assert misses.rows.tolist() == [1] * 6
    assert misses.heads.tolist() == [0, 0, 0, 1, 1, 1]
    assert misses.blocks.tolist() == [3, 4, 5] * 2
    requested = np.array([3, 4, 5]).reshape(1, 1, 1, 3)
    plan = table.request(np.tile(requested, (2, 2, 1, 1)))
    assert set(plan.misses.rows.tolist()) == {0}


def test_invalidated_blocks_are_missed_again():
    table, requested = PageTable([9], 1, SLOTS), np.arange(3).reshape(1, 1, 1, 3)
    misses = table.request(requested).misses
    table.invalidate(misses._replace(**{name: x[1:] for name, x in misses._asdict().items()}))
    assert table.request(requested).misses.blocks.tolist() == [1, 2]


@given(data=st.data())
def test_slots_that_are_assigned_in_place_are_those_of_a_request(data):
    """One row after another, of which each may have misses."""
    tables = [PageTable([9, 9], 2, SLOTS) for _ in range(2)]
    for _ in range(data.draw(st.integers(1, 6))):
        drawn = data.draw(st.lists(st.integers(-1, 8), min_size=16, max_size=16))
        requested = np.array(drawn).reshape(2, 4, 1, 2)  # two query heads of each key-value head
        plan = tables[0].request(requested)
        for row in range(2):
            record = np.array([tables[1].addresses(row)], [(name, "i8") for name in FIELDS])
            pages, misses = np.empty((1, 4, 1, 2), np.int64), np.empty((4, 8), np.int64)
            _, missed = assign_in_place(record[0], SLOTS, 2, requested[row : row + 1], pages, misses)
            here = plan.misses.rows == row
            assert (pages[0] == plan.slots[row]).all()
            assert (misses[1:, :missed] == np.array(plan.misses)[1:, here]).all()
    assert tables[0].used == tables[1].used
