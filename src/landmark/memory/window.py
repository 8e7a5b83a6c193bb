"""KV cache of the local window of a layer, newest complete blocks and tail, and attention to it."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from landmark.memory.decode import FewTokens, serves_few, write_few
from landmark.memory.geometry import column, positions_of
from landmark.ops.blockwise import blockwise_attention
from landmark.ops.decode_cpu import few_queries_attention, is_few
from landmark.ops.fused import fused_forward, unsupported_reason
from landmark.ops.prefill_cpu import many_queries_attention, serves
from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring

_ROOM = 256  # positions; buffers grow by multiples of this, so that decoding rarely has to reallocate


class WindowState(NamedTuple):
    """Keys before rotary, values, and keys rotated to their positions, `[B,Hkv,L,D]` each, and the rows' lengths."""

    keys: Tensor
    values: Tensor
    turned: Tensor
    lengths: list[int]


class LocalWindow:
    """Keys and values [B,Hkv,L,D] of the newest complete blocks and the tail, left-aligned, written in place.

    Row b holds `lengths[b]` positions, the first of which begins a block. Keys are kept twice: before rotary, as they
    leave for memory, and rotated to their position in the window.
    """

    def __init__(self, rows: int) -> None:
        self.lengths = [0] * rows
        self._buffers: tuple[Tensor, Tensor, Tensor] | None = None  # keys, values, rotated keys

    @classmethod
    def resume(cls, state: WindowState) -> "LocalWindow":
        """A window with this `state`."""
        window = cls(len(state.lengths))
        window.lengths = list(state.lengths)
        room = (max(state.lengths) // _ROOM + 1) * _ROOM
        keys, values, turned = (_grown(x, x, room) for x in state[:3])
        window._buffers = keys, values, turned
        return window

    def state(self) -> WindowState:
        """A copy of everything that `resume` needs."""
        assert self._buffers is not None
        length = max(self.lengths)
        keys, values, turned = (x[:, :, :length].clone() for x in self._buffers)
        return WindowState(keys, values, turned, list(self.lengths))

    def fork(self) -> "LocalWindow":
        """An independent copy."""
        window = copy.copy(self)
        window.lengths = list(self.lengths)
        if self._buffers is not None:
            keys, values, turned = (x.clone() for x in self._buffers)
            window._buffers = keys, values, turned
        return window

    def positions(self, valid: list[int], width: int, device: torch.device) -> Tensor:
        """Positions [B,width] in the window of a chunk that follows it."""
        return positions_of(tuple(self.lengths), tuple(valid), width, device)

    def write(self, key: Tensor, value: Tensor, valid: list[int], rotation: Rotation) -> None:
        """Writes the first `valid` positions of a chunk `[B,Hkv,T,D]` behind each row; `keep` makes them part of it."""
        buffers = self._with_room(max(self.lengths) + key.shape[2], key, value)
        if serves_few(key, value, *buffers):
            write_few(key, value, buffers, self.lengths, valid, rotation)
            return
        turned = rotation.apply(key, self.positions(valid, key.shape[2], key.device)[:, None])
        pairs = zip(buffers, (key, value, turned), strict=True)
        start, width = self.lengths[0], key.shape[2]
        if min(self.lengths) == max(self.lengths) and min(valid) == width:
            for buffer, new in pairs:
                buffer[:, :, start : start + width] = new
            return
        steps, real = torch.arange(width, device=key.device), column(tuple(valid), key.device)
        behind = column(tuple(self.lengths), key.device) + steps
        padding = (steps >= real)[:, None, :, None]
        positions = behind[:, None, :, None].masked_fill(padding, buffers[0].shape[2] - 1)
        for buffer, new in pairs:
            # Padding may be anything, NaN too; what lies behind a row must be finite.
            buffer.scatter_(2, positions.expand(-1, new.shape[1], -1, new.shape[-1]), new.masked_fill(padding, 0.0))

    def serves(self, tokens: FewTokens) -> bool:
        """Whether it lies on a CPU, and `tokens` are of its dtype and shape."""
        if self._buffers is None:
            return False
        keys, values, _ = self._buffers
        shapes = (keys.shape[1], keys.shape[3]), (values.shape[1], values.shape[3])
        same = shapes == (tokens.key.shape[1:], tokens.value.shape[1:])
        return same and keys.dtype == values.dtype == tokens.dtype and keys.device.type == "cpu"

    def with_room(self, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Keys before rotary, values and rotated keys, with room for a chunk of `width` positions."""
        assert self._buffers is not None
        return self._with_room(max(self.lengths) + width, *self._buffers[:2])

    def _with_room(self, length: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # One position more than is needed: rows of different lengths write their padding there.
        if self._buffers is None or self._buffers[0].shape[2] <= length:
            room, old = (length // _ROOM + 1) * _ROOM, self._buffers or (None, None, None)
            keys, values, turned = (_grown(x, new, room) for x, new in zip(old, (key, value, key), strict=True))
            self._buffers = keys, values, turned
        return self._buffers

    def buffers(self) -> tuple[Tensor, Tensor]:
        """Rotated keys and values of the window and of the chunk written behind it, contiguous.

        Longer than any row; what lies behind a row is finite and undefined.
        """
        assert self._buffers is not None
        _, values, turned = self._buffers
        return turned, values

    def filled(self, valid: list[int]) -> tuple[Tensor, Tensor]:
        """The same, cut to the longest row with its `valid` positions of the chunk, at least 1 position."""
        length = max(1, *(old + new for old, new in zip(self.lengths, valid, strict=True)))
        keys, values = self.buffers()
        return keys[:, :, :length], values[:, :, :length]

    def fixed(self, positions: int) -> tuple[Tensor, Tensor, Tensor]:
        """Keys before rotary, values and rotated keys of the first `positions` positions and of one behind them."""
        assert self._buffers is not None
        keys, values, turned = self._with_room(positions, *self._buffers[:2])
        return keys[:, :, : positions + 1], values[:, :, : positions + 1], turned[:, :, : positions + 1]

    def holds(self, keys: Tensor) -> bool:
        """Whether its first keys lie where these do."""
        return self._buffers is not None and self._buffers[0].data_ptr() == keys.data_ptr()

    def keep(self, valid: list[int]) -> None:
        """Makes `valid` positions of the chunk written last part of each row."""
        self.lengths = [old + new for old, new in zip(self.lengths, valid, strict=True)]

    def oldest(self, row: int, length: int) -> tuple[Tensor, Tensor]:
        """Keys before rotary and values of the first positions of one row, [Hkv,length,D]."""
        assert self._buffers is not None
        keys, values, _ = self._buffers
        return keys[row, :, :length], values[row, :, :length]

    def drop(self, counts: list[int], rotation: Rotation) -> None:
        """Drops the first counts[b] positions of row b; the others move up, and their keys are rotated anew."""
        if not any(counts) or self._buffers is None:
            return
        keys, values, turned = self._buffers
        self.lengths = [length - count for length, count in zip(self.lengths, counts, strict=True)]
        length = max(self.lengths)
        for buffer in (keys, values):
            buffer[:, :, :length] = _from(buffer, counts, length)
        positions = torch.arange(length, device=keys.device)
        turned[:, :, :length] = rotation.apply(keys[:, :, :length], positions)

    def reorder(self, rows: list[int]) -> None:
        """Makes row i a copy of row `rows[i]`."""
        self.lengths = [self.lengths[row] for row in rows]
        if self._buffers is not None:
            index = torch.tensor(rows, device=self._buffers[0].device)
            keys, values, turned = (x.index_select(0, index) for x in self._buffers)
            self._buffers = keys, values, turned

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values kept, each key once."""
        if self._buffers is None:
            return 0
        per_position = sum(x.shape[1] * x.shape[-1] * x.element_size() for x in self._buffers[:2])
        return sum(self.lengths) * per_position


def _grown(buffer: Tensor | None, like: Tensor, room: int) -> Tensor:
    """A larger buffer [B,Hkv,room,D] that begins with the old one."""
    # Allocated outside inference mode so the buffer stays writable.
    with torch.inference_mode(False):
        grown = like.new_zeros(like.shape[0], like.shape[1], room, like.shape[3])
    if buffer is not None:
        grown[:, :, : buffer.shape[2]] = buffer
    return grown


def _from(x: Tensor, starts: list[int], length: int) -> Tensor:
    """A copy of `x [B,Hkv,L,D]` from starts[b] on in each row: [B,Hkv,length,D]."""
    if min(starts) == max(starts):
        return x[:, :, starts[0] : starts[0] + length].clone()
    positions = column(tuple(starts), x.device) + torch.arange(length, device=x.device)
    positions = positions.clamp(max=x.shape[2] - 1)[:, None, :, None]
    return x.gather(2, positions.expand(-1, x.shape[1], -1, x.shape[-1]))


def attend_locally(
    window: LocalWindow, query: Tensor, valid: list[int], rotation: Rotation, scoring: Scoring, block_size: int
) -> tuple[Tensor, Tensor]:
    """Grouped softmax of `query [B,H,T,D]`, before rotary, over the window and the chunk that was written behind it.

    Returns the output [B,H,T,Dv] and the logarithm of its denominator [B,H,T]. The fastest operation that serves the
    queries computes it. `valid` positions of each row of the chunk are real.
    """
    width, device = query.shape[2], query.device
    positions = window.positions(valid, width, device)
    if is_few(query):
        return few_queries_attention(
            query, *window.buffers(), positions, rotation, block_size=block_size, scoring=scoring
        )
    turned = rotation.apply(query, positions[:, None])
    keys, values = window.filled(valid)
    if _fused(query):
        first = column(tuple(window.lengths), device)[:, 0]
        return fused_forward(turned, keys, values, block_size=block_size, first_query=first, scoring=scoring)
    if serves(values, block_size):
        return many_queries_attention(turned, keys, values, positions, block_size=block_size, scoring=scoring)
    return blockwise_attention(turned, keys, values, block_size=block_size, query_positions=positions, scoring=scoring)


def _fused(query: Tensor) -> bool:
    """Whether the kernels for a GPU serve these queries."""
    return query.device.type == "cuda" and unsupported_reason(query) is None
