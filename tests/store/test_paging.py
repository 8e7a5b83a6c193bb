from collections import OrderedDict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from landmark.store.lru import Paging

SLOTS = 4


class Model:
    """The slots of one head: block numbers from the one wanted least recently to the newest."""

    def __init__(self) -> None:
        self.slots: OrderedDict[int, None] = OrderedDict()

    def want(self, numbers: list[int]) -> list[int]:
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
def test_a_head_keeps_what_was_wanted_last(chunks):
    paging, model = Paging([12], 1, SLOTS), Model()
    where: dict[int, int] = {}
    for queries in chunks:
        wanted, start = np.array(queries).reshape(1, 1, -1, 3), 0
        for piece in split(queries):
            plan = paging.plan(wanted, start)
            assert plan.stop == start + len(piece)
            real = [n for query in piece for n in query if n >= 0]
            assert plan.misses.numbers.tolist() == model.want(real)
            assert plan.distinct == len(set(real))
            where |= dict(zip(plan.misses.numbers.tolist(), plan.misses.places.tolist(), strict=True))
            expected = [[where[n] if n >= 0 else -1 for n in query] for query in piece]
            assert plan.places[0, 0].tolist() == expected
            assert len({where[n] for n in real}) == len(set(real)), "no two blocks share a slot"
            start = plan.stop
        assert paging.held == len(model.slots)


def test_the_fullest_head_of_any_row_decides_where_to_cut():
    paging = Paging([20, 20], 2, SLOTS)
    wanted = np.full((2, 4, 3, 2), -1)
    wanted[0, 0, :, 0] = 0, 1, 2
    wanted[1, 2, :, 0], wanted[1, 3, :, 1] = (5, 6, 7), (8, 9, 9)  # two query heads of one key-value head
    assert paging.plan(wanted).stop == 2
    plan = paging.plan(wanted, 2)
    assert plan.stop == 3
    assert [misses.tolist() for misses in plan.misses[:3]] == [[0, 1], [0, 1], [2, 7]]


def test_a_query_that_fits_nowhere_gets_nothing():
    paging = Paging([9], 1, SLOTS)
    plan = paging.plan(np.arange(5).reshape(1, 1, 1, 5))
    assert plan.stop == 0
    assert paging.held == 0


def test_new_blocks_get_slots_in_every_head_of_their_row():
    paging = Paging([2, 0], 2, SLOTS)
    paging.grow(6)
    misses = paging.admit(1, 3, 3)
    assert misses.rows.tolist() == [1] * 6
    assert misses.heads.tolist() == [0, 0, 0, 1, 1, 1]
    assert misses.numbers.tolist() == [3, 4, 5] * 2
    wanted = np.array([3, 4, 5]).reshape(1, 1, 1, 3)
    plan = paging.plan(np.tile(wanted, (2, 2, 1, 1)))
    assert set(plan.misses.rows.tolist()) == {0}


def test_forgotten_blocks_are_missed_again():
    paging, wanted = Paging([9], 1, SLOTS), np.arange(3).reshape(1, 1, 1, 3)
    misses = paging.plan(wanted).misses
    paging.forget(misses._replace(**{name: x[1:] for name, x in misses._asdict().items()}))
    assert paging.plan(wanted).misses.numbers.tolist() == [1, 2]
