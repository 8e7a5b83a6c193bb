"""Measuring: statistics, the order in which methods take turns, and peak memory by allocations of known sizes."""

import os

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks import machine
from benchmarks.machine import Spread, by_turns, free_bytes, median_ratio, peak_extra_bytes, shortage, spread

CPU = torch.device("cpu")
MB = 1_000_000


def test_spread():
    assert spread([5.0, 1.0, 4.0, 2.0, 3.0]) == Spread(3.0, 2.0, 4.0, 1.0, 5.0)
    assert spread([1.0, 2.0]) == Spread(1.5, 1.25, 1.75, 1.0, 2.0)
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0, 7.0, 7.0)


def test_ratios_are_taken_within_rounds():
    # Medians are 8 and 2, but no round saw a ratio above 4, and half of them 3 or less.
    assert median_ratio([3.0, 20.0, 8.0], [1.0, 10.0, 2.0]) == 3.0


def test_methods_take_turns_and_every_one_begins():
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


# Memory.


def test_the_most_that_is_held_at_once():
    before = torch.zeros(2 * MB, dtype=torch.uint8)

    def call():
        first = torch.zeros(3 * MB, dtype=torch.uint8)
        del first
        second = torch.zeros(4 * MB, dtype=torch.uint8)
        return second + before[:1]  # 8 MB at once, and 5 MB less is too little to be the peak

    assert peak_extra_bytes(call, CPU) == pytest.approx(8 * MB, rel=1e-3)


def test_what_was_there_before_does_not_count():
    x = torch.zeros(MB)
    assert peak_extra_bytes(lambda: x.add_(1), CPU) < 1000


def test_backward_and_the_inside_of_operations_are_seen():
    q, k, v = (torch.randn(1, 2, 256, 16, requires_grad=True) for _ in range(3))

    def call():
        out = scaled_dot_product_attention(q, k, v, is_causal=True)
        return torch.autograd.grad(out.sum(), (q, k, v))

    assert peak_extra_bytes(call, CPU) >= 4 * q.nbytes  # the output and three gradients


def test_errors_come_through_and_stderr_is_given_back(capfd):
    def call():
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        peak_extra_bytes(call, CPU)
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"


def test_shortage_names_the_figures(monkeypatch):
    monkeypatch.setattr(machine, "free_bytes", lambda device: 5 * 10**9)
    assert shortage(4 * 10**9, CPU) is None
    assert shortage(4 * 10**9 + 1, CPU) == "needs 4.0 GB and 1 GB to spare, 5.0 GB are free"


def test_free_bytes_are_some_and_not_beyond_reason():
    assert 1 * MB < free_bytes(CPU) < 2**50
