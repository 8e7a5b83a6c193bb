"""From tensors to kernels: which kernel, over which grid, in tiles of which size."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton import knobs

from landmark.ops.fused.backward import key_gradients_kernel, query_gradients_kernel
from landmark.ops.fused.backward_long import key_gradients_long_kernel, query_gradients_long_kernel
from landmark.ops.fused.forward import forward_kernel, forward_long_kernel
from landmark.ops.fused.tiles import Problem, steps

# Sizes of tiles that are tried on a device: few, and none that spills much of its registers.
_KINDS = {
    forward_kernel: "forward",
    forward_long_kernel: "forward",
    query_gradients_kernel: "query",
    query_gradients_long_kernel: "query",
    key_gradients_kernel: "key",
    key_gradients_long_kernel: "key",
}

# Elements of a tile of keys, up to which these (M, N, warps, stages) apply. A stage is a tile in flight.
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
# Without matrix units every thread keeps rows and columns whole: many threads and small tiles.
_SINGLE: dict[str, dict[int, _Sizes]] = {
    "forward": {8192: ((32, 64, 8, 1),), 32768: ((16, 32, 8, 1),)},
    "query": {8192: ((16, 64, 8, 1),), 32768: ((16, 32, 8, 1),)},
    "key": {8192: ((32, 64, 16, 1), (16, 64, 8, 1)), 32768: ((16, 32, 8, 1),)},
}


def columns(constants: dict[str, int]) -> int:
    """Columns of a tile of keys; a block of several tiles has a second sum beside it, and counts as wide."""
    return max(64, constants.get("P", 128))


def tilings(kernel: Any, columns: int, width: int, itemsize: int) -> list[triton.Config]:
    """What is tried for a kernel, by the size of its tile of keys and of its elements in bytes."""
    sizes = (_SINGLE if itemsize == 4 else _HALF)[_KINDS[kernel]]
    chosen = next(chosen for limit, chosen in sizes.items() if columns * width <= limit)
    return [triton.Config({"M": m, "N": n}, num_warps=warps, num_stages=stages) for m, n, warps, stages in chosen]


# Larger blocks take several tiles each, and kernels of their own.
_TILE_KEYS = 128
_TILE_BYTES = 32 << 10  # of the keys
_MANY_KEYS = 4096  # from here on tiles are tuned anew: what is best for a short input may not be for a long one
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


def forward(inputs: Inputs, rules: Rules) -> tuple[Tensor, Tensor]:
    """Output like query, and the logarithm of the joint softmax's denominator, float32 [B,H,Tq]."""
    query = inputs.query
    out, lse = like(query), rows_like(query)
    kernel = forward_kernel if fits_a_tile(query, rules) else forward_long_kernel
    at = [steps(x) for x in (query, inputs.key, inputs.value, out)]
    _launch(kernel, _query_grid(query), [*inputs, out, lse, *at], inputs, rules)
    return out, lse


def backward(
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
    """An empty tensor of x's shape, dense, with heads outside or inside rows as they are in x."""
    batch, heads, rows, dim = x.shape
    if x.stride(1) < x.stride(2):
        return x.new_empty(batch, rows, heads, dim).transpose(1, 2)
    return x.new_empty(x.shape)


def rows_like(query: Tensor) -> Tensor:
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
