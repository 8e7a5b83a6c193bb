"""Linear layers for few rows on a CPU, as in decoding: loops compiled by numba that read every weight once.

A product with one row is bound by the memory that weights come from. Weights of 16 bits and of 8 are read as they lie
and multiplied in float32, so that a step takes half and a quarter of the time; the products of BLAS with so few rows
run at half of that speed. A row gets the same bits whatever rows lie beside it.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from landmark.ops.numba_loops import FLOATS, NARROW, as_array, as_float, compiled, exp
from landmark.ops.parallel import parts_of, share
from landmark.ops.scoring import working_dtype

_MOST_ROWS = 32  # up to which these loops are as fast as the products of BLAS
_MOST_ROWS_16_BITS = 4  # processors multiply 16 bits by instructions of their own
_PLAIN = (Tensor, torch.nn.Parameter)
_TILE_WEIGHTS, _TILE_ROWS = 16, 8  # rows of weights and of x that meet while both are in cache

Weights = tuple[Any, Any, Any]  # of a linear layer; no named tuple, with which compiled loops are called more slowly


def weights_of(numbers: Tensor, scales: Tensor | None, bias: Tensor | None) -> Weights:
    """A linear layer as arrays, in place: numbers [N,G,K/G] in groups, a scale for each [N,G], and the bias [N].

    The second is None where numbers are what they are, of one group, and the third is empty where there is no bias.
    """
    groups = 1 if scales is None else scales.shape[1]
    bias = numbers.new_empty(0) if bias is None else bias
    return as_array(numbers.unflatten(1, (groups, -1))), None if scales is None else as_array(scales), as_array(bias)


def most_rows(weight: Tensor) -> int:
    """Rows that the loops serve with this weight."""
    return _MOST_ROWS_16_BITS if weight.dtype in NARROW else _MOST_ROWS


def serves_rows(x: Tensor, weight: Tensor) -> bool:
    """Whether the loops serve `x [..., K]` and the weights of a layer: few rows on a CPU, outside of autograd.

    Tensors of other classes, such as quantized or sharded ones, are not served.
    """
    return (
        not torch.compiler.is_compiling()
        and 0 < x.numel() <= most_rows(weight) * x.shape[-1]
        and not torch.is_grad_enabled()
        and type(x) in _PLAIN
        and type(weight) in _PLAIN
        and x.device.type == weight.device.type == "cpu"
        and x.dtype in FLOATS
        and (weight.dtype == x.dtype or weight.dtype == torch.int8)
        and weight.is_contiguous()
        and not torch.is_autocast_enabled("cpu")
    )


def few_rows_linear(x: Tensor, numbers: Tensor, scales: Tensor | None, bias: Tensor | None) -> Tensor:
    """`torch.nn.functional.linear` for `x [..., K]` of few rows; see `weights_of` and `serves_rows`."""
    weights = weights_of(numbers, scales, bias)
    rows = x.reshape(-1, x.shape[-1]).to(working_dtype(x)).contiguous()
    out = rows.new_empty(len(rows), len(numbers))
    arrays = rows.numpy(), weights, out.numpy()
    _linear_in_parts(*arrays, parts_of(pieces_of(weights)))
    return out.view(*x.shape[:-1], -1).to(x.dtype)


def pieces_of(*weights: Weights) -> int:
    """Small pieces of work that products of few rows with `weights` are, see `parts_of`."""
    return sum(numbers.nbytes for numbers, _, _ in weights) >> 10


@compiled
def _linear_in_parts(x: Any, weights: Any, out: Any, parts: int) -> None:
    share(multiply, (x, weights, out), out.shape[1], parts)


@compiled
def multiply(x: Any, weights: Any, out: Any, start: int, stop: int) -> None:
    """Writes the products of `x [n,K]` to those columns of `out [n,N]` that lie in start..stop."""
    numbers, scales, bias = weights
    groups = x.reshape(len(x), numbers.shape[1], numbers.shape[2])
    begin, end = max(0, start), min(len(numbers), stop)
    for some in range(begin, end, _TILE_WEIGHTS):
        for few in range(0, len(x), _TILE_ROWS):
            for row in range(some, min(some + _TILE_WEIGHTS, end)):
                for step in range(few, min(few + _TILE_ROWS, len(x))):
                    total = x.dtype.type(0)
                    for group in range(numbers.shape[1]):
                        part = x.dtype.type(0)
                        for i in range(numbers.shape[2]):
                            part += as_float(numbers[row, group, i]) * groups[step, group, i]
                        total += _scaled(part, scales, row, group)
                    out[step, row] = total
    if len(bias):  # not in the loops above: LLVM would compile all of them twice
        for step in range(len(x)):
            for row in range(begin, end):
                out[step, row] += as_float(bias[row])


@compiled
def _scaled(part: Any, scales: Any, row: int, group: int) -> Any:
    """Part of a sum, times the scale of its group if `scales [N,G]` is not None."""
    return part if scales is None else part * as_float(scales[row, group])


@compiled
def normalize(x: Any, weight: Any, eps: float, out: Any) -> None:
    """Root-mean-square norm of the rows of `x [n,C]`, times `weight [C]`."""
    for step in range(len(x)):
        square = x.dtype.type(0)
        for i in range(x.shape[1]):
            square += x[step, i] * x[step, i]
        factor = x.dtype.type(1 / np.sqrt(square / x.shape[1] + eps))
        for i in range(x.shape[1]):
            out[step, i] = x[step, i] * factor * as_float(weight[i])


@compiled
def project(x: Any, norm: Any, eps: float, weights: Any, parts: int) -> Any:
    """The products `[n,N]` of the normalized rows of `x [n,C]` with three `weights`, computed in so many parts."""
    first, second, third = weights
    out = (
        np.empty((len(x), len(first[0])), x.dtype),
        np.empty((len(x), len(second[0])), x.dtype),
        np.empty((len(x), len(third[0])), x.dtype),
    )
    share(_project, (x, norm, eps, weights, out), len(first[0]) + len(second[0]) + len(third[0]), parts)
    return out


@compiled
def _project(x: Any, norm: Any, eps: float, weights: Any, out: Any, start: int, stop: int) -> None:
    """Writes columns start..stop of three products side by side, see `project`."""
    normed = np.empty_like(x)
    normalize(x, norm, eps, normed)
    first, second = out[0].shape[1], out[0].shape[1] + out[1].shape[1]
    multiply(normed, weights[0], out[0], start, stop)
    multiply(normed, weights[1], out[1], start - first, stop - first)
    multiply(normed, weights[2], out[2], start - second, stop - second)


@compiled
def behind_attention(
    x: Any, attended: Any, weights: Any, norm: Any, eps: float, gate: Any, up: Any, down: Any, parts: int
) -> Any:
    """The output [n,C] of a decoder layer for `x [n,C]`, whose attention gave `attended [n,K]`, in so many parts.

    `weights` are those of the attention's output.
    """
    between, inner = np.empty_like(x), np.empty((len(x), len(gate[0])), x.dtype)
    share(_add_product, (attended, weights, x, between), x.shape[1], parts)
    share(_gate, (between, norm, eps, gate, up, inner), inner.shape[1], parts)
    out = np.empty_like(x)
    share(_add_product, (inner, down, between, out), x.shape[1], parts)
    return out


@compiled
def _add_product(x: Any, weights: Any, residual: Any, out: Any, start: int, stop: int) -> None:
    """Writes `residual [n,N]` plus the product of `x [n,K]` to columns start..stop of `out [n,N]`."""
    multiply(x, weights, out, start, stop)
    for step in range(len(x)):
        for i in range(start, stop):
            out[step, i] += residual[step, i]


@compiled
def _gate(x: Any, norm: Any, eps: float, gate: Any, up: Any, out: Any, start: int, stop: int) -> None:
    """Writes SiLU(gate) * up of the normalized rows of `x [n,C]` to columns start..stop of `out [n,N]`."""
    normed, gates = np.empty_like(x), np.empty((len(x), out.shape[1]), x.dtype)
    normalize(x, norm, eps, normed)
    multiply(normed, gate, gates, start, stop)
    multiply(normed, up, out, start, stop)
    one = x.dtype.type(1)
    for step in range(len(x)):
        for i in range(start, stop):
            small = exp(-abs(gates[step, i]))
            opened = one / (one + small) if gates[step, i] >= 0 else small / (one + small)
            out[step, i] *= gates[step, i] * opened
