"""Launches of the fused kernels, and the operators of PyTorch made of them: shapes for tracing, and a gradient.

A launch takes the kernels for short or for long blocks, and tiles of the size that was fastest on this device.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton import knobs

from landmark.ops.autograd import second_derivatives_refused
from landmark.ops.fused.backward import key_gradients_kernel, query_gradients_kernel
from landmark.ops.fused.backward_long import key_gradients_long_kernel, query_gradients_long_kernel
from landmark.ops.fused.forward import forward_kernel, forward_long_kernel
from landmark.ops.fused.tiles import Problem, steps

# Tile sizes that are tuned over on a device: few, and none that spills many registers.

_KINDS = {
    forward_kernel: "forward",
    forward_long_kernel: "forward",
    query_gradients_kernel: "query",
    query_gradients_long_kernel: "query",
    key_gradients_kernel: "key",
    key_gradients_long_kernel: "key",
}

# (M, N, warps, stages) by the most elements of a tile of keys for which they apply. A stage is a tile in flight.
_Sizes = tuple[tuple[int, int, int, int], ...]
_HALF: dict[str, dict[int, _Sizes]] = {
    "forward": {
        8192: ((128, 64, 8, 2), (64, 64, 4, 2), (64, 64, 4, 3)),
        16384: ((64, 64, 8, 2), (32, 64, 8, 2)),
        32768: ((32, 64, 8, 1),),
    },
    "query": {
        4096: ((128, 64, 8, 2), (64, 64, 4, 2)),
        8192: ((128, 64, 8, 2), (64, 64, 4, 2), (64, 64, 8, 2)),
        16384: ((64, 64, 8, 2), (32, 64, 8, 2)),
        32768: ((32, 64, 8, 1),),
    },
    "key": {
        4096: ((128, 64, 8, 2), (64, 64, 4, 2), (64, 64, 8, 2)),
        # Not (32, 64, 8, 2), of which Triton 3.6 makes a program that computes wrong gradients of keys on an H200.
        8192: ((128, 64, 8, 2), (128, 64, 8, 1)),
        32768: ((32, 64, 8, 1),),
    },
}
# float32 has no matrix units, so every thread keeps whole rows and columns: many threads and small tiles.
_SINGLE: dict[str, dict[int, _Sizes]] = {
    "forward": {8192: ((32, 64, 8, 1),), 32768: ((16, 32, 8, 1),)},
    "query": {8192: ((16, 64, 8, 1),), 32768: ((16, 32, 8, 1),)},
    "key": {8192: ((32, 64, 16, 1), (16, 64, 8, 1)), 32768: ((16, 32, 8, 1),)},
}


def columns(constants: dict[str, int]) -> int:
    """Columns of a tile of keys; a block of several tiles has a second sum beside it, and counts as wide."""
    return max(64, constants.get("P", 128))


def tilings(kernel: Any, columns: int, width: int, itemsize: int) -> list[triton.Config]:
    """Configurations to tune a kernel over, for a tile of keys [columns, width] of elements of `itemsize` bytes."""
    sizes = (_SINGLE if itemsize == 4 else _HALF)[_KINDS[kernel]]
    chosen = next(chosen for limit, chosen in sizes.items() if columns * width <= limit)
    return [triton.Config({"M": m, "N": n}, num_warps=warps, num_stages=stages) for m, n, warps, stages in chosen]


# Launches.

# Larger blocks take several tiles each, and kernels of their own.
_TILE_KEYS = 128
_TILE_BYTES = 32 << 10  # of the keys
_MANY_KEYS = 4096  # from here on tiles are tuned again: what is best for a short input may not be for a long one
INTERPRETED_TILE = {"M": 16, "N": 16}  # Triton's interpreter cannot measure time


class Inputs(NamedTuple):
    """Tensors of one call, each with a dense last dimension."""

    query: Tensor  # [B,H,Tq,D]
    key: Tensor  # [B,Hkv,Tk,D]
    value: Tensor
    sinks: Tensor | None  # [H]
    labels: Tensor | None  # int64 [B,2,Tk], of positions as queries and as keys
    ranges: Tensor | None  # int64 [B,2,2,blocks], lowest and highest label of either in each block
    seed: Tensor | None  # int64 [], of dropout
    first_query: Tensor  # integers [B], index among the keys of each row's first query


class Rules(NamedTuple):
    """Numbers of one call."""

    block_size: int
    phase: int
    scale: float
    softcap: float | None
    dropout: float


def launch_forward(inputs: Inputs, rules: Rules) -> tuple[Tensor, Tensor]:
    """Output like query, and the logarithm of the joint softmax's denominator, float32 [B,H,Tq]."""
    query = inputs.query
    out, lse = like(query), rows_like(query)
    kernel = forward_kernel if fits_a_tile(query, rules) else forward_long_kernel
    at = [steps(x) for x in (query, inputs.key, inputs.value, out)]
    _launch(kernel, _query_grid(query), [*inputs, out, lse, *at], inputs, rules)
    return out, lse


def launch_backward(
    inputs: Inputs, rules: Rules, grad: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, and delta, the sums of out * grad, float32 [B,H,Tq]."""
    query, key, value, _, *others = inputs
    grads = like(query), like(key), like(value)
    delta = rows_like(query)
    kernels: tuple[Any, Any] = (query_gradients_kernel, key_gradients_kernel)
    per_block: list[Tensor] = []
    blocks = triton.cdiv(key.shape[2] + rules.phase, rules.block_size + 1)
    if not fits_a_tile(query, rules):
        kernels = (query_gradients_long_kernel, key_gradients_long_kernel)
        shape = (*query.shape[:2], blocks, query.shape[2])
        per_block = [query.new_empty(shape, dtype=torch.float32) for _ in range(2)]
    read = [query, key, value, grad, *others]
    at = [steps(x) for x in (query, key, value, grad)]
    query_args = [*read, out, lse, delta, *per_block, grads[0], *at, steps(out), steps(grads[0])]
    _launch(kernels[0], _query_grid(query), query_args, inputs, rules)
    key_args = [*read, lse, delta, *per_block, *grads[1:], *at, steps(grads[1]), steps(grads[2])]
    _launch(kernels[1], _key_grid(key, blocks, rules), key_args, inputs, rules)
    return *grads, delta


def like(x: Tensor) -> Tensor:
    """An empty dense tensor [B,H,T,D], laid out as [B,T,H,D] where `x` is."""
    batch, heads, rows, dim = x.shape
    if x.stride(1) < x.stride(2):
        return x.new_empty(batch, rows, heads, dim).transpose(1, 2)
    return x.new_empty(x.shape)


def rows_like(query: Tensor) -> Tensor:
    """An empty float32 [B,H,Tq]."""
    return query.new_empty(query.shape[:3], dtype=torch.float32)


def fits_a_tile(query: Tensor, rules: Rules) -> bool:
    """Whether a block's softmax can be computed, in forward and in backward, from one tile of keys."""
    keys, width = triton.next_power_of_2(rules.block_size + 1), triton.next_power_of_2(query.shape[3])
    return keys <= _TILE_KEYS and keys * width * query.element_size() <= _TILE_BYTES


_Grid = Callable[[dict[str, Any]], tuple[int]]


def _query_grid(query: Tensor) -> _Grid:
    return lambda tile: (triton.cdiv(query.shape[2], tile["M"]) * query.shape[0] * query.shape[1],)


def _key_grid(key: Tensor, blocks: int, rules: Rules) -> _Grid:
    items = key.shape[0] * key.shape[1]
    if fits_a_tile(key, rules):
        padded = triton.next_power_of_2(rules.block_size + 1)
        return lambda tile: (triton.cdiv(blocks, triton.cdiv(tile["N"], padded)) * items,)
    return lambda tile: (blocks * triton.cdiv(rules.block_size + 1, tile["N"]) * items,)


def _launch(kernel: Any, grid: _Grid, args: list[Any], inputs: Inputs, rules: Rules) -> None:
    query, key = inputs.query, inputs.key
    heads, length, dim = query.shape[1:]
    problem = Problem(
        heads, heads // key.shape[1], length, key.shape[2], rules.phase, rules.scale, rules.softcap, rules.dropout
    )
    stride = rules.block_size + 1
    constants = {
        "DIM": dim,
        "WIDTH": triton.next_power_of_2(dim),
        "STRIDE": stride,
        "MANY": key.shape[2] >= _MANY_KEYS,
    }
    if fits_a_tile(query, rules):
        constants["P"] = triton.next_power_of_2(stride)
    with torch.cuda.device_of(query):
        run(kernel, grid, [*args, problem], constants, query.dtype)


def run(kernel: Any, grid: _Grid, args: list[Any], constants: dict[str, int], dtype: torch.dtype) -> None:
    """Launches a kernel, tuned for these constants."""
    if knobs.runtime.interpret:
        kernel[grid](*args, **constants, **INTERPRETED_TILE)
    else:
        # Triton 3.10 fuses multiplications and additions on request only.
        tuned = _tuned(kernel, columns(constants), constants["WIDTH"], dtype.itemsize)
        tuned[grid](*args, **constants, enable_fp_fusion=True)


@cache
def _tuned(kernel: Any, columns: int, width: int, itemsize: int) -> Any:
    key = [name for name in ("DIM", "WIDTH", "STRIDE", "P", "MANY") if name in kernel.arg_names]
    return triton.autotune(tilings(kernel, columns, width, itemsize), key, cache_results=True)(kernel)


# Operators.

# They take tensors and numbers one by one, as PyTorch's schemas know no records.


@torch.library.custom_op("landmark::fused_forward", mutates_args=())
def forward_op(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor | None,
    labels: Tensor | None,
    ranges: Tensor | None,
    seed: Tensor | None,
    first_query: Tensor,
    block_size: int,
    phase: int,
    scale: float,
    softcap: float | None,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    """Output and lse; the arguments are `Inputs` and `Rules`."""
    inputs = Inputs(query, key, value, sinks, labels, ranges, seed, first_query)
    return launch_forward(inputs, Rules(block_size, phase, scale, softcap, dropout))


@forward_op.register_fake
def _(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return like(query), rows_like(query)


@torch.library.custom_op("landmark::fused_backward", mutates_args=())
def backward_op(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor | None,
    labels: Tensor | None,
    ranges: Tensor | None,
    seed: Tensor | None,
    first_query: Tensor,
    block_size: int,
    phase: int,
    scale: float,
    softcap: float | None,
    dropout: float,
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, and delta; the arguments are `Inputs`, `Rules` and the forward's results."""
    inputs = Inputs(query, key, value, sinks, labels, ranges, seed, first_query)
    return launch_backward(inputs, Rules(block_size, phase, scale, softcap, dropout), grad, out, lse)


@backward_op.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return like(query), like(key), like(value), rows_like(query)


def _refuse(*_: Any) -> Any:
    raise second_derivatives_refused("backend='reference' can be differentiated again, in memory of queries by keys")


backward_op.register_autograd(_refuse)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    tensors = len(Inputs._fields)
    ctx.save_for_backward(*inputs[:tensors], *output)
    ctx.rules = inputs[tensors:]
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, out, lse = ctx.saved_tensors
    inputs = Inputs(*tensors)
    grad = dense_rows(grad)
    query_grad, key_grad, value_grad, delta = backward_op(*inputs, *ctx.rules, grad, out, lse)
    sinks_grad = None
    if inputs.sinks is not None:
        weights = torch.exp(inputs.sinks[:, None].float() - lse)
        sinks_grad = -(weights * delta).sum((0, 2)).to(inputs.sinks.dtype)
    without = [None] * (len(Inputs._fields) - 4 + len(Rules._fields))
    return query_grad, key_grad, value_grad, sinks_grad, *without


def dense_rows(x: Tensor) -> Tensor:
    """x with a dense last dimension, which is what the kernels read."""
    return x if x.stride(-1) == 1 else x.contiguous()


forward_op.register_autograd(_differentiate, setup_context=_save)
