"""Linear layers for few rows: those of PyTorch, over weights of any of the dtypes."""

import pytest
import torch
from torch.nn.functional import linear

from landmark.ops.few_rows import few_rows_linear, most_rows, serves_rows

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("shape", "outputs", "has_bias"), [((1, 1, 40), 7, True), ((2, 2, 33), 129, False)])
def test_few_rows_give_what_many_give(dtype, shape, outputs, has_bias):
    x, weight = torch.randn(shape, dtype=dtype), torch.randn(outputs, shape[-1], dtype=dtype)
    bias = torch.randn(outputs, dtype=dtype) if has_bias else None
    found, expected = few_rows_linear(x, weight, None, bias), linear(x, weight, bias)
    torch.testing.assert_close(found, expected, atol=TOLERANCE[dtype] * 10, rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("groups", [1, 4])
def test_scales_belong_to_groups(groups):
    x, numbers = torch.randn(3, 32), torch.randint(-127, 128, (5, 32), dtype=torch.int8)
    scales, bias = torch.rand(5, groups), torch.randn(5)
    weight = (numbers.view(5, groups, -1) * scales[..., None]).view(5, 32)
    found = few_rows_linear(x, numbers, scales, bias)
    torch.testing.assert_close(found, linear(x, weight, bias), atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int8])
def test_a_row_gets_the_same_bits_whatever_lies_beside_it(dtype):
    weight = torch.randint(-127, 128, (40, 70)).to(dtype)
    x = torch.randn(most_rows(weight), 70, dtype=torch.float32 if dtype == torch.int8 else dtype)
    alone = torch.cat([few_rows_linear(row, weight, None, None) for row in x.split(1)])
    for rows in (2, 9, len(x)):
        assert torch.equal(few_rows_linear(x[-rows:], weight, None, None), alone[-rows:])


class Wrapped(torch.Tensor):
    """Stands for weights that are not what their dtype says, as those of quantization libraries."""


@torch.no_grad()
def test_what_is_served():
    weight = torch.randn(3, 8)
    x = torch.randn(most_rows(weight), 8)
    assert serves_rows(x, weight)
    assert serves_rows(x.bfloat16(), weight.to(torch.int8))
    assert not serves_rows(torch.randn(most_rows(weight) + 1, 8), weight)
    assert not serves_rows(x[:0], weight)
    assert not serves_rows(x, weight.bfloat16())
    assert not serves_rows(x, torch.randn(8, 3).T)
    assert not serves_rows(x, weight.as_subclass(Wrapped))
    with torch.autocast("cpu"):
        assert not serves_rows(x, weight)
    with torch.enable_grad():
        assert not serves_rows(x, weight)
