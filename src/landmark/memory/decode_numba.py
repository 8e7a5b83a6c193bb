"""Decoding on a CPU: what a layer's memory does for a few queries, in two compiled calls.

One writes to the window, the other attends to it, chooses blocks and opens them. With few queries the number of calls
counts, not their size. The loops are those of the separate operations, so results are theirs to the last bit. Keys and
values of 16 bits are read as they lie and computed in float32.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landmark.index.base import ResidentKeys
from landmark.index.keys import rounding_error
from landmark.memory.geometry import Past
from landmark.memory.selection_numba import choose_loop
from landmark.ops.decode_cpu import FEW_QUERIES, attend_loop
from landmark.ops.numba_loops import FLOATS, NARROW, as_array, as_bits, as_float, compiled, in_parts, rotate, rounded
from landmark.ops.retrieved.cpu import join_loop
from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring, working_dtype
from landmark.store.base import ResidentBlocks


def serves_few(*tensors: Tensor) -> bool:
    """Whether the loops serve `tensors`, the first of them [B,H,T,D]: few queries on a CPU, in one dtype."""
    first = tensors[0]
    if first.shape[2] > FEW_QUERIES or first.dtype not in FLOATS:
        return False
    return all(x.device.type == "cpu" and x.dtype == first.dtype for x in tensors)


def write_few(
    key: Tensor,
    value: Tensor,
    buffers: tuple[Tensor, Tensor, Tensor],
    starts: list[int],
    valid: list[int],
    rotation: Rotation,
) -> None:
    """Writes the first `valid[b]` positions of `key`, `value [B,Hkv,T,D]` to the window's buffers from `starts[b]` on.

    The buffers hold keys before rotary, values, and keys rotated to their position.
    """
    arrays = (as_array(x) for x in (key.contiguous(), value.contiguous(), *buffers))
    write = _write_narrow if key.dtype in NARROW else _write
    write(*arrays, *rotation.arrays, np.array(starts), np.array(valid))


@compiled
def _write(
    key: Any, value: Any, keys: Any, values: Any, turned: Any, cos: Any, sin: Any, partner: Any, starts: Any, valid: Any
) -> None:
    for row, head in np.ndindex(key.shape[:2]):
        for step in range(valid[row]):
            place = starts[row] + step
            keys[row, head, place] = key[row, head, step]
            values[row, head, place] = value[row, head, step]
            rotate(key[row, head, step], cos, sin, partner, place, turned[row, head, place])


@compiled
def _write_narrow(
    key: Any, value: Any, keys: Any, values: Any, turned: Any, cos: Any, sin: Any, partner: Any, starts: Any, valid: Any
) -> None:
    """`_write` for 16 bits: keys are rotated in the dtype of the tables, and rounded."""
    width = key.shape[3]
    plain, rotated = np.empty(width, cos.dtype), np.empty(width, cos.dtype)
    for row, head in np.ndindex(key.shape[:2]):
        for step in range(valid[row]):
            place = starts[row] + step
            keys[row, head, place] = key[row, head, step]
            values[row, head, place] = value[row, head, step]
            for i in range(width):
                plain[i] = as_float(key[row, head, step, i])
            rotate(plain, cos, sin, partner, place, rotated)
            for i in range(width):
                turned[row, head, place, i] = as_bits(rotated[i], turned)


def attend_few(
    query: Tensor,
    window: tuple[Tensor, Tensor],
    places: Tensor,
    past: Past,
    landmarks: ResidentKeys,
    resident: ResidentBlocks,
    rotation: Rotation,
    scoring: Scoring,
    sharing: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attention of `query [B,H,T,D]`, before rotary, to the window and to blocks that each query chooses.

    `sharing` heads choose together, those of a key-value head, or each alone. `window` are rotated keys and values
    [B,Hkv,L,D] and `places`, long [B,T], the indices of the queries among them. Returns the output [B,H,T,Dv], the
    blocks by age, long [B,H,T,k], the weights of their gates, of the same shape, and that of local attention [B,H,T];
    weights have the dtype of scores.
    """
    wide = query.to(working_dtype(query)).contiguous().numpy()
    shape = (*query.shape[:3], past.k)
    out = np.empty((*shape[:3], window[1].shape[3]), wide.dtype)
    blocks, gates, own = np.empty(shape, np.int64), np.empty(shape, wide.dtype), np.empty(shape[:3], wide.dtype)
    sinks = np.full(shape[1], -np.inf, wide.dtype)
    if scoring.sinks is not None:
        sinks[:] = scoring.sinks.to(working_dtype(query)).numpy()
    read = (as_array(x) for x in (*window, places))
    kept = (as_array(x) for x in (*landmarks.tensors, resident.keys, resident.values))
    arrays = wide, *rotation.arrays, sinks, *read, *past.arrays, *kept, out, blocks, gates, own
    slack = rounding_error(landmarks.max_norm, query.shape[3], torch.float32)
    numbers = scoring.scale_of(query), scoring.softcap or 0.0, slack, landmarks.modulus, resident.modulus, past.stride
    in_parts(
        lambda start, stop: _attend(*arrays, *numbers, past.stingy, sharing, start, stop),
        query.shape[:2].numel() // sharing,
        size=sharing * query.shape[2] * (max(past.kept) + (past.k + 1) * past.stride),
    )
    attended, chosen, weights, local = (torch.from_numpy(x) for x in (out, blocks, gates, own))
    return attended.to(query.dtype), chosen, weights, local


@compiled
def _attend(
    query: Any, cos: Any, sin: Any, partner: Any, sinks: Any, window_keys: Any, window_values: Any, places: Any,
    positions: Any, bounds: Any, landmarks: Any, first: Any, behind: Any, shared: Any, keys: Any, values: Any,
    out: Any, blocks: Any, gates: Any, own: Any, scale: float, softcap: float, slack: float, landmark_modulus: int,
    block_modulus: int, stride: int, stingy: bool, sharing: int, start: int, stop: int,
) -> None:  # fmt: skip
    """Fills `out [B,H,T,Dv]`, `blocks` and `gates [B,H,T,k]`, `own [B,H,T]` of sets of `sharing` heads, start..stop."""
    rows, heads, length, dim = query.shape
    k = blocks.shape[3]
    scaled = query * query.dtype.type(scale)
    searching = np.empty((rows, heads // sharing, length, dim), np.float32)
    _add_up(query, scale, sharing, searching)
    chosen = np.empty((rows, heads // sharing, length, k), np.int64)
    away = np.empty(chosen.shape, np.int64)
    choose_loop(
        searching, cos, sin, partner, positions, bounds, landmarks, first, behind, shared, chosen, away, slack,
        landmark_modulus, stride, stingy, start * length, stop * length,
    )  # fmt: skip
    local, lse = np.zeros(out.shape, out.dtype), np.empty(query.shape[:3], query.dtype)
    distance, pages = np.empty(blocks.shape, np.int64), np.empty(blocks.shape, np.int64)
    start, stop = start * sharing * length, stop * sharing * length  # of all queries
    attend_loop(
        scaled, cos, sin, partner, window_keys, window_values, places, sinks, local, lse, stride, softcap, start, stop
    )
    for flat in range(start, stop):
        row, head, step = flat // (heads * length), flat // length % heads, flat % length
        for i in range(out.shape[3]):  # the separate operation gives the dtype of the values
            local[row, head, step, i] = rounded(local[row, head, step, i], window_values)
        for j in range(k):
            number = chosen[row, head // sharing, step, j]
            blocks[row, head, step, j], distance[row, head, step, j] = number, away[row, head // sharing, step, j]
            pages[row, head, step, j] = number % block_modulus if number >= 0 else -1
    join_loop(
        scaled, cos, sin, partner, pages, distance, keys, values, local, lse, out, gates, own, softcap, start, stop
    )


@partial(compiled, as_written=True)
def _add_up(query: Any, scale: float, sharing: int, out: Any) -> None:
    """Writes to `out [B,H/sharing,T,D]` the sums of scaled queries [B,H,T,D]: as `selection` adds them, in float32.

    The search is in float32, whatever the model's dtype.
    """
    for row, head, step in np.ndindex(query.shape[:3]):
        total = out[row, head // sharing, step]
        for i in range(query.shape[3]):
            scaled = np.float32(query[row, head, step, i]) * np.float32(scale)
            total[i] = scaled if head % sharing == 0 else total[i] + scaled
