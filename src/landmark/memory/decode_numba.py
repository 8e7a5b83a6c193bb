"""The compiled loops of `landmark.memory.decode`, over the rows of all memories that a step reads.

A row is given by the addresses of its buffers. The loops are those of the separate operations, so results are theirs to
the last bit. Keys and values of 16 bits are read as they lie and computed in float32.
"""

from functools import partial
from typing import Any

import numpy as np

from landmark.memory.selection_numba import choose_loop
from landmark.ops.decode_cpu import attend_loop
from landmark.ops.numba_loops import array_at, as_float, as_stored, compiled, rotate, rounded
from landmark.ops.parallel import share
from landmark.ops.retrieved.cpu import join_loop
from landmark.store.lru import assign_in_place

# What compiled loops take of a row of a memory. What lies at its addresses must be kept while they run.
ROW = np.dtype([
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
# And of its tokens in a step: the first, their number, that without padding; positions in the window before them, the
# rotary position of the first; where the pairs of a query and a block that it opens lie among those of all rows.
_NAMES = ("first", "width", "valid", "length", "position", "at")
STEP = np.dtype([(name, "i8") for name in _NAMES])


@compiled
def _tables(row: Any, tables: Any) -> Any:
    """The rotary tables of a row, of the dtype and width of `tables`."""
    shape = row.reach, tables.shape[1]
    return array_at(row.cos, shape, tables), array_at(row.sin, shape, tables)


@compiled
def write(key: Any, value: Any, rows: Any, steps: Any, tables: Any, partner: Any, like: Any) -> int:
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
def write_and_search(
    key: Any, value: Any, query: Any, sinks: Any, rows: Any, steps: Any, partner: Any, tables: Any, like: Any,
    scaled: Any, local: Any, lse: Any, blocks: Any, distance: Any, table: Any, scale: float, kv_heads: int,
    softcap: float, unit: int, parts: int,
) -> int:  # fmt: skip
    """`write`, and then `_search` in so many parts."""
    wrong = write(key, value, rows, steps, tables, partner, like)
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
def find_slots(
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
def join_in_parts(
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
