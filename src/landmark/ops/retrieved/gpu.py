"""Attention to retrieved blocks on a GPU: a Triton kernel that reads pages in place.

A program serves a tile of queries that chose the same block, so that the block is loaded once for all of them.
Queries are rotated in the kernel: rotated copies, one for each pair of a query and a block, would be written and
read once more than the queries themselves.
"""

# pyright: reportIndexIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false
# ruff: noqa: ANN001, ANN201, SIM108 - the compiler knows the types of arguments, and takes one branch only

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

from landmark.ops.fused.tiles import tanh
from landmark.ops.retrieved.pytorch import of_heads
from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring

if TYPE_CHECKING:
    from landmark.ops.retrieved import Pages

# Triton's interpreter cannot measure time.
_WARPS = (4,) if knobs.runtime.interpret else (4, 8)
_CONFIGS = [triton.Config({}, num_warps=warps, num_stages=2) for warps in _WARPS]


def without_spills(configs: list[triton.Config], arguments: dict[str, Any], **constants: Any) -> list[triton.Config]:
    """The configurations that keep all they work on in registers, as compiled for compute capability 9.0."""
    if constants["M"] * max(constants["WIDTH"], constants["VALUE_WIDTH"]) > 4096:
        return [config for config in configs if config.num_warps == 8]
    if constants["M"] > 1 and arguments["query"].element_size() == 4:
        return [config for config in configs if config.num_warps == 4]
    return configs


@triton.autotune(
    _CONFIGS,
    key=["DIM", "VALUE_DIM", "STRIDE", "M"],
    prune_configs_by={"early_config_prune": without_spills},
    cache_results=True,
)
@triton.jit
def blocks_kernel(
    query,  # [B,H,T,DIM]
    keys,  # [B,Hkv,capacity,STRIDE,DIM]
    values,  # [B,Hkv,capacity,STRIDE,VALUE_DIM]
    table,  # [B,H,T,k], counted as pairs; -1 is no block
    distance,  # [B,H,T,k]
    cos,  # [P,TURNED]
    sin,
    order,  # pairs, those of one block side by side; None where M is 1
    starts,  # where in `order` each tile begins, `pairs` for surplus tiles; None where M is 1
    inside,  # out, [B,H,T,k,VALUE_DIM]
    gates,  # out, [B,H,T,k]
    pairs,
    chosen,  # pairs of a query: k
    pairs_of_head,  # pairs of a key-value head
    capacity,
    scale,
    softcap,
    STYLE: tl.constexpr,  # of the rotation
    TURNED: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,  # DIM and VALUE_DIM as powers of two
    VALUE_WIDTH: tl.constexpr,
    M: tl.constexpr,  # pairs in a tile
    N: tl.constexpr,  # positions of a block taken at once
):
    """Fills `inside` and `gates` of the first pair of a tile and of the next pairs that read the same block."""
    if order is None:
        first = tl.program_id(0).to(tl.int64)
        pair = first + tl.arange(0, M)
        mine = pair < pairs
    else:
        start = tl.load(starts + tl.program_id(0))
        if start >= pairs:
            return
        first = tl.load(order + start)
        index = start + tl.arange(0, M)
        pair = tl.load(order + index, mask=index < pairs, other=0)
        mine = index < pairs
    page = page_of(first, table, pairs_of_head, capacity)
    if order is not None:
        mine = mine & (page_of(pair, table, pairs_of_head, capacity) == page)
    value_dims = tl.arange(0, VALUE_WIDTH)
    out = inside + pair[:, None] * VALUE_DIM + value_dims[None, :]
    stored = mine[:, None] & (value_dims < VALUE_DIM)[None, :]
    if page < 0:
        tl.store(out, tl.zeros((M, VALUE_WIDTH), tl.float32), mask=stored)
        tl.store(gates + pair, tl.full((M,), float("-inf"), tl.float32), mask=mine)
        return
    position = tl.load(distance + pair, mask=mine, other=0)
    x = rotated(query, cos, sin, pair // chosen, position, mine, DIM, WIDTH, STYLE, TURNED)
    highest = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    gate = tl.zeros((M,), tl.float32)
    summed = tl.zeros((M, VALUE_WIDTH), tl.float32)
    for begin in range(0, STRIDE, N):
        at = begin + tl.arange(0, N)
        key = load_rows(keys + page * STRIDE * DIM, at, at < STRIDE, DIM, WIDTH)
        # The landmark's value is never read.
        value = load_rows(values + page * STRIDE * VALUE_DIM, at, at < STRIDE - 1, VALUE_DIM, VALUE_WIDTH)
        scores = capped(products(x, key) * scale, softcap)
        gate += tl.sum(tl.where((at == STRIDE - 1)[None, :], scores, 0.0), 1)
        scores = tl.where((at < STRIDE - 1)[None, :], scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        kept = tl.exp(highest - higher)
        total = total * kept + tl.sum(weights, 1)
        summed = summed * kept[:, None] + averaged(weights, value)
        highest = higher
    tl.store(out, summed / total[:, None], mask=stored)
    tl.store(gates + pair, gate, mask=mine)


@triton.jit
def page_of(pair, table, pairs_of_head, capacity):
    """Which of all heads' pages a pair reads, -1 for none: 64 bits, as pages may hold 2**31 elements or more."""
    page = tl.load(table + pair)
    return tl.where(page < 0, -1, pair // pairs_of_head * capacity + page)


@triton.jit
def rotated(
    query, cos, sin, rows, positions, mine,
    DIM: tl.constexpr, WIDTH: tl.constexpr, STYLE: tl.constexpr, TURNED: tl.constexpr,
):  # fmt: skip
    """Rows [M] of `query` as float32 [M,WIDTH], rotated to `positions` [M] as by `landmark.ops.rotary.Rotation`."""
    dims = tl.arange(0, WIDTH)
    x = load_rows(query, rows, mine, DIM, WIDTH).to(tl.float32)
    if STYLE != "none":
        # Partners are computed, not looked up: what the compiler knows to be contiguous it loads in wide words.
        if STYLE == "half":
            first = dims < TURNED // 2
            partner = tl.where(first, dims + TURNED // 2, dims - TURNED // 2)
        else:
            first = dims % 2 == 0
            partner = dims ^ 1
        turned = mine[:, None] & (dims < TURNED)[None, :]
        y = tl.load(query + rows[:, None] * DIM + partner[None, :], mask=turned, other=0.0).to(tl.float32)
        table = positions[:, None] * TURNED + dims[None, :]
        c = tl.load(cos + table, mask=turned, other=1.0).to(tl.float32)
        s = tl.load(sin + table, mask=turned, other=0.0).to(tl.float32)
        x = x * c + tl.where(first[None, :], -y, y) * s
    return x


@triton.jit
def load_rows(base, rows, real, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """Rows [R,WIDTH] of a matrix [..,DIM], 0 where they are not real and beyond DIM."""
    dims = tl.arange(0, WIDTH)
    mask = real[:, None] & (dims < DIM)[None, :]
    return tl.load(base + rows[:, None] * DIM + dims[None, :], mask=mask, other=0.0)


@triton.jit
def products(x, rows):
    """Inner products [M,N] of float32 x [M,WIDTH] and rows [N,WIDTH]."""
    if x.shape[0] == 1:
        # A matrix product of one query would waste most of its tile.
        result = tl.sum(x * rows.to(tl.float32), 1)[None, :]
    else:
        result = tl.dot(x.to(rows.dtype), tl.trans(rows), input_precision="ieee")
    return result


@triton.jit
def averaged(weights, rows):
    """Sums [M,WIDTH] of rows [N,WIDTH] by float32 weights [M,N]."""
    if weights.shape[0] == 1:
        result = tl.sum(tl.trans(weights) * rows.to(tl.float32), 0)[None, :]
    else:
        result = tl.dot(weights.to(rows.dtype), rows, input_precision="ieee")
    return result


@triton.jit
def capped(scores, softcap):
    """Soft-capped scores, as `Scoring.cap` has them."""
    if softcap is None:
        result = scores
    else:
        result = softcap * tanh(scores / softcap)
    return result


# Up to so many pairs, sorting them should take longer than reading a block for each of them. Estimated from
# bandwidths and launches, as is _SHARED_FROM; neither was measured on a GPU.
_FEW_PAIRS = 4096
_SMALL_TILE, _LARGE_TILE = 16, 64  # pairs
_SHARED_FROM = 16  # pairs for each page, on average, from which large tiles are filled
_TILE_BYTES = 16 << 10  # of queries, and of keys, in a matrix product: larger ones do not fit registers
_TILE_ELEMENTS = 4096  # of keys that a single query meets


def triton_blocks(
    query: Tensor, pages: "Pages", distance: Tensor, rotation: Rotation, scoring: Scoring
) -> tuple[Tensor, Tensor]:
    """See `landmark.ops.retrieved.retrieved_attention`. Half precision also rounds rotated queries and weights."""
    assert pages.keys.is_contiguous(), "keys are read in place"
    assert pages.values.is_contiguous(), "values are read in place"
    shape = (*query.shape[:3], pages.table.shape[-1])
    table, distance = (of_heads(x, shape[1]).expand(shape).contiguous() for x in (pages.table, distance))
    gates = query.new_empty(shape, dtype=torch.float32)
    inside = gates.new_empty(*shape, pages.values.shape[-1])
    pairs = tiles = gates.numel()
    if pairs == 0:
        return inside, gates
    heads, (capacity, stride, dim) = pages.keys.shape[:2].numel(), pages.keys.shape[2:]
    width, value_width = _width(dim), _width(inside.shape[-1])
    widest = max(width, value_width)
    size, order, starts = 1, None, None
    # Queries of a single step hardly ever share blocks, so sorting would not pay.
    if query.shape[2] > 1 and pairs > _FEW_PAIRS:
        size = _pairs(query, widest, pairs / (heads * capacity))
        order, starts = _shared_tiles(table.view(heads, -1), capacity, size)
        tiles = len(starts)
    with torch.cuda.device_of(query):
        blocks_kernel[(tiles,)](
            query.contiguous(),
            pages.keys,
            pages.values,
            table,
            distance,
            rotation.cos.contiguous(),
            rotation.sin.contiguous(),
            order,
            starts,
            inside,
            gates,
            pairs,
            shape[-1],
            pairs // heads,
            capacity,
            scoring.scale_of(query),
            scoring.softcap,
            STYLE=rotation.style,
            TURNED=0 if rotation.style == "none" else rotation.cos.shape[1],
            DIM=dim,
            VALUE_DIM=inside.shape[-1],
            STRIDE=stride,
            WIDTH=width,
            VALUE_WIDTH=value_width,
            M=size,
            N=_positions(query, widest, stride, size),
            enable_fp_fusion=True,
        )
    return inside, gates


def _shared_tiles(table: Tensor, capacity: int, size: int) -> tuple[Tensor, Tensor]:
    """Cuts the pairs of page table `table [N,P]` into tiles of up to `size` that read the same block of the same head.

    Returns the pairs in the order of their blocks, long [N * P], and the index there at which each tile begins,
    the first of them without a block. How many there are is known on the device alone: the list is as long as it
    may get, and surplus tiles begin at N * P.
    """
    heads, pairs = len(table), table.numel()
    first = torch.arange(heads, device=table.device)[:, None] * capacity
    # A stable order keeps queries of one block, and so what is read of them, in sequence.
    ordered, order = torch.where(table < 0, -1, table + first).flatten().sort(stable=True)
    run = torch.searchsorted(ordered, ordered)  # where the pairs of the same block begin
    begins = (torch.arange(pairs, device=table.device) - run) % size == 0
    limit = min(pairs, pairs // size + heads * capacity + 1)
    return order, torch.searchsorted(begins.cumsum(0), torch.arange(1, limit + 1, device=table.device))


def _width(dim: int) -> int:
    return max(16, 1 << (dim - 1).bit_length())


def _pairs(query: Tensor, width: int, sharing: float) -> int:
    """Pairs in a tile, a power of two, where a page is read by `sharing` pairs on average."""
    # Products in float32 keep all operands in registers, which large tiles would overflow.
    if query.dtype == torch.float32 or sharing < _SHARED_FROM:
        return _SMALL_TILE
    return min(_LARGE_TILE, _TILE_BYTES // (width * query.element_size()))


def _positions(query: Tensor, width: int, stride: int, size: int) -> int:
    """Positions of a block taken at once, a power of two, by a tile of `size` pairs."""
    limit = _TILE_ELEMENTS // width if size == 1 else _TILE_BYTES // (width * query.element_size())
    return max(16, min(1 << (stride - 1).bit_length(), limit))
