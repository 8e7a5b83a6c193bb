"""Decoding on a CPU: what the memories of a layer do for a few queries, in two compiled calls for all texts.

One writes to the windows, attends to them and chooses blocks, one opens these. With few queries the number of calls
counts, not their size, so the rows of a batch and those of texts that are decoded together share them. Here is what a
step is made of; the loops are in `landmark.memory.decode_numba`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from landmark.index.base import ResidentKeys
from landmark.index.keys import rounding_error
from landmark.memory.decode_numba import ROW, STEP, find_slots, join_in_parts, write, write_and_search
from landmark.ops.decode_cpu import FEW_QUERIES
from landmark.ops.numba_loops import FLOATS, as_array
from landmark.ops.parallel import parts_of
from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring, working_dtype
from landmark.store.base import CacheMisses, ResidentBlocks
from landmark.store.tiered import CachedBlocks, TieredStore

# Fields of a row of the loops: from "k" on where it has no blocks, from "slot_of" on where these lie in order.
_NO_BLOCKS, _NO_TABLE = (0,) * 25, (0,) * 7
_LIKE = {dtype: as_array(torch.empty(0, dtype=dtype)) for dtype in FLOATS}


class FewTokens(NamedTuple):
    """Queries [N,H,D], keys [N,Hkv,D] and values [N,Hkv,Dv] of a step, before rotary, as arrays of the working dtype.

    `dtype` is that of the model, to which they are rounded.
    """

    query: Any
    key: Any
    value: Any
    dtype: torch.dtype

    @classmethod
    def of(cls, query: Tensor, key: Tensor, value: Tensor) -> "FewTokens":
        """Those of `query [B,H,T,D]`, `key` and `value [B,Hkv,T,D]`: token t of row b is number b * T + t."""
        flat = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
        queries, keys, values = (as_array(x.to(working_dtype(x)).contiguous()) for x in flat)
        return cls(queries, keys, values, query.dtype)

    def tensors(self, first: int, rows: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Query [B,H,T,D], key and value [B,Hkv,T,D] of `rows` rows of `width` tokens, from number `first` on."""
        some = (torch.from_numpy(x[first : first + rows * width]).to(self.dtype) for x in self[:3])
        query, key, value = (x.unflatten(0, (rows, width)).transpose(1, 2) for x in some)
        return query, key, value


def serves_few(*tensors: Tensor) -> bool:
    """Whether the loops serve `tensors`, the first of them [B,H,T,D]: few queries on a CPU, in one dtype."""
    first = tensors[0]
    if torch.compiler.is_compiling() or first.shape[2] > FEW_QUERIES or first.dtype not in FLOATS:
        return False
    return all(x.device.type == "cpu" and x.dtype == first.dtype for x in tensors)


class FewMemory(Protocol):
    """A memory as `attend_few` needs it."""

    def count_few(self, part: "FewPart", blocks: Any, gates: Any, local: Any) -> None:
        """Counts the tokens of a part as read, and records what they opened, as arrays: see `Opened`."""
        ...


class FewBlocks(NamedTuple):
    """The blocks of a memory in a step, until one is appended; see `BlockMemory.few`.

    `rows` are fields of its rows for compiled loops. A query opens `k` blocks of `most`; `sharing` heads choose
    together. A step has at most `widest` queries. `store` fetches blocks that are not cached, None where all lie in
    place. `kept` lies at the addresses. Copied or pickled it is None, as `FewRows` is: a copy lies elsewhere.
    """

    rows: list[tuple[Any, ...]]
    k: int
    most: int
    sharing: int
    widest: int
    store: TieredStore | None
    kept: tuple[Any, ...]

    def __reduce__(self) -> Any:
        return type(None), ()


class FewRows(NamedTuple):
    """The rows of a memory for compiled loops, while window and blocks lie where they do."""

    rows: Any
    stride: int
    rotation: Rotation
    buffers: tuple[Tensor, Tensor, Tensor]
    blocks: FewBlocks | None

    def __reduce__(self) -> Any:
        return type(None), ()

    @classmethod
    def of(
        cls, stride: int, rotation: Rotation, buffers: tuple[Tensor, Tensor, Tensor], blocks: FewBlocks | None
    ) -> "FewRows":
        """The rows of a window of `buffers`, keys, values and rotated keys, and of `blocks`."""
        room, count = buffers[0].shape[2], len(buffers[0])
        windows = [(stride, *rotation.addresses, *(_address(x, row) for x in buffers), room) for row in range(count)]
        behind = [_NO_BLOCKS] * count if blocks is None else [(blocks.k, *row) for row in blocks.rows]
        rows = [(*one, *other) for one, other in zip(windows, behind, strict=True)]
        # As numbers: numpy joins arrays of records in Python.
        return cls(np.array(rows, ROW).view(np.int64).reshape(count, -1), stride, rotation, buffers, blocks)


@dataclass
class FewPart:
    """The tokens of a step that one memory reads: token t of its row b is number `first + b * width + t` of all.

    `valid` tokens of each row are no padding. Before them stand `lengths` positions in the window, and `starts` are the
    rotary positions of the first.
    """

    memory: FewMemory
    lies: FewRows
    first: int
    width: int
    valid: list[int]
    lengths: list[int]
    starts: list[int]
    at: int = field(default=0, init=False)  # of its pairs of a query and a block among those of all parts
    finite: bool = field(default=True, init=False)
    error: Exception | None = field(default=None, init=False)

    def steps(self, heads: int, at: int) -> list[tuple[int, ...]]:
        """What compiled loops take of its tokens, if its pairs of a query and a block begin `at`."""
        self.at, each = at, heads * self.width * self.k
        return _steps(self.first, self.width, self.valid, self.lengths, self.starts, at, each)

    @property
    def store(self) -> TieredStore | None:
        """What fetches blocks that are not cached; None where all lie in place."""
        return None if self.lies.blocks is None else self.lies.blocks.store

    @property
    def k(self) -> int:
        """Blocks that a query opens."""
        return 0 if self.lies.blocks is None else self.lies.blocks.k

    def pairs(self, heads: int) -> int:
        """Pairs of a query and a block that it opens."""
        return len(self.valid) * heads * self.width * self.k

    def of(self, pairs: Any, heads: int) -> Any:
        """Its part [B,H,T,k] of an array of the pairs of all parts."""
        shape = len(self.valid), heads, self.width, self.k
        return pairs[self.at : self.at + self.pairs(heads)].reshape(shape)


def _steps(
    first: int, width: int, valid: list[int], lengths: list[int], starts: list[int], at: int, each: int
) -> list[tuple[int, ...]]:
    """A step of rows as compiled loops take it, see `FewPart`; each row has so many pairs, and the first begin `at`."""
    rows = enumerate(zip(valid, lengths, starts, strict=True))
    return [(first + row * width, width, new, *lies, at + row * each) for row, (new, *lies) in rows]


def block_row(
    row: int,
    landmarks: ResidentKeys,
    blocks: ResidentBlocks | CachedBlocks,
    upto: int,
    count: int,
    gap: int,
    stingy: bool,
    sharing: int,
) -> tuple[Any, ...]:
    """What `FewBlocks.rows` has of a row."""
    keys, first, behind, shared = landmarks.tensors
    assert keys.dtype == behind.dtype == torch.float32
    slack = rounding_error(landmarks.max_norm, keys.shape[3], torch.float32)
    searched = _address(keys, row), keys.shape[2], landmarks.modulus, int(first[row])
    searched += _address(behind, row), behind.shape[2], int(shared[row]), upto, count, gap, int(stingy), sharing, slack
    searched += _address(blocks.keys, row), _address(blocks.values, row), blocks.keys.shape[2]
    if isinstance(blocks, ResidentBlocks):
        return *searched, blocks.modulus, *_NO_TABLE
    return *searched, 0, *blocks.table.addresses(row)


def _address(x: Tensor, row: int) -> int:
    """Where one row of `x [B,...]`, contiguous on a CPU, lies."""
    assert x.is_contiguous()
    return x.data_ptr() + row * x.stride(0) * x.element_size()


def write_few(
    key: Tensor,
    value: Tensor,
    buffers: tuple[Tensor, Tensor, Tensor],
    lengths: list[int],
    valid: list[int],
    rotation: Rotation,
) -> None:
    """Writes the first `valid[b]` positions of `key`, `value [B,Hkv,T,D]`, before rotary, behind `lengths[b]` others.

    The buffers are those of a window: keys before rotary, values, and keys rotated to their position.
    """
    tokens, lies = FewTokens.of(key, key, value), FewRows.of(0, rotation, buffers, None)
    steps = _steps(0, key.shape[2], valid, lengths, lengths, 0, 0)
    tables, _, partner = rotation.arrays
    write(*tokens[1:3], lies.rows.view(ROW)[:, 0], np.array(steps, STEP), tables, partner, _LIKE[key.dtype])


def attend_few(parts: Sequence[FewPart], tokens: FewTokens, scoring: Scoring) -> Any:
    """Attention of the tokens of all `parts` through their memories, [N,H*Dv]; undefined at padding, elsewhere 0.

    Writes keys and values to the windows, chooses and opens blocks. A part whose blocks cannot be fetched gets an
    `error`, one whose keys or values are not finite is not `finite`; the others go on. All have rotary tables of one
    kind.
    """
    query, key, value, dtype = tokens
    count, heads = query.shape[:2]
    steps, pairs = [], 0
    for part in parts:
        steps += part.steps(heads, pairs)
        pairs += part.pairs(heads)
    tokens_of = np.array(steps, STEP)
    lies = np.concatenate([part.lies.rows for part in parts]).view(ROW)[:, 0]
    like, (tables, _, partner) = _LIKE[dtype], parts[0].lies.rotation.arrays
    assert all(part.lies.rotation.like(parts[0].lies.rotation) for part in parts)
    local, lse = np.zeros((count, heads, value.shape[2]), query.dtype), np.empty((count, heads), query.dtype)
    blocks, distance, table = np.empty((3, pairs), np.int64)
    between = partner, tables, like, np.empty_like(query), local, lse, blocks, distance, table
    gates, own, out = np.empty(pairs, query.dtype), np.empty_like(lse), np.zeros_like(local)
    sinks = np.full(heads, -np.inf, query.dtype)
    if scoring.sinks is not None:
        sinks[:] = scoring.sinks.to(working_dtype(scoring.sinks)).numpy()
    found = [part.lies.blocks for part in parts if part.lies.blocks is not None]
    unit = max((one.sharing for one in found), default=1)
    shared = parts_of(_pieces(parts, heads))
    searched = query, sinks, lies, tokens_of, *between, scoring.scale_of(query)
    numbers = key.shape[1], scoring.softcap or 0.0, unit, shared
    if write_and_search(key, value, *searched, *numbers):
        _find_not_finite(parts, tokens)
    if any(one.store is not None for one in found):
        misses, counts = np.empty((4, pairs), np.int64), np.zeros((len(lies), 2), np.int64)
        find_slots(lies, tokens_of, blocks, table, heads, key.shape[1], misses, counts)
        _fetch(parts, counts, misses)
    join_in_parts(lies, tokens_of, *between, gates, own, out, *numbers)
    for part in parts:
        some = slice(part.first, part.first + len(part.valid) * part.width)
        if part.error is None:
            opened = part.of(blocks, heads), part.of(gates, heads), own[some].reshape(-1, heads, part.width)
            part.memory.count_few(part, *opened)
        else:
            out[some] = 0
    return out.reshape(count, -1)


def _pieces(parts: Sequence[FewPart], heads: int) -> int:
    """Small pieces of work that each of search and joining is, in the mean, see `parts_of`: queries that meet a key."""
    keys = 0
    for part in parts:
        blocks, stride = part.lies.blocks, part.lies.stride
        met = 2 * max(part.lengths) + (0 if blocks is None else blocks.most + 2 * blocks.k * stride)
        keys += len(part.valid) * part.width * met
    return keys * heads // 2


def _find_not_finite(parts: Sequence[FewPart], tokens: FewTokens) -> None:
    """Finds the parts of which some keys or values are not finite in the dtype of the model."""
    for part in parts:
        _, *kept = tokens.tensors(part.first, len(part.valid), part.width)
        part.finite = all(
            bool(x[row, :, :valid].isfinite().all()) for x in kept for row, valid in enumerate(part.valid)
        )


def _fetch(parts: Sequence[FewPart], counts: Any, misses: Any) -> None:
    """Fetches what `find_slots` did not find in the caches of the parts."""
    row = taken = 0
    for part in parts:
        rows = slice(row, row + len(part.valid))
        if part.store is not None:
            distinct, missed = counts[rows].sum(0).tolist()
            lacking = None
            if missed:
                lacking = CacheMisses(*misses[:, taken : taken + missed])
                lacking = lacking._replace(rows=lacking.rows - row)
            try:
                part.store.fetch_assigned(distinct, lacking)
            except Exception as error:
                part.error = error
            taken += missed
        row = rows.stop
