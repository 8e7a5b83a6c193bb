"""Intervals against printed tables and sums done by hand."""

import math

import pytest

from reproduce.tables.intervals import over_seeds, student_t


@pytest.mark.parametrize(
    ("freedom", "printed"),
    [
        (1, 12.7062),
        (2, 4.3027),
        (3, 3.1824),
        (4, 2.7764),
        (5, 2.5706),
        (9, 2.2622),
        (10, 2.2281),
        (30, 2.0423),
        (39, 2.0227),
        (100, 1.9840),
        (1000, 1.9623),
    ],
)
def test_student_t_is_the_printed_one(freedom, printed):
    assert student_t(freedom) == pytest.approx(printed, abs=5.1e-5)


def test_over_seeds_uses_their_scatter_alone():
    # Mean 3, deviations -1, 0, 1: standard deviation 1, of the mean 1 / sqrt(3); 2 degrees of freedom.
    found = over_seeds([2.0, 3.0, 4.0], error=99.0, samples=10)
    assert (found.value, found.seeds, found.known) == (3.0, 3, True)
    assert found.high - 3 == pytest.approx(4.30265 / math.sqrt(3), abs=1e-5)
    assert 3 - found.low == pytest.approx(found.high - 3)


def test_one_seed_has_the_interval_of_its_windows():
    found = over_seeds([2.0], error=0.5, samples=10)
    assert (found.low, found.high) == pytest.approx((2 - 2.26216 * 0.5, 2 + 2.26216 * 0.5), abs=1e-5)
    assert found.seeds == 1


@pytest.mark.parametrize(("error", "samples"), [(None, 10), (0.5, 1)])
def test_nothing_known_is_an_endless_interval(error, samples):
    found = over_seeds([2.0], error, samples)
    assert (found.low, found.high, found.known) == (-math.inf, math.inf, False)


def test_rising_functions_map_the_ends():
    found = over_seeds([1.0, 1.0], None, 0).map(math.exp)
    assert (found.value, found.low, found.high) == (math.e, math.e, math.e)
