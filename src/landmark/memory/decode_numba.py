"""Decoding on a CPU: what a layer's memory does for a few queries, in two compiled calls.

One writes to the window, the other attends to it, chooses blocks and opens them. Where blocks may have to be fetched,
that one ends with the choice, and a third opens them. With few queries the number of calls counts, not their size. The
loops are those of the separate operations, so results are theirs to the last bit. Keys and values of 16 bits are read
as they lie and computed in float32.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from landmark.index.base import ResidentKeys
from landmark.index.keys import rounding_error
from landmark.memory.geometry import Past
from landmark.memory.selection_numba import choose_loop
from landmark.ops.decode_cpu import FEW_QUERIES, attend_loop
from landmark.ops.numba_loops import FLOATS, NARROW, as_array, as_bits, as_float, compiled, in_parts, rotate, rounded
from landmark.ops.retrieved import Pages
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


class Searched(NamedTuple):
    """What the first half of `attend_few` leaves to the second, as arrays.

    Scaled queries [B,H,T,D] before rotary, the output of local attention [B,H,T,Dv], the logarithm of its denominator
    [B,H,T], and the blocks that each query chooses, by age, with their distances, [B,H,T,k].
    """

    scaled: Any
    local: Any
    lse: Any
    blocks: Any
    distance: Any


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
    arguments, found = _search_arguments(query, window, places, past, landmarks, rotation, scoring, sharing)
    out, gates, own = _empty(found)
    opened = as_array(resident.keys), as_array(resident.values), resident.modulus, out, gates, own
    in_parts(
        lambda start, stop: _attend(*arguments, *opened, start, stop),
        query.shape[:2].numel() // sharing,
        size=sharing * query.shape[2] * (max(past.kept) + (past.k + 1) * past.stride),
    )
    attended, chosen, weights, local = (torch.from_numpy(x) for x in (out, found.blocks, gates, own))
    return attended.to(query.dtype), chosen, weights, local


def search_few(
    query: Tensor,
    window: tuple[Tensor, Tensor],
    places: Tensor,
    past: Past,
    landmarks: ResidentKeys,
    rotation: Rotation,
    scoring: Scoring,
    sharing: int,
) -> Searched:
    """The first half of `attend_few`, with its arguments: attends to the window and chooses blocks."""
    arguments, found = _search_arguments(query, window, places, past, landmarks, rotation, scoring, sharing)
    in_parts(
        lambda start, stop: _search(*arguments, start, stop),
        query.shape[:2].numel() // sharing,
        size=sharing * query.shape[2] * (max(past.kept) + past.stride),
    )
    return found


def join_few(
    searched: Searched, pieces: Iterable[tuple[slice, Pages]], rotation: Rotation, scoring: Scoring
) -> tuple[Tensor, Tensor, Tensor]:
    """The second half: the output [B,H,T,Dv] in the dtype of scores, the weights of gates and of local attention.

    `pieces` yields the pages of the blocks of some queries at a time; a piece is read before the next is taken.
    """
    whole = _empty(searched)
    for part, (keys, values, table) in pieces:
        some = Searched(*(np.ascontiguousarray(x[:, :, part]) for x in searched))
        filled = _empty(some)
        read = table.contiguous().numpy(), some.distance, as_array(keys), as_array(values), some.local, some.lse
        arrays = some.scaled, *rotation.arrays, *read, *filled
        in_parts(
            lambda start, stop, arrays=arrays: join_loop(*arrays, scoring.softcap or 0.0, start, stop),
            some.lse.size,
            size=some.blocks.shape[3] * keys.shape[3],
        )
        for one, new in zip(whole, filled, strict=True):
            one[:, :, part] = new
    out, gates, own = (torch.from_numpy(x) for x in whole)
    return out, gates, own


def _empty(searched: Searched) -> tuple[Any, Any, Any]:
    """Arrays for the output, the weights of gates and that of local attention."""
    _, local, lse, blocks, _ = searched
    return np.empty_like(local), np.empty(blocks.shape, local.dtype), np.empty_like(lse)


def _search_arguments(
    query: Tensor,
    window: tuple[Tensor, Tensor],
    places: Tensor,
    past: Past,
    landmarks: ResidentKeys,
    rotation: Rotation,
    scoring: Scoring,
    sharing: int,
) -> tuple[tuple[Any, ...], Searched]:
    """The arguments of `_search`, and those of them that it fills."""
    wide = query.to(working_dtype(query)).contiguous().numpy()
    shape, scale = (*query.shape[:3], past.k), scoring.scale_of(query)
    found = Searched(
        wide * wide.dtype.type(scale), np.zeros((*shape[:3], window[1].shape[3]), wide.dtype),
        np.empty(shape[:3], wide.dtype), np.empty(shape, np.int64), np.empty(shape, np.int64),
    )  # fmt: skip
    sinks = np.full(shape[1], -np.inf, wide.dtype)
    if scoring.sinks is not None:
        sinks[:] = scoring.sinks.to(working_dtype(query)).numpy()
    read = (as_array(x) for x in (*window, places))
    kept = (as_array(x) for x in landmarks.tensors)
    slack = rounding_error(landmarks.max_norm, query.shape[3], torch.float32)
    numbers = scale, scoring.softcap or 0.0, slack, landmarks.modulus, past.stride, past.stingy, sharing
    return (wide, *rotation.arrays, sinks, *read, *past.arrays, *kept, *found, *numbers), found


@compiled
def _search(
    query: Any, cos: Any, sin: Any, partner: Any, sinks: Any, window_keys: Any, window_values: Any, places: Any,
    positions: Any, bounds: Any, landmarks: Any, first: Any, behind: Any, shared: Any, scaled: Any, local: Any,
    lse: Any, blocks: Any, distance: Any, scale: float, softcap: float, slack: float, modulus: int, stride: int,
    stingy: bool, sharing: int, start: int, stop: int,
) -> None:  # fmt: skip
    """Fills `local`, which is 0 before, `lse`, `blocks` and `distance` of sets of `sharing` heads, start..stop."""
    rows, heads, length, dim = query.shape
    searching = np.empty((rows, heads // sharing, length, dim), np.float32)
    _add_up(query, scale, sharing, searching)
    chosen = np.empty((rows, heads // sharing, length, blocks.shape[3]), np.int64)
    away = np.empty(chosen.shape, np.int64)
    choose_loop(
        searching, cos, sin, partner, positions, bounds, landmarks, first, behind, shared, chosen, away, slack,
        modulus, stride, stingy, start * length, stop * length,
    )  # fmt: skip
    start, stop = start * sharing * length, stop * sharing * length  # of all queries
    attend_loop(
        scaled, cos, sin, partner, window_keys, window_values, places, sinks, local, lse, stride, softcap, start, stop
    )
    for flat in range(start, stop):
        row, head, step = flat // (heads * length), flat // length % heads, flat % length
        for i in range(local.shape[3]):  # the separate operation gives the dtype of the values
            local[row, head, step, i] = rounded(local[row, head, step, i], window_values)
        for j in range(blocks.shape[3]):
            blocks[row, head, step, j] = chosen[row, head // sharing, step, j]
            distance[row, head, step, j] = away[row, head // sharing, step, j]


@compiled
def _attend(
    query: Any, cos: Any, sin: Any, partner: Any, sinks: Any, window_keys: Any, window_values: Any, places: Any,
    positions: Any, bounds: Any, landmarks: Any, first: Any, behind: Any, shared: Any, scaled: Any, local: Any,
    lse: Any, blocks: Any, distance: Any, scale: float, softcap: float, slack: float, modulus: int, stride: int,
    stingy: bool, sharing: int, keys: Any, values: Any, block_modulus: int, out: Any, gates: Any, own: Any,
    start: int, stop: int,
) -> None:  # fmt: skip
    """`_search`, and `out [B,H,T,Dv]`, `gates [B,H,T,k]` and `own [B,H,T]` of sets of `sharing` heads, start..stop."""
    _search(
        query, cos, sin, partner, sinks, window_keys, window_values, places, positions, bounds, landmarks, first,
        behind, shared, scaled, local, lse, blocks, distance, scale, softcap, slack, modulus, stride, stingy, sharing,
        start, stop,
    )  # fmt: skip
    queries = sharing * query.shape[2]
    pages = np.empty(blocks.shape, np.int64)
    numbers, slots = blocks.reshape(-1), pages.reshape(-1)
    for i in range(start * queries * blocks.shape[3], stop * queries * blocks.shape[3]):
        slots[i] = numbers[i] % block_modulus if numbers[i] >= 0 else -1
    join_loop(
        scaled, cos, sin, partner, pages, distance, keys, values, local, lse, out, gates, own, softcap,
        start * queries, stop * queries,
    )  # fmt: skip


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
