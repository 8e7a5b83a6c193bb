"""Work shared among threads: all parts, once each, with the same bits; an error in one of them is raised."""

import os
import signal
import threading
import time

import numpy as np
import pytest
import torch

from landmark.ops import parallel
from landmark.ops.numba_loops import compiled
from landmark.ops.parallel import in_parts, parts_of, share


@pytest.fixture
def without_openmp(monkeypatch):
    monkeypatch.setattr(parallel, "_parallel", None)


@pytest.fixture(params=[1, 2, 5])
def threads(request):
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(1)


@pytest.mark.parametrize(("count", "size", "most"), [(5000, 1, 19), (700, 1, 2), (4, 1000, 4), (200, 1, 1), (0, 1, 1)])
def test_parts_cover_everything_once(threads, count, size, most):
    seen, lock = [], threading.Lock()

    def work(start, stop):
        with lock:
            seen.append((start, stop))

    in_parts(work, count, size)
    assert len(seen) == (min(parallel._PARTS_OF_A_THREAD * threads, most) if threads > 1 else 1)
    assert [n for start, stop in sorted(seen) for n in range(start, stop)] == list(range(count))


def test_parts_without_openmp_cover_everything_once(threads, without_openmp):
    test_parts_cover_everything_once(threads, 5000, 1, 19)
    assert parts_of(1 << 20) == 1


def test_an_error_in_a_part_is_raised(threads):
    def work(start, stop):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        in_parts(work, 1000)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_who_is_interrupted_waits_for_the_other_parts(error):
    """Compiled loops read by address: what lies there may be freed once `in_parts` is left."""
    failed, ended = threading.Event(), []

    def work(start, stop):
        if start == 0:
            failed.set()
            raise error
        failed.wait()
        time.sleep(0.2)
        ended.append(stop)

    torch.set_num_threads(2)
    with pytest.raises(error):
        in_parts(work, 2 * parallel._WORTH_A_THREAD)
    torch.set_num_threads(1)
    assert ended == [2 * parallel._WORTH_A_THREAD]


def test_parts_of_python_run_at_the_same_time():
    torch.set_num_threads(2)
    both = threading.Barrier(2, timeout=60)

    def wait(start, stop):
        both.wait()

    in_parts(wait, 2 * parallel._WORTH_A_THREAD)
    torch.set_num_threads(1)


def test_parts_of_python_run_at_the_same_time_without_openmp(without_openmp):
    test_parts_of_python_run_at_the_same_time()


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_who_is_interrupted_waits_for_the_other_parts_without_openmp(error, without_openmp):
    test_who_is_interrupted_waits_for_the_other_parts(error)


def test_an_interrupt_that_openmp_lost_is_raised(monkeypatch):
    """What a signal raises where a thread enters Python, ctypes prints and drops: that thread does nothing."""
    torch.set_num_threads(2)

    def one_of_two(work, *_):
        work(None)

    monkeypatch.setattr(parallel, "_parallel", one_of_two)
    monkeypatch.setattr(parallel, "_threads_in_region", lambda: 2)
    try:
        with pytest.raises(KeyboardInterrupt):
            in_parts(lambda *_: None, 5000)
        monkeypatch.setattr(parallel, "_threads_in_region", lambda: 1)  # OpenMP may give fewer than it is asked for
        in_parts(lambda *_: None, 5000)
        monkeypatch.setattr(parallel, "_parallel", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            in_parts(lambda *_: None, 5000)
    finally:
        torch.set_num_threads(1)


def test_a_signal_waits_for_threads_of_its_own(without_openmp):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    torch.set_num_threads(2)
    ended = []

    def work(start, stop):
        if start == 0:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.2)
        ended.append(start)

    try:
        with pytest.raises(KeyboardInterrupt):
            in_parts(work, 512)
        assert len(ended) == 2
    finally:
        torch.set_num_threads(1)
        signal.signal(signal.SIGINT, before)


@compiled
def _divide(x, by, out, start, stop):
    if by == 0:
        raise ZeroDivisionError
    for i in range(start, stop):
        out[i] += x[i] // by


@compiled
def _divide_in_parts(x, by, out, parts):
    share(_divide, (x, by, out), len(x), parts)


@pytest.mark.parametrize("parts", [1, 2, 7, 100])
@pytest.mark.parametrize("count", [0, 1, 50])
def test_compiled_parts_cover_everything_once(threads, parts, count):
    x, out = np.arange(count), np.ones(count, np.int64)
    _divide_in_parts(x, 3, out, parts)
    assert out.tolist() == (x // 3 + 1).tolist()


@pytest.mark.parametrize("parts", [1, 4])
def test_an_error_in_a_compiled_part_is_raised(threads, parts):
    with pytest.raises(RuntimeError, match="one of its parts"):
        _divide_in_parts(np.arange(50), 0, np.ones(50, np.int64), parts)
    assert not _divide_in_parts(np.arange(50), 1, np.ones(50, np.int64), parts)


def test_several_threads_share_work_at_a_time(threads):
    """Each thread that calls has a team of its own."""
    found = [np.zeros(1000, np.int64) for _ in range(4)]

    def call(out):
        for _ in range(50):
            _divide_in_parts(np.arange(1000), 3, out, 3)

    callers = [threading.Thread(target=call, args=(out,)) for out in found]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for out in found:
        assert out.tolist() == (np.arange(1000) // 3 * 50).tolist()


def test_little_work_is_not_shared(threads):
    assert parts_of(0) == parts_of(parallel._WORTH_A_PART) == 1
    assert parts_of(10 * parallel._WORTH_A_PART) == threads


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_does_not_wait_for_threads_of_its_parent():
    torch.set_num_threads(2)
    in_parts(lambda start, stop: None, 1000)
    child = os.fork()
    if child == 0:
        seen = []
        in_parts(lambda *span: seen.append(span), 1000)
        numbers = [n for start, stop in sorted(seen) for n in range(start, stop)]
        os._exit(0 if numbers == list(range(1000)) and parts_of(1 << 20) == 1 else 1)
    torch.set_num_threads(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
