"""Exact top-k search through landmark keys on a GPU: keys are read once per head group, scores are never written.

A first kernel finds the best of each part of the slots, a second one the best of those. A score and a block number make
one integer of 64 bits, ordered by score and, among equal scores, by number. The best are kept by insertion: few of many
slots ever beat the k best of those before them.
"""

# pyright: reportIndexIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false
# ruff: noqa: ANN001, ANN201 - the compiler knows the types of arguments

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

from landmark.ops.triton_support import unsupported_reason

# Every packed score is above SOMETHING; the 32 bits below it are free for empty entries.
NOTHING = tl.constexpr(-(1 << 63))
SOMETHING = tl.constexpr(-(1 << 63) + (1 << 32))
HELD = tl.constexpr((1 << 63) - 1)

# Triton's interpreter cannot measure time.
_WARPS = (4,) if knobs.runtime.interpret else (4, 8)
_CONFIGS = [triton.Config({}, num_warps=warps) for warps in _WARPS]


@triton.autotune(_CONFIGS, key=["DIM", "ROWS", "KEPT"], cache_results=True)
@triton.jit
def best_of_part_kernel(
    query,  # [B,Hkv,rows,DIM]: the queries of all heads of a group
    keys,  # [B,Hkv,capacity,DIM]
    numbers,  # [B,slots]
    found,  # out, int64 [B,Hkv,rows,parts,k]
    rows,
    heads,  # Hkv
    capacity,
    slots,
    parts,
    steps,  # tiles of slots in a part
    k,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,  # DIM as a power of two
    ROWS: tl.constexpr,  # queries in a tile
    SLOTS: tl.constexpr,  # slots in a tile
    KEPT: tl.constexpr,  # k as a power of two
):
    """Writes `found` for one part of the slots and one tile of queries."""
    part, head = tl.program_id(0) % parts, tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) // parts * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, WIDTH)
    real = row < rows
    row = head * rows + row
    mask = real[:, None] & (dims < DIM)[None, :]
    q = tl.load(query + row[:, None] * DIM + dims[None, :], mask=mask, other=0.0).to(tl.float32)
    best = nothing(k, ROWS, KEPT)
    for step in range(part * steps, (part + 1) * steps):
        slot = step * SLOTS + tl.arange(0, SLOTS)
        number = tl.load(numbers + head // heads * slots + slot, mask=slot < slots, other=-1)
        at = (head * capacity + slot)[:, None] * DIM + dims[None, :]
        key = tl.load(keys + at, mask=(number >= 0)[:, None] & (dims < DIM)[None, :], other=0.0).to(tl.float32)
        scores = products(q, key)
        seen = real[:, None] & (number >= 0)[None, :] & (scores > float("-inf"))
        best = inserted(best, tl.where(seen, packed(scores, number[None, :]), NOTHING))
    kept = tl.arange(0, KEPT)
    out = found + (row[:, None] * parts + part) * k + kept[None, :]
    tl.store(out, best, mask=real[:, None] & (kept < k)[None, :])


@triton.jit
def best_of_all_kernel(
    found,  # [rows,candidates]
    scores,  # out, [rows,k]
    numbers,  # out, [rows,k]
    candidates,
    k,
    KEPT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Writes `scores` and `numbers` of one query from the best of all parts, WIDTH candidates at a time."""
    row = tl.program_id(0).to(tl.int64)
    best = nothing(k, 1, KEPT)
    for start in range(0, candidates, WIDTH):
        at = start + tl.arange(0, WIDTH)[None, :]
        new = tl.load(found + row * candidates + at, mask=at < candidates, other=NOTHING)
        # Several parts may have left the same entries empty.
        best = inserted(best, tl.where(new < SOMETHING, NOTHING, new))
    kept = tl.arange(0, KEPT)[None, :]
    real = best >= SOMETHING
    tl.store(scores + row * k + kept, tl.where(real, score_of(best), float("-inf")), mask=kept < k)
    tl.store(numbers + row * k + kept, tl.where(real, best & 0xFFFFFFFF, -1), mask=kept < k)


@triton.jit
def products(query, keys):
    """Inner products [ROWS,SLOTS] of rows of float32."""
    if query.shape[0] < 16:
        # A matrix product of few queries would waste most of its tile.
        result = tl.sum(query[:, None, :] * keys[None, :, :], 2)
    else:
        result = tl.dot(query, tl.trans(keys), input_precision="ieee")
    return result


@triton.jit
def packed(scores, numbers):
    """Integers ordered by score and, among equal scores, by number in 0..2**31-1."""
    bits = tl.where(scores == 0.0, 0.0, scores).to(tl.int32, bitcast=True)  # 0.0 and -0.0 are equal
    # The bits of a negative number grow as it decreases.
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | numbers


@triton.jit
def score_of(best):
    """The scores of packed integers."""
    ordered = (best >> 32).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def nothing(k, ROWS: tl.constexpr, KEPT: tl.constexpr):
    """Rows [ROWS,KEPT] with k empty entries, all different so that one is filled at a time; the rest is never empty."""
    kept = tl.arange(0, KEPT)
    row = tl.where(kept < k, NOTHING + kept.to(tl.int64), HELD)
    return tl.zeros((ROWS, KEPT), tl.int64) + row[None, :]


@triton.jit
def inserted(best, new):
    """The best of each row [R,KEPT] after its lowest was replaced while `new` [R,N] has a higher one."""
    highest, lowest = tl.max(new, 1), tl.min(best, 1)
    while tl.max(tl.where(highest > lowest, 1, 0), 0) > 0:
        replaced = (best == lowest[:, None]) & (highest > lowest)[:, None]
        best = tl.where(replaced, highest[:, None], best)
        new = tl.where(new == highest[:, None], NOTHING, new)
        highest, lowest = tl.max(new, 1), tl.min(best, 1)
    return best


_PROGRAMS = 512  # enough to saturate the memory bandwidth of a large GPU
_LARGEST_TILE = 16  # queries in a tile
_MOST_SLOTS = 64  # in a tile; larger ones do not fit registers
_TILE_KEYS = 8192  # elements
_TILE_PRODUCTS = 16384  # elements of the products of a few queries
_CANDIDATES = 512


def search_landmarks(query: Tensor, keys: Tensor, numbers: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best landmarks of each query; ties go to the highest number (Mohtashami & Jaggi 2023, section 3.2).

    Two launches, however many landmarks there are. Made for few queries, as in decoding: scores are summed in float32
    without matrix units, which would be slow for many queries.

    Args:
        query: [B,H,T,D], rotated and scaled.
        keys: [B,Hkv,S,D], contiguous; query head h scores those of key head h // (H // Hkv).
        numbers: long [B,n], the block whose landmark lies at each of the first n of the S slots, in any order and
            each below 2**31; -1 is never found, and its key is not read.
        k: how many to find.

    Returns:
        Scores, float32, and numbers, long, [B,H,T,k] each, in no order to rely on; -inf and -1 where there are
        fewer than k scores above -inf.

    Raises:
        ValueError: tensors that no Triton kernel serves.
    """
    if reason := unsupported_reason(query, keys):
        raise ValueError(f"search_landmarks {reason}; use matrix products and `landmark.index.topk.top_newest`")
    assert keys.is_contiguous(), "keys are read in place"
    shape = (*query.shape[:3], k)
    if numbers.shape[1] == 0 or query.numel() == 0 or k == 0:
        return query.new_full(shape, -torch.inf, dtype=torch.float32), numbers.new_full(shape, -1)
    heads, capacity, dim = keys.shape[1:]
    items, rows = keys.shape[0] * heads, query.shape[1] // heads * query.shape[2]
    size, width = min(_LARGEST_TILE, _power(rows)), max(16, _power(dim))
    slots = _slots(size, width)
    row_tiles = -(-rows // size)
    tiles = -(-numbers.shape[1] // slots)
    steps = -(-tiles // max(1, _PROGRAMS // (items * row_tiles)))
    parts = -(-tiles // steps)
    found = numbers.new_empty(*query.shape[:3], parts, k)
    scores = query.new_empty(shape, dtype=torch.float32)
    best = numbers.new_empty(shape)
    options: dict[str, Any] = {"KEPT": _power(k), "enable_fp_fusion": True}
    with torch.cuda.device_of(query):
        best_of_part_kernel[(parts * row_tiles, items)](
            query.contiguous(),
            keys,
            numbers.contiguous(),
            found,
            rows,
            heads,
            capacity,
            numbers.shape[1],
            parts,
            steps,
            k,
            DIM=dim,
            WIDTH=width,
            ROWS=size,
            SLOTS=slots,
            **options,
        )
        options["WIDTH"] = min(_CANDIDATES, _power(parts * k))
        best_of_all_kernel[(scores[..., 0].numel(),)](found, scores, best, parts * k, k, **options)
    return scores, best


def _slots(size: int, width: int) -> int:
    """Slots in a tile of `size` queries, a power of two."""
    elements = _TILE_KEYS if size == _LARGEST_TILE else min(_TILE_KEYS, _TILE_PRODUCTS // size)
    return max(16, min(_MOST_SLOTS, elements // width))


def _power(count: int) -> int:
    """The lowest power of two from `count` on."""
    return 1 << (count - 1).bit_length()
