"""Tiles of queries for compiled loops on a CPU: products of small matrices, and softmax down their columns.

A tile `[n,LANES]` is contiguous and has a query in each column, so that a row fills vector registers, sums and maxima
run down columns, and nothing is added across a register. No column sees another: a query gets the same bits whatever
queries lie beside it.
"""

from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from landmark.ops.numba_loops import compiled, exp

LANES = 32  # queries of a tile: with its scores, its outputs and a block it fits a first-level cache

_INDEX = ir.IntType(64)
_intrinsic: Any = intrinsic  # what it decorates takes one argument less in compiled code
_FEATURES = llvm.get_host_cpu_features()


def _rows_at_once(bits: int) -> int:
    """Rows of a tile of numbers of so many bits that fill half of the vector registers."""
    registers, width = (32, 512) if _FEATURES.get("avx512f") else (16, 256 if _FEATURES.get("avx2") else 128)
    return max(1, registers // 2 * width // (LANES * bits))


@_intrinsic
def add_product(typing: Any, a: Any, b: Any, out: Any) -> Any:
    """Adds to the tile `out [M,LANES]` the product of `a [M,K]`, of any strides, and the tile `b [K,LANES]`.

    Each sum runs through K in order. Compilers keep sums of a plain loop in memory: it reaches a third of the speed.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        a, b, out = (
            context.make_array(kind)(context, builder, x) for kind, x in zip(signature.args, args, strict=True)
        )
        number = signature.args[2].dtype
        kernel = _Kernel(builder, a, b, out, number.bitwidth, context.get_value_type(number))
        rows, depth = (builder.extract_value(a.shape, dim) for dim in (0, 1))
        at_once = _rows_at_once(kernel.bits)
        whole = builder.sub(rows, builder.srem(rows, _INDEX(at_once)))
        with builder.if_then(builder.icmp_signed(">", depth, _INDEX(0))):
            with cgutils.for_range_slice(builder, _INDEX(0), whole, _INDEX(at_once)) as (first, _):
                kernel.rows(first, at_once, depth)
            with cgutils.for_range_slice(builder, whole, rows, _INDEX(1)) as (first, _):
                kernel.rows(first, 1, depth)
        return context.get_dummy_value()

    return types.void(a, b, out), generate


class _Kernel:
    """Emits the code of `add_product` for a few rows, whose sums stay in registers."""

    def __init__(self, builder: ir.IRBuilder, a: Any, b: Any, out: Any, bits: int, number: ir.Type) -> None:
        self.bits = bits
        self._builder, self._a, self._b, self._out = builder, a, b, out
        self._number, self._vector = number, ir.VectorType(number, LANES)
        kind = ir.FunctionType(self._vector, [self._vector] * 3)
        self._fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{LANES}f{bits}")

    def rows(self, first: Any, count: int, depth: Any) -> None:
        """Code for `count` rows of out from row `first` on."""
        builder = self._builder
        places = [self._row(self._out, builder.add(first, _INDEX(i))) for i in range(count)]
        before = [builder.load(place, align=self.bits // 8) for place in places]
        starts = [self._start_of_row(builder.add(first, _INDEX(i))) for i in range(count)]
        above, loop, below = builder.block, *(builder.append_basic_block(name) for name in ("depth", "done"))
        builder.branch(loop)
        builder.position_at_end(loop)
        k, sums = builder.phi(_INDEX), [builder.phi(self._vector) for _ in before]
        b = builder.load(self._row(self._b, k), align=self.bits // 8)
        offset = builder.mul(k, builder.extract_value(self._a.strides, 1))
        added = [
            builder.call(self._fma, [self._in_every_lane(start, offset), b, total])
            for start, total in zip(starts, sums, strict=True)
        ]
        following = builder.add(k, _INDEX(1))
        for phi, begin, new in zip((k, *sums), (_INDEX(0), *before), (following, *added), strict=True):
            phi.add_incoming(begin, above)
            phi.add_incoming(new, loop)
        builder.cbranch(builder.icmp_signed("<", following, depth), loop, below)
        builder.position_at_end(below)
        for place, new in zip(places, added, strict=True):
            builder.store(new, place, align=self.bits // 8)

    def _row(self, tile: Any, row: Any) -> Any:
        """Pointer to a row of a tile, as a vector."""
        builder = self._builder
        return builder.bitcast(builder.gep(tile.data, [builder.mul(row, _INDEX(LANES))]), self._vector.as_pointer())

    def _start_of_row(self, row: Any) -> Any:
        """Pointer to the bytes of a row of `a`."""
        builder = self._builder
        first = builder.bitcast(self._a.data, ir.IntType(8).as_pointer())
        return builder.gep(first, [builder.mul(row, builder.extract_value(self._a.strides, 0))])

    def _in_every_lane(self, start: Any, offset: Any) -> Any:
        """The number at an offset of bytes, as a vector of its copies."""
        builder, undefined = self._builder, ir.Constant(self._vector, ir.Undefined)
        number = builder.load(builder.bitcast(builder.gep(start, [offset]), self._number.as_pointer()))
        single = builder.insert_element(undefined, number, ir.IntType(32)(0))
        return builder.shuffle_vector(single, undefined, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


@compiled
def to_columns(rows: Any, tile: Any) -> None:
    """Writes up to LANES `rows [n,D]` to the first columns of a tile [D,LANES]."""
    for i in range(tile.shape[0]):
        for lane in range(rows.shape[0]):
            tile[i, lane] = rows[lane, i]


@compiled
def soft_cap_tile(scores: Any, softcap: float) -> None:
    """Soft-caps a tile in place as `Scoring.cap` does; a `softcap` of 0 is none."""
    if softcap:
        for j in range(scores.shape[0]):
            for lane in range(LANES):
                scores[j, lane] = softcap * np.tanh(scores[j, lane] / softcap)


@compiled
def gated_softmax_tile(scores: Any, gates: Any, highest: Any, total: Any) -> None:
    """Turns scores [n,LANES] of the ordinary tokens of a block into their softmax times `gates [LANES]`, in place.

    `highest` and `total [LANES]` are scratch memory.
    """
    highest[:], total[:] = -np.inf, 0
    for j in range(len(scores)):
        for lane in range(LANES):
            highest[lane] = scores[j, lane] if scores[j, lane] > highest[lane] else highest[lane]
    for j in range(scores.shape[0]):
        for lane in range(LANES):
            scores[j, lane] = exp(scores[j, lane] - highest[lane])
            total[lane] += scores[j, lane]
    for lane in range(LANES):
        total[lane] = gates[lane] / total[lane]
    for j in range(scores.shape[0]):
        for lane in range(LANES):
            scores[j, lane] *= total[lane]
