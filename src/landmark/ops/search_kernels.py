"""The kernels of `search_landmarks`: the best of each part of the slots, then the best of those.

A score and a block number make one integer of 64 bits, whose order is that of scores and, among equals, of
numbers. The best are found by insertion: few of many slots ever beat the k best of those before them.
"""

# pyright: reportIndexIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false
# ruff: noqa: ANN001, ANN201 - the compiler knows the types of arguments

import triton
import triton.language as tl
from triton import knobs

# No score comes with a number below this: 32 bits below it are free for places that hold nothing.
NOTHING = tl.constexpr(-(1 << 63))
SOMETHING = tl.constexpr(-(1 << 63) + (1 << 32))
HELD = tl.constexpr((1 << 63) - 1)

# The interpreter has no times to choose by.
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
    """Fills `found` for one part of the slots and one tile of queries."""
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
    """Fills `scores` and `numbers` of one query from what was found in all parts, WIDTH candidates at a time."""
    row = tl.program_id(0).to(tl.int64)
    best = nothing(k, 1, KEPT)
    for start in range(0, candidates, WIDTH):
        at = start + tl.arange(0, WIDTH)[None, :]
        new = tl.load(found + row * candidates + at, mask=at < candidates, other=NOTHING)
        # Several parts may have left the same places empty.
        best = inserted(best, tl.where(new < SOMETHING, NOTHING, new))
    kept = tl.arange(0, KEPT)[None, :]
    real = best >= SOMETHING
    tl.store(scores + row * k + kept, tl.where(real, score_of(best), float("-inf")), mask=kept < k)
    tl.store(numbers + row * k + kept, tl.where(real, best & 0xFFFFFFFF, -1), mask=kept < k)


@triton.jit
def products(query, keys):
    """Inner products [ROWS,SLOTS] of rows of float32."""
    if query.shape[0] < 16:
        # Few queries would leave a matrix product nearly empty.
        result = tl.sum(query[:, None, :] * keys[None, :, :], 2)
    else:
        result = tl.dot(query, tl.trans(keys), input_precision="ieee")
    return result


@triton.jit
def packed(scores, numbers):
    """Integers in the order of scores and, among equals, of numbers in 0..2**31-1."""
    bits = tl.where(scores == 0.0, 0.0, scores).to(tl.int32, bitcast=True)  # 0.0 and -0.0 are equal
    # The bits of a negative number grow as it falls.
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | numbers


@triton.jit
def score_of(best):
    ordered = (best >> 32).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def nothing(k, ROWS: tl.constexpr, KEPT: tl.constexpr):
    """Rows [ROWS,KEPT] with k empty places, all different so that one is filled at a time; the rest is never empty."""
    kept = tl.arange(0, KEPT)
    row = tl.where(kept < k, NOTHING + kept.to(tl.int64), HELD)
    return tl.zeros((ROWS, KEPT), tl.int64) + row[None, :]


@triton.jit
def inserted(best, new):
    """The best of each row [R,KEPT] with the lowest replaced as long as `new` [R,N] holds something higher."""
    highest, lowest = tl.max(new, 1), tl.min(best, 1)
    while tl.max(tl.where(highest > lowest, 1, 0), 0) > 0:
        replaced = (best == lowest[:, None]) & (highest > lowest)[:, None]
        best = tl.where(replaced, highest[:, None], best)
        new = tl.where(new == highest[:, None], NOTHING, new)
        highest, lowest = tl.max(new, 1), tl.min(best, 1)
    return best
