from types import SimpleNamespace

import numba
import numpy as np
import pytest
import torch

from landmark.ops import numba_loops as module
from landmark.ops.numba_loops import as_array, as_bits, as_float, compiled, highest_of


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


@compiled
def _highest(scores):
    return highest_of(scores)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("place", [0, 3, 6])
def test_the_highest_is_nan_where_a_score_is(dtype, place):
    scores = np.array([-2, 3, -np.inf, 1, 5, -np.inf, 4], dtype)
    assert _highest(scores) == 5
    assert _highest(np.full(3, -np.inf, dtype)) == -np.inf
    scores[place] = np.nan
    assert np.isnan(_highest(scores))
