import os
import threading
import time
from types import SimpleNamespace

import numba
import numpy as np
import pytest
import torch

from landmark.ops import numba_loops as module
from landmark.ops.numba_loops import as_array, as_bits, as_float, compiled, in_parts


def double(x):
    x *= 2


def test_compiles_where_nothing_can_be_kept(monkeypatch):
    def njit(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function 'double': no locator available")
        return numba.njit(**options)

    monkeypatch.setattr(module, "numba", SimpleNamespace(njit=njit))
    x = np.ones(3)
    compiled(double)(x)
    assert x.tolist() == [2, 2, 2]


@pytest.mark.parametrize(("threads", "count", "size", "parts"), [(1, 5000, 1, 1), (3, 700, 1, 2), (3, 4, 1000, 3)])
def test_parts_cover_everything_once(monkeypatch, threads, count, size, parts):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    seen, lock = [], threading.Lock()

    def work(start, stop):
        with lock:
            seen.append((start, stop))

    in_parts(work, count, size)
    assert len(seen) == parts
    assert [n for start, stop in sorted(seen) for n in range(start, stop)] == list(range(count))


def test_an_error_in_a_part_is_raised(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def work(start, stop):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        in_parts(work, 1000)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_who_is_interrupted_waits_for_the_other_parts(error, monkeypatch):
    """Compiled loops read by address: what lies there may be freed once `in_parts` is left."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    failed, ended = threading.Event(), []

    def work(start, stop):
        if start == 0:
            failed.set()
            raise error
        failed.wait()
        time.sleep(0.2)
        ended.append(stop)

    with pytest.raises(error):
        in_parts(work, 1000)
    assert ended == [1000]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_makes_threads_of_its_own(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    in_parts(lambda start, stop: None, 1000)
    assert module._pool.cache_info().currsize
    child = os.fork()
    if child == 0:
        os._exit(module._pool.cache_info().currsize)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_number_of_16_bits_is_read(dtype):
    @compiled
    def widen(numbers, out):
        for i in range(len(numbers)):
            out[i] = as_float(numbers[i])

    numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    out = torch.empty(len(numbers))
    widen(as_array(numbers), out.numpy())
    torch.testing.assert_close(out, numbers.float(), atol=0, rtol=0, equal_nan=True)
    assert torch.equal(out.signbit(), numbers.float().signbit())


@compiled
def rounded(x, out):
    for i in range(len(x)):
        out[i] = as_bits(x[i], out)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounds_to_16_bits_as_torch_does(dtype):
    """Any bits, all numbers of few bits, and the ones halfway between two."""
    few = torch.arange(1 << 16, dtype=torch.int64) << 16
    numbers = torch.cat((torch.randint(1 << 32, (100_000,)), few, few + (1 << 15), few + (1 << 12)))
    x = numbers.to(torch.uint32).view(torch.float32)
    out, expected = torch.empty(len(x), dtype=dtype), x.to(dtype)
    rounded(x.numpy(), as_array(out))
    nan = x.isnan()
    assert torch.equal(out[~nan], expected[~nan])
    assert out[nan].isnan().all()
