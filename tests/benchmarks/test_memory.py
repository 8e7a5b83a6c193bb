"""Peak memory, by allocations of known sizes."""

import os

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks import machine
from benchmarks.machine import free_bytes, peak_extra_bytes, shortage

CPU = torch.device("cpu")
MB = 1_000_000


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
