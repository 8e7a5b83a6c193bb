"""Decoding on a CPU: what the memories of a layer do for a few queries, in two compiled calls for all texts.

One writes to the windows, attends to them and chooses blocks, one opens these. With few queries the number of calls
counts, not their size, so the rows of a batch and those of texts that are decoded together share them: a row is given
by the addresses of its buffers. The loops are those of the separate operations, so results are theirs to the last bit.
Keys and values of 16 bits are read as they lie and computed in float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from landmark.index.base import ResidentKeys
from landmark.index.keys import rounding_error
from landmark.memory.selection_numba import choose_loop
from landmark.ops.decode_cpu import FEW_QUERIES, attend_loop
from landmark.ops.numba_loops import (
    FLOATS,
    array_at,
    as_array,
    as_float,
    as_stored,
    compiled,
    rotate,
    rounded,
)
from landmark.ops.parallel import parts_of, share
from landmark.ops.retrieved.cpu import join_loop
from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring, working_dtype
from landmark.store.base import CacheMisses, ResidentBlocks
from landmark.store.lru import assign_in_place
from landmark.store.tiered import CachedBlocks, TieredStore

# What compiled loops take of a row of a memory. What lies at its addresses must be kept while they run.
_ROW = np.dtype([
    # Positions of a block; rotary tables [reach,R]; keys, values and rotated keys of the window [Hkv,room,D].
    ("stride", "i8"), ("cos", "i8"), ("sin", "i8"), ("reach", "i8"), ("keys", "i8"), ("values", "i8"),
    ("turned", "i8"), ("room", "i8"),
    # Blocks that a query opens; `ResidentKeys`, [Hkv,slots,D] and [Hkv,more,D] behind them; what `choose_loop` takes.
    ("k", "i8"), ("landmarks", "i8"), ("slots", "i8"), ("modulus", "i8"), ("oldest", "i8"), ("behind", "i8"),
    ("more", "i8"), ("shared", "i8"), ("upto", "i8"), ("count", "i8"), ("gap", "i8"), ("stingy", "i8"),
    ("sharing", "i8"), ("slack", "f8"),
    # Blocks [Hkv,pages,stride,D]: number a at page a % block_modulus; or if that is 0, where a page table has it, see
    # `PageTable.addresses`.
    ("block_keys", "i8"), ("block_values", "i8"), ("pages", "i8"), ("block_modulus", "i8"), ("slot_of", "i8"),
    ("last_pass", "i8"), ("block_at", "i8"), ("older", "i8"), ("newer", "i8"), ("passes", "i8"), ("numbers", "i8"),
])  # fmt: skip
_NO_BLOCKS = (0,) * 25  # the fields from "k" on of a row that has none
_NO_TABLE = (0,) * 7
# And of its tokens in a step: the first, their number, that without padding; positions in the window before them, the
# rotary position of the first; where the pairs of a query and a block that it opens lie among those of all rows.
_NAMES = ("first", "width", "valid", "length", "position", "at")
_STEP = np.dtype([(name, "i8") for name in _NAMES])
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
    if first.shape[2] > FEW_QUERIES or first.dtype not in FLOATS:
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
        return cls(np.array(rows, _ROW).view(np.int64).reshape(count, -1), stride, rotation, buffers, blocks)


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
    _write(*tokens[1:3], lies.rows.view(_ROW)[:, 0], np.array(steps, _STEP), tables, partner, _LIKE[key.dtype])


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
    tokens_of = np.array(steps, _STEP)
    lies = np.concatenate([part.lies.rows for part in parts]).view(_ROW)[:, 0]
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
    if _write_and_search(key, value, *searched, *numbers):
        _find_not_finite(parts, tokens)
    if any(one.store is not None for one in found):
        misses, counts = np.empty((4, pairs), np.int64), np.zeros((len(lies), 2), np.int64)
        _find_slots(lies, tokens_of, blocks, table, heads, key.shape[1], misses, counts)
        _fetch(parts, counts, misses)
    _join_in_parts(lies, tokens_of, *between, gates, own, out, *numbers)
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
    """Fetches what `_find_slots` did not find in the caches of the parts."""
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


@compiled
def _tables(row: Any, tables: Any) -> Any:
    """The rotary tables of a row, of the dtype and width of `tables`."""
    shape = row.reach, tables.shape[1]
    return array_at(row.cos, shape, tables), array_at(row.sin, shape, tables)


@compiled
def _write(key: Any, value: Any, rows: Any, steps: Any, tables: Any, partner: Any, like: Any) -> int:
    """Writes keys [N,Hkv,D], before rotary and rotated to their positions, and values to the windows of their rows.

    Returns how many numbers of them are not finite as they are kept.
    """
    heads, dim, wrong = key.shape[1], key.shape[2], 0
    plain, rotated = np.empty(dim, key.dtype), np.empty(dim, key.dtype)
    for number in range(len(rows)):
        row, tokens = rows[number], steps[number]
        cos, sin = _tables(row, tables)
        shape = heads, row.room, dim
        keys, turned = array_at(row.keys, shape, like), array_at(row.turned, shape, like)
        values = array_at(row.values, (heads, row.room, value.shape[2]), like)
        for head in range(heads):
            for step in range(tokens.valid):
                token, place = tokens.first + step, tokens.length + step
                for i in range(dim):
                    keys[head, place, i] = as_stored(key[token, head, i], like)
                    plain[i] = as_float(keys[head, place, i])
                    wrong += not np.isfinite(plain[i])
                for i in range(value.shape[2]):
                    values[head, place, i] = as_stored(value[token, head, i], like)
                    wrong += not np.isfinite(as_float(values[head, place, i]))
                rotate(plain, cos, sin, partner, place, rotated)
                for i in range(dim):
                    turned[head, place, i] = as_stored(rotated[i], like)
    return wrong


@compiled
def _write_and_search(
    key: Any, value: Any, query: Any, sinks: Any, rows: Any, steps: Any, partner: Any, tables: Any, like: Any,
    scaled: Any, local: Any, lse: Any, blocks: Any, distance: Any, table: Any, scale: float, kv_heads: int,
    softcap: float, unit: int, parts: int,
) -> int:  # fmt: skip
    """`_write`, and then `_search` in so many parts."""
    wrong = _write(key, value, rows, steps, tables, partner, like)
    given = (
        query, sinks, rows, steps, partner, tables, like, scaled, local, lse, blocks, distance, table, scale, kv_heads,
        softcap, unit,
    )  # fmt: skip
    share(_search, given, len(rows) * (query.shape[1] // unit), parts)
    return wrong


@compiled
def _search(
    query: Any, sinks: Any, rows: Any, steps: Any, partner: Any, tables: Any, like: Any, scaled: Any, local: Any,
    lse: Any, blocks: Any, distance: Any, table: Any, scale: float, kv_heads: int, softcap: float, unit: int,
    start: int, stop: int,
) -> None:  # fmt: skip
    """Attends to the window and chooses blocks, for sets of `unit` heads start..stop, counted over all rows.

    Each row fills its part of `scaled`, `local`, which is 0 before, and `lse`: [H,T,D], [H,T,Dv] and [H,T]; and of
    `blocks`, `distance` and, where its blocks lie in order, the page `table`: [H,T,k].
    """
    heads, dim = query.shape[1:]
    sets = heads // unit
    for number in range(start // sets, (stop + sets - 1) // sets):
        row, tokens = rows[number], steps[number]
        low, high = max(0, start - number * sets) * unit, min(sets, stop - number * sets) * unit
        first, width = tokens.first, tokens.width
        plain, places, positions = _queries(query, tokens, scale, like, scaled, low, high)
        turned = scaled[first : first + width].reshape((1, heads, width, dim))
        inside = local[first : first + width].reshape((1, heads, width, local.shape[2]))
        weight = lse[first : first + width].reshape((1, heads, width))
        cos, sin = _tables(row, tables)
        keys = array_at(row.turned, (1, kv_heads, row.room, dim), like)
        values = array_at(row.values, (1, kv_heads, row.room, local.shape[2]), like)
        attend_loop(
            turned, cos, sin, partner, keys, values, places, sinks, inside, weight, row.stride, softcap, low * width,
            high * width,
        )  # fmt: skip
        for head in range(low, high):
            for step in range(width):
                for i in range(local.shape[2]):  # the separate operation gives the dtype of the values
                    inside[0, head, step, i] = rounded(inside[0, head, step, i], like)
        if row.k:
            _choose(
                row, tokens.at, plain, cos, sin, partner, positions, blocks, distance, table, scale, kv_heads, low, high
            )


@compiled
def _queries(query: Any, tokens: Any, scale: float, like: Any, scaled: Any, low: int, high: int) -> Any:
    """Queries of a row [1,H,T,D] and where they stand; of heads low..high, scaled ones go to its part of `scaled`.

    They stand in the window, and at rotary positions, [1,T] each; padding stands where the last token does.
    """
    heads, dim = query.shape[1:]
    plain = np.empty((1, heads, tokens.width, dim), query.dtype)
    turned = scaled[tokens.first : tokens.first + tokens.width].reshape(plain.shape)
    places, positions = np.empty((1, tokens.width), np.int64), np.empty((1, tokens.width), np.int64)
    for step in range(tokens.width):
        behind = min(step, tokens.valid - 1)
        places[0, step], positions[0, step] = max(0, tokens.length + behind), max(0, tokens.position + behind)
        for head in range(heads):
            for i in range(dim):
                x = rounded(query[tokens.first + step, head, i], like)
                plain[0, head, step, i] = x
                if low <= head < high:
                    turned[0, head, step, i] = x * query.dtype.type(scale)
    return plain, places, positions


@compiled
def _choose(
    row: Any, at: int, query: Any, cos: Any, sin: Any, partner: Any, positions: Any, blocks: Any, distance: Any,
    table: Any, scale: float, kv_heads: int, low: int, high: int,
) -> None:  # fmt: skip
    """Fills the parts of a row of `blocks`, `distance` and `table`, heads low..high; `query [1,H,T,D]` is unscaled."""
    _, heads, length, dim = query.shape
    sharing, k = row.sharing, row.k
    like = np.empty(0, np.float32)
    landmarks = array_at(row.landmarks, (1, kv_heads, row.slots, dim), like)
    behind = array_at(row.behind, (1, kv_heads, row.more, dim), like)
    first, shared = np.array([row.oldest]), np.array([row.shared])
    bounds = np.array([[row.upto, row.count, row.gap]])
    searching = np.empty((1, heads // sharing, length, dim), np.float32)
    _add_up(query, scale, sharing, searching)
    chosen = np.empty((1, heads // sharing, length, k), np.int64)
    away = np.empty(chosen.shape, np.int64)
    choose_loop(
        searching, cos, sin, partner, positions, bounds, landmarks, first, behind, shared, chosen, away, row.slack,
        row.modulus, row.stride, row.stingy == 1, low // sharing * length, high // sharing * length,
    )  # fmt: skip
    for head in range(low, high):
        for step in range(length):
            for j in range(k):
                pair = at + (head * length + step) * k + j
                number = chosen[0, head // sharing, step, j]
                blocks[pair], distance[pair] = number, away[0, head // sharing, step, j]
                if row.block_modulus:
                    table[pair] = number % row.block_modulus if number >= 0 else -1


@compiled
def _find_slots(
    rows: Any, steps: Any, blocks: Any, table: Any, heads: int, kv_heads: int, misses: Any, counts: Any
) -> None:  # fmt: skip
    """Fills the page `table` of rows whose blocks are cached with slots for the `blocks` that `_search` chose.

    A row counts the distinct blocks of its heads, and those of them that are to be fetched: `counts [n,2]`. The latter
    go to `misses [4,..]`, row after row: row, head, block and slot.
    """
    taken = 0
    for number in range(len(rows)):
        row, tokens = rows[number], steps[number]
        if row.numbers:
            some = slice(tokens.at, tokens.at + heads * tokens.width * row.k)
            shape = 1, heads, tokens.width, row.k
            arrays = blocks[some].reshape(shape), table[some].reshape(shape), misses[:, taken:]
            distinct, missed = assign_in_place(row, row.pages, kv_heads, *arrays)
            misses[0, taken : taken + missed] = number
            counts[number, 0], counts[number, 1] = distinct, missed
            taken += missed


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


@compiled
def _join_in_parts(
    rows: Any, steps: Any, partner: Any, tables: Any, like: Any, scaled: Any, local: Any, lse: Any, blocks: Any,
    distance: Any, table: Any, gates: Any, own: Any, out: Any, kv_heads: int, softcap: float, unit: int, parts: int,
) -> None:  # fmt: skip
    """`_join` in so many parts."""
    given = (
        rows, steps, partner, tables, like, scaled, local, lse, blocks, distance, table, gates, own, out, kv_heads,
        softcap, unit,
    )  # fmt: skip
    share(_join, given, len(rows) * (scaled.shape[1] // unit), parts)


@compiled
def _join(
    rows: Any, steps: Any, partner: Any, tables: Any, like: Any, scaled: Any, local: Any, lse: Any, blocks: Any,
    distance: Any, table: Any, gates: Any, own: Any, out: Any, kv_heads: int, softcap: float, unit: int, start: int,
    stop: int,
) -> None:  # fmt: skip
    """Opens the blocks of the page `table` for sets of `unit` heads start..stop, after `_search`.

    Fills `out [N,H,Dv]`, and each row its part of `gates [H,T,k]` and of `own [H,T]`, the weight of local attention.
    """
    heads, dim = scaled.shape[1:]
    sets, value_dim = heads // unit, local.shape[2]
    for number in range(start // sets, (stop + sets - 1) // sets):
        row, tokens = rows[number], steps[number]
        low, high = max(0, start - number * sets) * unit, min(sets, stop - number * sets) * unit
        first, width, k = tokens.first, tokens.width, row.k
        inside = local[first : first + width].reshape((1, heads, width, value_dim))
        joined, weight = inside, own[first : first + width].reshape((1, heads, width))
        if k:
            joined = np.empty((1, heads, width, value_dim), out.dtype)
            some, shape = slice(tokens.at, tokens.at + heads * width * k), (1, heads, width, k)
            cos, sin = _tables(row, tables)
            keys = array_at(row.block_keys, (1, kv_heads, row.pages, row.stride, dim), like)
            values = array_at(row.block_values, (1, kv_heads, row.pages, row.stride, value_dim), like)
            arrays = (
                scaled[first : first + width].reshape((1, heads, width, dim)), cos, sin, partner,
                table[some].reshape(shape), distance[some].reshape(shape), keys, values, inside,
                lse[first : first + width].reshape((1, heads, width)), joined, gates[some].reshape(shape),
                weight, softcap,
            )  # fmt: skip
            join_loop(*arrays, low * width, high * width)
        for head in range(low, high):
            for step in range(width):
                for i in range(value_dim):
                    out[first + step, head, i] = rounded(joined[0, head, step, i], like)
                if k and step >= tokens.valid:  # padding opens none
                    weight[0, head, step] = 0
                    for pair in range(tokens.at + (head * width + step) * k, tokens.at + (head * width + step + 1) * k):
                        blocks[pair], gates[pair] = -1, 0
