"""Loops over arrays on a CPU, compiled by numba."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numba
import numpy as np
import torch
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numba.np.numpy_support import carray
from torch import Tensor


def compiled(loop: Callable[..., Any], *, without_nan: bool = False, as_written: bool = False) -> Callable[..., Any]:
    """Decorator: compiles a loop over arrays at its first call, cached on disk where that can be written.

    Sums may be reordered, as in any matrix product; with `as_written` they are not, and the loop gives the same bits
    wherever it is inlined. Infinities and divisions by 0 follow IEEE rules, and so does NaN unless `without_nan`
    promises that there is none. Write loops over entries: one assignment of an array to a part of another has numba
    compile its messages about shapes as well, which takes as long as a large loop.
    """
    flags = set() if as_written else {"reassoc", "contract", "nsz"} | ({"nnan"} if without_nan else set())
    options: dict[str, Any] = {"nogil": True, "fastmath": flags, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(loop)
    except RuntimeError:  # no cache folder can be written: every process compiles again
        return numba.njit(**options)(loop)


NARROW = (torch.bfloat16, torch.float16)  # read as bits
FLOATS = (torch.float32, torch.float64, *NARROW)


def as_array(x: Tensor) -> np.ndarray[Any, Any]:
    """A tensor for compiled loops, in place: numpy has no bfloat16 and numba no float16, so both are given as bits."""
    x = x.detach() if x.requires_grad else x  # detaching, too, is an operation of every layer
    if x.dtype == torch.bfloat16:
        return x.view(torch.uint16).numpy()
    return (x.view(torch.int16) if x.dtype == torch.float16 else x).numpy()


def as_float(x: Any) -> Any:
    """An entry of an array of `as_array` as a number, 8 and 16 bits as a float32; in compiled code only."""
    raise NotImplementedError


@overload(as_float, inline="always", strict=False)
def _as_float(x: Any) -> Any:
    if x == types.uint16:  # bfloat16: the upper half of a float32
        return lambda x: np.uint32(np.uint32(x) << 16).view(np.float32)
    if x == types.int16:
        return lambda x: _from_float16(np.uint32(np.uint16(x)))
    if x == types.int8:
        return lambda x: np.float32(x)
    return lambda x: x


def as_bits(x: Any, like: Any) -> Any:
    """A float32 rounded to 16 bits, to be written to the array `like` of `as_array`; in compiled code only."""
    raise NotImplementedError


@overload(as_bits, inline="always", strict=False)
def _as_bits(x: Any, like: Any) -> Any:
    return (lambda x, like: _to_bfloat16(x)) if like.dtype == types.uint16 else (lambda x, like: _to_float16(x))


def as_stored(x: Any, like: Any) -> Any:
    """A number as an entry of the array `like` of `as_array`, rounded to its 16 bits; in compiled code only."""
    raise NotImplementedError


@overload(as_stored, inline="always", strict=False)
def _as_stored(x: Any, like: Any) -> Any:
    if like.dtype in (types.uint16, types.int16):
        return lambda x, like: as_bits(x, like)
    return lambda x, like: x


def rounded(x: Any, like: Any) -> Any:
    """A number rounded to those that the array `like` of `as_array` can hold; in compiled code only."""
    raise NotImplementedError


@overload(rounded, inline="always", strict=False)
def _rounded(x: Any, like: Any) -> Any:
    if like.dtype in (types.uint16, types.int16):
        return lambda x, like: as_float(as_bits(x, like))
    return lambda x, like: x


@intrinsic
def as_pointer(typingctx: Any, address: Any) -> Any:
    """A pointer to an address, for `numba.carray`; in compiled code only. Whoever gives it keeps what lies there."""

    def convert(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), convert


@compiled
def array_at(address: int, shape: Any, like: Any) -> Any:
    """The contiguous array of this shape at an address, of the dtype of `like`; in compiled code only."""
    return carray(as_pointer(address), shape, like.dtype)  # type: ignore[call-arg]


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


_LEAST = np.float32(-87.0)  # below, exponentials are smaller than the smallest normal number: 0
_ROUNDER = np.float32(1.5 * 2**23)  # a small number added to it is rounded to a whole one, in its lowest bits


@partial(compiled, as_written=True)
def _exp_float32(x: Any) -> Any:
    """exp(x) of x <= 0 to 1e-7, in operations that fill vector registers (Cody & Waite's reduction, as in Cephes)."""
    bounded = _LEAST if x < _LEAST else x  # NaN stays NaN
    whole = bounded * np.float32(1.44269504088896341) + _ROUNDER
    n = whole - _ROUNDER
    r = bounded - n * np.float32(0.693359375) - n * np.float32(-2.12194440e-4)
    p = np.float32(1.9875691500e-4) * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * (r * r) + r + np.float32(1.0)
    power = np.uint32((np.float32(whole).view(np.uint32) + np.uint32(127)) << np.uint32(23)).view(np.float32)
    return np.float32(0.0) if x < _LEAST else p * power


def exp(x: Any) -> Any:
    """exp(x) of x <= 0, or NaN; in compiled code only."""
    raise NotImplementedError


@overload(exp, inline="always", strict=False)
def _exp(x: Any) -> Any:
    return (lambda x: _exp_float32(x)) if x == types.float32 else (lambda x: np.exp(x))


@compiled
def soft_cap(scores: Any, softcap: float) -> None:
    """Soft-caps `scores [n]` in place as `Scoring.cap` does; a `softcap` of 0 is none."""
    if softcap:
        for j in range(scores.shape[0]):
            scores[j] = softcap * np.tanh(scores[j] / softcap)


@compiled
def highest_of(scores: Any) -> Any:
    """The highest of `scores [n]`, at least one; NaN if one of them is NaN."""
    highest = scores[0]
    for j in range(1, scores.shape[0]):
        highest = scores[j] if scores[j] > highest or np.isnan(scores[j]) else highest
    return highest


@compiled
def norm_of(x: Any) -> float:
    """The Euclidean norm of `x [D]`, added up in float64."""
    total = 0.0
    for i in range(x.shape[0]):
        total += np.float64(x[i]) * np.float64(x[i])
    return np.sqrt(total)


@compiled
def gated_softmax(scores: Any, gate: Any) -> None:
    """Turns scores of the ordinary tokens of a block into their weights, in place: their softmax times the gate."""
    highest = highest_of(scores)
    total = scores.dtype.type(0)
    for j in range(scores.shape[0]):
        scores[j] = exp(scores[j] - highest)
        total += scores[j]
    for j in range(scores.shape[0]):
        scores[j] *= gate / total


@compiled
def joint_gates(lse: Any, gates: Any) -> Any:
    """Turns logits `gates [k]` into weights, in place, by one softmax with local attention; returns its weight.

    `lse` is the logarithm of the local denominator. All weights are 0 if everything is -inf.
    """
    highest = max(lse, highest_of(gates))
    if highest == -np.inf:
        gates[:] = 0
        return gates.dtype.type(0)
    local = exp(lse - highest)
    total = local
    for j in range(gates.shape[0]):
        gates[j] = exp(gates[j] - highest)
        total += gates[j]
    for j in range(gates.shape[0]):
        gates[j] /= total
    return local / total


@partial(compiled, as_written=True)
def rotate(x: Any, cos: Any, sin: Any, partner: Any, position: int, out: Any) -> None:
    """Rotates `x [D]` to a position, by the tables of `Rotation.by_partner`."""
    width, half = partner.shape[0], partner.shape[0] // 2
    if half and partner[0] == half:  # style "half", in loops without gathers
        for i in range(half):
            out[i] = x[i] * cos[position, i] + x[i + half] * sin[position, i]
        for i in range(half):
            out[i + half] = x[i + half] * cos[position, i + half] + x[i] * sin[position, i + half]
    else:
        for i in range(width):
            out[i] = x[i] * cos[position, i] + x[partner[i]] * sin[position, i]
    for i in range(width, x.shape[0]):
        out[i] = x[i]


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


@partial(compiled, as_written=True)
def _to_float16(x: Any) -> Any:
    """The bits of a float32 rounded to the nearest float16, to the even one of two (Giesen's float_to_half)."""
    bits = np.float32(x).view(np.uint32)
    sign, rest = np.uint32(bits & np.uint32(0x80000000)), np.uint32(bits & np.uint32(0x7FFFFFFF))
    if rest >= np.uint32(0x47800000):  # too large, infinite, or NaN
        short = np.uint32(0x7E00) if rest > np.uint32(0x7F800000) else np.uint32(0x7C00)
    elif rest < np.uint32(0x38800000):  # below the normal numbers: an addition rounds
        short = np.uint32(np.float32(rest.view(np.float32) + np.float32(0.5)).view(np.uint32) - np.uint32(0x3F000000))
    else:
        odd = (rest >> np.uint32(13)) & np.uint32(1)
        short = np.uint32((rest - np.uint32(0x38000000) + np.uint32(0xFFF) + odd) >> np.uint32(13))
    return np.int16(np.uint16(short | (sign >> np.uint32(16))))


@partial(compiled, as_written=True)
def _to_bfloat16(x: Any) -> Any:
    """The bits of a float32 rounded to the nearest bfloat16, to the even one of two."""
    bits = np.float32(x).view(np.uint32)
    if bits & np.uint32(0x7FFFFFFF) > np.uint32(0x7F800000):  # NaN
        return np.uint16(0x7FC0)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return np.uint16(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))
