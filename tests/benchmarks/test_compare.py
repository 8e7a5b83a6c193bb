"""Rows: figures from known work, reasons from those who cannot run, defects not hidden."""

import pytest

from benchmarks import compare as module
from benchmarks.compare import FOREIGN_REFUSALS, Method, Task, compare
from benchmarks.roofline import Work

TASK = Task({"bench": "test"}, baseline="slow", units=2, tokens=10)


def refuse(error: Exception):
    def call():
        raise error

    return call


@pytest.fixture
def clock(monkeypatch):
    """Calls of `slow` take 4 seconds, those of `fast` 1."""
    taken = {"slow": [4.0] * 3, "fast": [1.0] * 3}
    monkeypatch.setattr(module, "by_turns", lambda calls, *_: {name: taken[name] for name in calls})
    monkeypatch.setattr(module, "peak_extra_bytes", lambda call, device: 123)


def test_figures(machine, clock):
    methods = [
        Method("fast", lambda: None, work=lambda: Work(100, 20), kept_bytes=lambda: 7),
        Method("slow", lambda: None, work=lambda: Work(100, 20)),
    ]
    fast, slow = compare(machine, TASK, methods, 3, lambda n: None)
    assert (fast["median_s"], slow["median_s"]) == (0.5, 2.0)
    assert (fast["ratio"], slow["ratio"], fast["rounds"]) == (0.25, 1.0, 3)
    assert (fast["tokens_per_s"], fast["peak_extra_bytes"], fast["kept_bytes"]) == (20.0, 123, 7)
    # 100 operations take 0.1 s and 20 bytes 0.2 s: the larger is the roofline.
    assert (fast["compute_bound_s"], fast["memory_bound_s"], fast["times_roofline"]) == (0.1, 0.2, 2.5)


def test_who_cannot_run_says_why(machine, clock):
    methods = [
        Method("fast", lambda: None, work=lambda: Work(1, 1)),
        Method("slow", refuse(ValueError("not  on\nMondays"))),
        Method("compiled", refuse(RuntimeError("no compiler")), refusals=FOREIGN_REFUSALS),
        Method("absent", missing="needs 4 GB"),
    ]
    rows = compare(machine, TASK, methods, 3, lambda n: None)
    reasons = [None, "ValueError: not on Mondays", "RuntimeError: no compiler", "needs 4 GB"]
    assert [row["skipped"] for row in rows] == reasons
    assert rows[0]["ratio"] is None  # the baseline did not run
    assert all(list(row) == list(rows[0]) for row in rows)


def test_a_defect_of_ours_is_not_a_skipped_row(machine):
    with pytest.raises(RuntimeError, match="a defect"):
        compare(machine, TASK, [Method("ours", refuse(RuntimeError("a defect")))], 1, lambda n: None)


def test_every_method_warms_up_once_and_is_measured_for_memory_once(machine):
    calls: list[int] = []
    ticks: list[int] = []
    only = Method("slow", lambda: calls.append(1), work=lambda: Work(1, 1))
    compare(machine, TASK, [only], 3, ticks.append)
    assert len(calls) == 1 + 3 + 1
    assert len(ticks) == 1 + 3
