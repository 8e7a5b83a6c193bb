"""Block selection for the queries of a chunk on a GPU: one kernel that rotates, scores and keeps a running top k.

A program serves a tile of queries of one key-value head. It walks over the landmark keys with the best k of each query
in registers, then scores the newest blocks from slots of their own, and writes block numbers by age with the distances
at which they are read. Neither scores nor rotated queries are written to memory.

Reckoned, not measured, for a layer of B rows, H query heads of D dimensions, T queries, n blocks in memory and k opened
ones. In PyTorch (`Retrieval._tiles`, `ExactIndex.search`) the scores take 4 BHTn bytes, the whole numbers that order
them 8 BHTn, each written and read several times, and the rotated queries 4 BHTD (k + 1); tiles of them are some dozens
of launches each. Here it is one launch, which reads queries and writes 16 BHTk bytes of the choice. Every tile reads
all landmark keys of its head, 4 nD bytes, mostly from the second-level cache.
"""

# pyright: reportIndexIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false
# ruff: noqa: ANN001, ANN201 - the compiler knows the types of arguments

import torch
import triton
import triton.language as tl
from torch import Tensor

from landmark.ops.retrieved.gpu import load_rows, rotated
from landmark.ops.rotary import Rotation
from landmark.ops.topk_triton import NOTHING, SOMETHING, inserted, nothing, packed, products

MOST_CHOSEN = 32  # blocks of a query; ordering more of them would not fit registers

_BEHIND = tl.constexpr(1 << 32)  # above all block numbers


@triton.jit
def choose_blocks_kernel(
    query,  # [B,Hkv,rows,DIM]: the queries of all heads of a group, `length` of each
    keys,  # [B,Hkv,capacity,DIM]
    cos,  # [P,TURNED]
    sin,
    positions,  # [B,length]
    bounds,  # [B,3]: where the blocks of slot 0 end, and all blocks; positions left free behind slot 0
    first,  # [B]
    blocks,  # out, [B,Hkv,rows,k]
    distance,  # out, [B,Hkv,rows,k]
    rows,
    length,
    heads,  # Hkv
    capacity,
    modulus,
    stride,
    k,
    STINGY: tl.constexpr,
    STYLE: tl.constexpr,  # of the rotation
    TURNED: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,  # DIM as a power of two
    ROWS: tl.constexpr,  # queries in a tile
    SLOTS: tl.constexpr,  # landmarks in a tile
    KEPT: tl.constexpr,  # k as a power of two
):
    """Writes `blocks` and `distance` of one tile of queries."""
    head = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = row < rows
    position = tl.load(positions + head // heads * length + row % length, mask=real, other=0)
    row = head * rows + row
    oldest = tl.load(first + head // heads)
    upto = tl.load(bounds + head // heads * 3)
    count = tl.load(bounds + head // heads * 3 + 1)
    gap = tl.load(bounds + head // heads * 3 + 2)
    best = nothing(k, ROWS, KEPT)
    x = rotated(query, cos, sin, row, position, real, DIM, WIDTH, STYLE, TURNED)
    for start in range(oldest, upto, SLOTS):
        number = start + tl.arange(0, SLOTS)
        key = load_rows(keys, head * capacity + number % modulus, number < upto, DIM, WIDTH)
        scores = products(x, key.to(tl.float32))
        seen = real[:, None] & (number < upto)[None, :] & (scores > float("-inf"))
        best = inserted(best, tl.where(seen, packed(scores, number[None, :]), NOTHING))
    if STINGY:
        for newest in range(upto, count):
            away = tl.maximum(position - gap - (newest - upto + 1) * stride, 0)
            x = rotated(query, cos, sin, row, away, real, DIM, WIDTH, STYLE, TURNED)
            at = head * capacity + newest % modulus + tl.zeros((1,), tl.int64)
            scores = tl.sum(x * load_rows(keys, at, at >= 0, DIM, WIDTH).to(tl.float32), 1)
            seen = real & (scores > float("-inf"))
            best = inserted(best, tl.where(seen, packed(scores, newest), NOTHING)[:, None])
    kept = tl.arange(0, KEPT)[None, :]
    found = (best >= SOMETHING) & (kept < k)
    number = tl.where(found, best & 0xFFFFFFFF, kept.to(tl.int64) + _BEHIND)  # all different
    rank = tl.sum(tl.where(number[:, None, :] < number[:, :, None], 1, 0), 2)
    begins = number * stride
    if STINGY:
        newer = tl.where(number >= upto, 1, 0)
        begins = (rank + newer) * stride + gap * newer
    out = row[:, None] * k + rank
    stored = real[:, None] & (kept < k)
    tl.store(blocks + out, tl.where(found, number, -1), mask=stored)
    tl.store(distance + out, tl.where(found, position[:, None] - begins, 0), mask=stored)


_TILE_QUERIES = 16  # products in float32 keep all operands in registers, which larger tiles would overflow
_TILE_KEYS = 8192  # elements


def choose_blocks(
    query: Tensor,
    keys: Tensor,
    rotation: Rotation,
    *,
    positions: Tensor,
    bounds: Tensor,
    first: Tensor,
    modulus: int,
    stride: int,
    k: int,
    stingy: bool,
) -> tuple[Tensor, Tensor]:
    """The k best blocks of each query, equal scores to the newest (Mohtashami & Jaggi 2023, sections 3.2 and 3.4).

    Args:
        query: [B,H,T,D], scaled, before rotary.
        keys: [B,Hkv,S,D], contiguous: the landmark key of block a lies at slot `a % modulus`.
        rotation: the tables for `positions`.
        positions: long [B,T], those of the queries.
        bounds: long [B,3], all blocks of a row and, before it, where those that are scored from slot 0 end; with
            `stingy` the blocks between the two, k at most, are scored from slots 1, 2 and so on. Then the positions
            that are left free behind slot 0.
        first: long [B], the oldest block that is searched. Queries see no block beyond the bounds: those that the
            chunk itself completes are not in memory yet.
        stride: positions of a block.
        k: from 1 to MOST_CHOSEN.

    Returns:
        Blocks by age, then -1, and the distances at which they are read, 0 for none: long [B,H,T,k] each. Scores that
        are NaN or -inf choose nothing.
    """
    assert keys.is_contiguous(), "keys are read in place"
    assert 1 <= k <= MOST_CHOSEN, "so many blocks are not ordered in registers"
    heads, capacity, dim = keys.shape[1:]
    items, rows = keys.shape[0] * heads, query.shape[1] // heads * query.shape[2]
    width = max(16, triton.next_power_of_2(dim))
    blocks, distance = (positions.new_empty(*query.shape[:3], k) for _ in range(2))
    if query.numel() == 0:
        return blocks, distance
    with torch.cuda.device_of(query):
        choose_blocks_kernel[(triton.cdiv(rows, _TILE_QUERIES), items)](
            query.contiguous(),
            keys,
            rotation.cos.contiguous(),
            rotation.sin.contiguous(),
            positions.contiguous(),
            bounds.contiguous(),
            first.contiguous(),
            blocks,
            distance,
            rows,
            query.shape[2],
            heads,
            capacity,
            modulus,
            stride,
            k,
            STINGY=stingy,
            STYLE=rotation.style,
            TURNED=0 if rotation.style == "none" else rotation.cos.shape[1],
            DIM=dim,
            WIDTH=width,
            ROWS=_TILE_QUERIES,
            SLOTS=max(16, min(64, _TILE_KEYS // width)),
            KEPT=triton.next_power_of_2(k),
            num_warps=4,  # with 8, heads of 128 do not fit registers
            enable_fp_fusion=True,
        )
    return blocks, distance
