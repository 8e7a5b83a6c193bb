"""Native sliding-window attention layers of hybrid models (Gemma, gpt-oss, ...), for rows of different lengths."""

import copy

import torch
from torch import Tensor

from landmark.ops.scoring import Scoring

# Queries scored at once: bounds the score matrix at [B, H, TILE, window + T].
TILE = 256


def sliding_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_positions: Tensor,
    key_positions: Tensor,
    scoring: Scoring,
    documents: Tensor | None = None,
) -> Tensor:
    """Sliding-window attention: each query sees the `scoring.window` positions that end at its own.

    `query [B,H,Tq,D]`, `key`, `value [B,Hkv,Tk,D]`, already rotated; `query_positions [B or 1,Tq]`,
    `key_positions [B or 1,Tk]` (negative: no key). With `documents [B,T]`, of as many queries as keys, a query sees
    its own document only. Returns `[B,H,Tq,D]`.
    """
    window, sinks, scale = scoring.window, scoring.sinks, scoring.scale_of(query)
    assert window is not None, "a sliding layer names its window"
    groups = query.shape[1] // key.shape[1]
    absent = (key_positions < 0)[:, None, :, None]  # may hold NaN, and 0 times NaN is NaN
    key, value = (t.masked_fill(absent, 0.0).repeat_interleave(groups, 1) for t in (key, value))
    outs = []
    for start in range(0, query.shape[-2], TILE):
        rows = slice(start, start + TILE)
        scores = scoring.cap(query[:, :, rows] @ key.transpose(-1, -2) * scale)
        distance = query_positions[:, rows, None] - key_positions[:, None, :]
        seen = (distance >= 0) & (distance < window) & (key_positions >= 0)[:, None, :]
        if documents is not None:
            seen = seen & (documents[:, rows, None] == documents[:, None, :])
        scores = scores if scores.dtype == torch.float64 else scores.float()
        scores = scores.masked_fill(~seen[:, None], torch.finfo(scores.dtype).min)
        if sinks is not None:
            sink = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
            scores = torch.cat((scores, sink), -1)
        weights = scores.softmax(-1)[..., : key.shape[-2]]
        weights = torch.nn.functional.dropout(weights, scoring.dropout) if scoring.dropout else weights
        outs.append(weights.to(value.dtype) @ value)
    return torch.cat(outs, -2)


class SlidingWindow:
    """KV cache of one sliding layer: the last `window - 1` rotated keys and values of each row, left-aligned."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.keys: Tensor | None = None  # [B, Hkv, window - 1, D]
        self.values: Tensor | None = None
        self.kept: Tensor | None = None  # [B] entries in use
        self.seen: Tensor | None = None  # [B] stream positions read so far

    def attend(self, query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, scoring: Scoring) -> Tensor:
        """Attention of a right-padded chunk, `lengths [B]` valid positions a row; then keeps its newest keys."""
        if self.keys is None or self.values is None or self.kept is None or self.seen is None:
            empty = key.new_zeros(*key.shape[:2], self.window - 1, key.shape[-1])
            self.keys, self.values = empty, empty.clone()
            self.kept = torch.zeros_like(lengths)
            self.seen = torch.zeros_like(lengths)
        room, chunk = self.window - 1, torch.arange(key.shape[-2], device=key.device)
        slots = torch.arange(room, device=key.device)
        past = torch.where(slots < self.kept[:, None], (self.seen - self.kept)[:, None] + slots, -1)
        new = torch.where(chunk < lengths[:, None], self.seen[:, None] + chunk, -1)
        keys, values = torch.cat((self.keys, key), -2), torch.cat((self.values, value), -2)
        positions = torch.cat((past, new), 1)
        out = sliding_attention(query, keys, values, self.seen[:, None] + chunk, positions, scoring)
        total = self.kept + lengths
        kept = total.clamp(max=room)
        # Entry j of a row, oldest first, lies at j in the old buffer or behind it in the chunk.
        entry = (total - kept)[:, None] + slots
        source = torch.where(entry < self.kept[:, None], entry, room + entry - self.kept[:, None])
        source = source.clamp(max=keys.shape[-2] - 1)[:, None, :, None]
        self.keys = keys.gather(-2, source.expand(*key.shape[:2], room, key.shape[-1]))
        self.values = values.gather(-2, source.expand(*value.shape[:2], room, value.shape[-1]))
        self.kept, self.seen = kept, self.seen + lengths
        return out

    def fork(self) -> "SlidingWindow":
        """An independent copy; tensors are shared, for they are replaced and never written to."""
        return copy.copy(self)

    def reorder(self, rows: Tensor) -> None:
        """Makes row i a copy of what was row `rows[i]`."""
        if self.keys is not None and self.values is not None and self.kept is not None and self.seen is not None:
            self.keys, self.values = self.keys[rows], self.values[rows]
            self.kept, self.seen = self.kept[rows], self.seen[rows]

    def check_crop(self, lengths: Tensor) -> None:
        """Raises ValueError if `crop` would need positions that have left the window."""
        if self.seen is not None and bool(((self.seen > lengths) & (self.seen >= self.window)).any()):
            raise ValueError("a sliding-window layer cannot be cropped once its window has moved on")

    def crop(self, lengths: Tensor) -> None:
        """Drops the newest positions, until each row has `lengths [B]`; raises ValueError as `check_crop` does."""
        self.check_crop(lengths)
        if self.kept is not None and self.seen is not None:
            self.kept, self.seen = self.kept - (self.seen - lengths), lengths

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values kept."""
        return sum(t.nbytes for t in (self.keys, self.values) if t is not None)
