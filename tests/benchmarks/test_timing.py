"""Statistics, and the order in which contenders take turns."""

import pytest
import torch

from benchmarks.machine import Spread, by_turns, median_ratio, spread


def test_spread():
    assert spread([5.0, 1.0, 4.0, 2.0, 3.0]) == Spread(3.0, 2.0, 4.0, 1.0, 5.0)
    assert spread([1.0, 2.0]) == Spread(1.5, 1.25, 1.75, 1.0, 2.0)
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0, 7.0, 7.0)


def test_ratios_are_taken_within_rounds():
    # Medians are 8 and 2, but no round saw a ratio above 4, and half of them 3 or less.
    assert median_ratio([3.0, 20.0, 8.0], [1.0, 10.0, 2.0]) == 3.0


def test_contenders_take_turns_and_every_one_begins():
    order: list[str] = []
    rounds: list[int] = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    taken = by_turns(calls, 4, torch.device("cpu"), rounds.append)
    assert "".join(order) == "abcbcacababc"
    assert rounds == [1, 1, 1, 1]
    assert {name: len(times) for name, times in taken.items()} == {"a": 4, "b": 4, "c": 4}
    assert all(seconds >= 0 for times in taken.values() for seconds in times)


@pytest.mark.parametrize("rounds", [1, 3])
def test_nobody_to_time(rounds):
    ticks: list[int] = []
    assert by_turns({}, rounds, torch.device("cpu"), ticks.append) == {}
    assert len(ticks) == rounds
