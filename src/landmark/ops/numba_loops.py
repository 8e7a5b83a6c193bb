"""Loops over arrays on a CPU, compiled by numba and run on as many threads as torch uses."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import torch
from numba import types
from numba.extending import overload
from torch import Tensor

_WORTH_A_THREAD = 256  # small pieces of work; starting a thread for fewer takes longer than the work


def compiled(loop: Callable[..., Any], *, without_nan: bool = False, as_written: bool = False) -> Callable[..., Any]:
    """Decorator: compiles a loop over arrays at its first call, cached on disk where that can be written.

    Sums may be reordered, as in any matrix product; with `as_written` they are not, and the loop gives the same bits
    wherever it is inlined. Infinities follow IEEE rules, and so does NaN unless `without_nan` promises that there is
    none.
    """
    flags = set() if as_written else {"reassoc", "contract", "nsz"} | ({"nnan"} if without_nan else set())
    try:
        return numba.njit(cache=True, nogil=True, fastmath=flags)(loop)
    except RuntimeError:  # no cache folder can be written: every process compiles again
        return numba.njit(nogil=True, fastmath=flags)(loop)


def in_parts(work: Callable[[int, int], None], count: int, size: int = 1) -> None:
    """Calls `work(start, stop)` on equal parts of 0..count, one for each of torch's threads.

    `size` is how many small pieces of work each of the `count` is, such as queries that meet a block. `work` must
    release the GIL, as `compiled` loops do.
    """
    threads = min(torch.get_num_threads(), count, count * size // _WORTH_A_THREAD)
    if threads < 2:
        work(0, count)
        return
    bounds = [count * part // threads for part in range(threads + 1)]
    parts = [_pool(threads).submit(work, *span) for span in pairwise(bounds)]
    for part in parts:
        part.result()


def as_array(x: Tensor) -> np.ndarray[Any, Any]:
    """A tensor for compiled loops, in place: numpy has no bfloat16 and numba no float16, so both are given as bits."""
    if x.dtype == torch.bfloat16:
        return x.detach().view(torch.uint16).numpy()
    return (x.view(torch.int16) if x.dtype == torch.float16 else x).detach().numpy()


def as_float(x: Any) -> Any:
    """An entry of an array of `as_array` as a number, 16 bits as a float32; in compiled code only."""
    raise NotImplementedError


@overload(as_float, inline="always", strict=False)
def _as_float(x: Any) -> Any:
    if x == types.uint16:  # bfloat16: the upper half of a float32
        return lambda x: np.uint32(np.uint32(x) << 16).view(np.float32)
    if x == types.int16:
        return lambda x: _from_float16(np.uint32(np.uint16(x)))
    return lambda x: x


@compiled
def inner_products(rows: Any, x: Any, out: Any) -> None:
    """Writes to `out [n]` the inner products of the first n `rows [.., D]` with `x [D]`, four rows per load of x."""
    zero = x.dtype.type(0)
    whole = out.shape[0] // 4 * 4
    for j in range(0, whole, 4):
        a, b, c, d = zero, zero, zero, zero
        for i in range(x.shape[0]):
            a += as_float(rows[j, i]) * x[i]
            b += as_float(rows[j + 1, i]) * x[i]
            c += as_float(rows[j + 2, i]) * x[i]
            d += as_float(rows[j + 3, i]) * x[i]
        out[j], out[j + 1], out[j + 2], out[j + 3] = a, b, c, d
    for j in range(whole, out.shape[0]):
        a = zero
        for i in range(x.shape[0]):
            a += as_float(rows[j, i]) * x[i]
        out[j] = a


@compiled
def add_weighted(weights: Any, rows: Any, out: Any) -> None:
    """Adds to `out [D]` the first n `rows [..,D]`, each times its weight `[n]`, four rows per load of out."""
    whole = weights.shape[0] // 4 * 4
    for j in range(0, whole, 4):
        for i in range(out.shape[0]):
            out[i] += (
                weights[j] * as_float(rows[j, i])
                + weights[j + 1] * as_float(rows[j + 1, i])
                + weights[j + 2] * as_float(rows[j + 2, i])
                + weights[j + 3] * as_float(rows[j + 3, i])
            )
    for j in range(whole, weights.shape[0]):
        for i in range(out.shape[0]):
            out[i] += weights[j] * as_float(rows[j, i])


@compiled
def soft_cap(scores: Any, softcap: float) -> None:
    """Soft-caps `scores [n]` in place as `Scoring.cap` does; a `softcap` of 0 is none."""
    if softcap:
        for j in range(scores.shape[0]):
            scores[j] = softcap * np.tanh(scores[j] / softcap)


@compiled
def gated_softmax(scores: Any, gate: Any) -> None:
    """Turns scores of the ordinary tokens of a block into their weights, in place: their softmax times the gate."""
    highest = scores.max()
    total = scores.dtype.type(0)
    for j in range(scores.shape[0]):
        scores[j] = np.exp(scores[j] - highest)
        total += scores[j]
    for j in range(scores.shape[0]):
        scores[j] *= gate / total


@compiled
def joint_gates(lse: Any, gates: Any) -> Any:
    """Turns logits `gates [k]` into weights, in place, by one softmax with local attention; returns its weight.

    `lse` is the logarithm of the local denominator. All weights are 0 if everything is -inf.
    """
    highest = max(lse, gates.max())
    if highest == -np.inf:
        gates[:] = 0
        return gates.dtype.type(0)
    local = np.exp(lse - highest)
    total = local
    for j in range(gates.shape[0]):
        gates[j] = np.exp(gates[j] - highest)
        total += gates[j]
    for j in range(gates.shape[0]):
        gates[j] /= total
    return local / total


@partial(compiled, as_written=True)
def rotate(x: Any, cos: Any, sin: Any, partner: Any, position: int, out: Any) -> None:
    """Rotates `x [D]` to a position, by the tables of `Rotation.by_partner`."""
    out[:] = x
    half = partner.shape[0] // 2
    if half and partner[0] == half:  # style "half", in loops without gathers
        for i in range(half):
            out[i] = x[i] * cos[position, i] + x[i + half] * sin[position, i]
        for i in range(half):
            out[i + half] = x[i + half] * cos[position, i + half] + x[i] * sin[position, i + half]
        return
    for i in range(partner.shape[0]):
        out[i] = x[i] * cos[position, i] + x[partner[i]] * sin[position, i]


@partial(compiled, as_written=True)
def rotate_rows(x: Any, rows: Any, cos: Any, sin: Any, partner: Any, positions: Any, out: Any) -> None:
    """Rotates `x[rows[n]]`, for the N `rows` of `x [R,D]`, to `positions[n]`; writes the first N of `out [..,D]`.

    To the same bits as `rotate`, and ten times as fast: arrays that are passed for each row cost more than the row.
    """
    width, half = partner.shape[0], partner.shape[0] // 2
    in_halves = half > 0 and partner[0] == half  # style "half": without gathers
    for n in range(len(rows)):
        row, position = rows[n], positions[n]
        if in_halves:
            for i in range(half):
                out[n, i] = x[row, i] * cos[position, i] + x[row, i + half] * sin[position, i]
            for i in range(half):
                out[n, i + half] = x[row, i + half] * cos[position, i + half] + x[row, i] * sin[position, i + half]
        else:
            for i in range(width):
                out[n, i] = x[row, i] * cos[position, i] + x[row, partner[i]] * sin[position, i]
        for i in range(width, x.shape[1]):
            out[n, i] = x[row, i]


@partial(compiled, as_written=True)
def _from_float16(bits: Any) -> Any:
    """A float16, given as its bits, as a float32. Moving the exponent to its place scales by 2 to the -112."""
    sign, rest = np.uint32((bits & 0x8000) << 16), np.uint32((bits & 0x7FFF) << 13)
    special = np.uint32(0x7F800000) if rest >= np.uint32(0x0F800000) else np.uint32(0)  # infinities and NaN
    scaled = np.float32(np.uint32(rest).view(np.float32) * np.float32(2.0**112))
    return np.uint32(scaled.view(np.uint32) | special | sign).view(np.float32)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="landmark")


# A forked process has none of its parent's threads.
os.register_at_fork(after_in_child=_pool.cache_clear)
