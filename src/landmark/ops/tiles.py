"""How blockwise attention cuts its work: keys in whole blocks, queries in tiles, and who may see what."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from landmark.ops.nonfinite import all_finite, cleaned, reads_any

_TILE_QUERIES = 128  # short blocks are taken together up to this many queries, as measured by `landmark bench ops`
_TILE_QUERIES_SHORT = 32  # the same for short inputs
_TILE_QUERIES_LIMIT = 128  # longer blocks are split
_BUFFER_ELEMENTS = 1 << 19  # scores of one chunk on a CPU: small enough to stay in cache
_BUFFER_ELEMENTS_ACCELERATOR = 1 << 25  # elsewhere: large enough to fill the device


class Tile(NamedTuple):
    """Queries [start, stop), whose own blocks lie among [first, last]."""

    start: int
    stop: int
    first: int
    last: int


class Masks(NamedTuple):
    """What decides which keys a query may see."""

    query_positions: Tensor  # [B or 1, Tq]
    key_mask: Tensor | None  # [B, Tk], True where a key is real
    segments: Tensor | None  # [B, Tk]
    query_segments: Tensor | None  # [B, Tq]


class Rules(NamedTuple):
    """The numbers of one call."""

    stride: int
    scale: float
    softcap: float | None
    dropout: float
    seed: int  # of dropout: drawn once, so that backward drops what forward dropped


class Grid:
    """Keys and values [N, blocks * stride, D] in the working dtype, N = B * Hkv, and the tiles of queries.

    The rows of a tile are its queries for every head of a group: grouped-query heads share keys uncopied.
    Landmark rows of `value` are zero, so that the weights standing at landmarks need no masking anywhere.

    Where a number is NaN or infinite (`tainted`), what stands behind a mask must be kept out by hand, for 0 times NaN
    is NaN: values are 0 there, and `bad [N, places, D]` says where; products that make gradients take `clean_key`.
    """

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, masks: Masks, rules: Rules) -> None:
        self.rules = rules
        self.stride = stride = rules.stride
        self.batch, self.kv_heads, length, _ = key.shape
        self.groups = query.shape[1] // self.kv_heads
        self.dtype = working_dtype(query)
        self.blocks = -(-length // stride)
        self._beyond = self.blocks * stride - length
        self._masks = masks
        as_it_is = self._beyond == 0 and key.dtype == self.dtype and key.is_contiguous()
        self.key = key.flatten(0, 1) if as_it_is else self._in_blocks(key).flatten(1, 2)
        self.value = self._in_blocks(value)
        self.value[:, :, -1] = 0.0
        self.value = self.value.flatten(1, 2)
        self.tainted = not all_finite(query, self.key, self.value)
        self.bad = self.clean_key = self.key
        if self.tainted:
            self.bad, self.clean_key = ~self.value.isfinite(), cleaned(self.key)
            self.value = cleaned(self.value)
            self.key = self.key.masked_fill(~self.key.isfinite(), torch.nan)  # an infinite score says as little
        self.tiles = list(_tiles(masks.query_positions.cpu(), stride, length))
        rows = self.groups * max((tile.stop - tile.start for tile in self.tiles), default=1)
        limit = _BUFFER_ELEMENTS if key.device.type == "cpu" else _BUFFER_ELEMENTS_ACCELERATOR
        self._chunk_blocks = min(self.blocks, max(1, limit // (len(self.key) * rows * stride)))
        self._buffer_shape = (len(self.key) * rows * self._chunk_blocks * stride,)

    def _in_blocks(self, x: Tensor) -> Tensor:
        laid = x.new_empty(*x.shape[:2], self.blocks * self.stride, x.shape[3], dtype=self.dtype)
        laid[:, :, : x.shape[2]] = x
        laid[:, :, x.shape[2] :] = 0.0
        return laid.view(-1, self.blocks, self.stride, x.shape[3])

    def spoil(self, out: Tensor, weights: Tensor, places: Tensor | slice) -> None:
        """Makes `out [N, rows, D]` NaN, in place, where `weights [N, rows, places]` other than 0 read a bad value."""
        if self.tainted:
            out.masked_fill_(reads_any(weights, self.bad[:, places]), torch.nan)

    def rows(self, x: Tensor, tile: Tile) -> Tensor:
        """The tile's part of x [B,H,Tq,D] as rows [N, groups * queries, D] in the working dtype."""
        part = x[:, :, tile.start : tile.stop].to(self.dtype)
        return part.reshape(len(self.key), -1, x.shape[-1])

    def by_head(self, rows: Tensor) -> Tensor:
        """Rows [N, groups * queries, ...] as [B, H, queries, ...]."""
        return rows.view(self.batch, self.kv_heads * self.groups, -1, *rows.shape[2:])

    def as_rows(self, x: Tensor) -> Tensor:
        """The inverse of `by_head`."""
        return x.reshape(len(self.key), -1, *x.shape[3:])

    def from_blocks(self, grad: Tensor, like: Tensor) -> Tensor:
        """A gradient [N, blocks * stride, D] as one of `like` [B,Hkv,Tk,D]."""
        return grad.view(self.batch, self.kv_heads, -1, grad.shape[-1])[:, :, : like.shape[2]].to(like.dtype)

    def by_block(self, x: Tensor) -> Tensor:
        """The last dimension, places of whole blocks, as [blocks, stride]."""
        return x.unflatten(-1, (-1, self.stride))

    def hide(self, rows: Tensor, hidden: Tensor, fill: float) -> None:
        """Fill rows [N, groups * queries, places] where hidden [B or 1, queries or 1, places], in place."""
        self.by_head(rows).masked_fill_(hidden[:, None], fill)

    def chunks(self, tile: Tile) -> Iterator[slice]:
        """Ranges of blocks that end before the tile's last own block, each filling at most one buffer."""
        for start in range(0, tile.last, self._chunk_blocks):
            yield slice(start, min(start + self._chunk_blocks, tile.last))

    def places_of(self, blocks: slice) -> slice:
        return slice(blocks.start * self.stride, blocks.stop * self.stride)

    def buffer(self) -> Tensor:
        return self.key.new_empty(self._buffer_shape)

    def foreign(self, tile: Tile, places: Tensor | slice) -> Tensor | None:
        """Keys of padding or of other segments: bool [B, queries or 1, places]; None if there are none."""
        hidden = None
        if self._masks.key_mask is not None:
            hidden = ~self._padded(self._masks.key_mask)[:, None, places]
        if self._masks.segments is not None and self._masks.query_segments is not None:
            own = self._masks.query_segments[:, tile.start : tile.stop, None]
            other = own != self._padded(self._masks.segments)[:, None, places]
            hidden = other if hidden is None else hidden | other
        return hidden if hidden is not None and bool(hidden.any()) else None

    def _padded(self, x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x, (0, self._beyond))

    def joint_places(self, tile: Tile) -> Tensor:
        """Places that joint softmaxes may need: landmarks before block `first`, then blocks first to last."""
        device = self.key.device
        landmarks = torch.arange(tile.first, device=device) * self.stride + self.stride - 1
        own = torch.arange(tile.first * self.stride, (tile.last + 1) * self.stride, device=device)
        return torch.cat([landmarks, own])

    def outside_joint(self, tile: Tile, places: Tensor) -> Tensor:
        """Keys neither in a query's local set nor among its gates: bool [B or 1, queries, places]."""
        position = self._masks.query_positions[:, tile.start : tile.stop, None]
        own, block = position // self.stride, places // self.stride
        is_landmark = places % self.stride == self.stride - 1
        outside = torch.where(is_landmark, block >= own, (block != own) | (places > position))
        foreign = self.foreign(tile, places)
        return outside if foreign is None else outside | foreign


def working_dtype(x: Tensor) -> torch.dtype:
    """Scores and softmax are computed in float32 at least."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _tiles(positions: Tensor, stride: int, keys: int) -> Iterator[Tile]:
    """Cut queries where the first row crosses block boundaries, so that tiles see whole earlier blocks."""
    # A tile meets its own blocks densely, which costs more than larger products save where there is little else.
    together = min(_TILE_QUERIES, max(_TILE_QUERIES_SHORT, keys // 16))
    length = positions.shape[1]
    span = stride * max(1, together // stride)
    start = 0
    while start < length:
        to_boundary = span - int(positions[0, start]) % span
        stop = min(length, start + min(to_boundary, _TILE_QUERIES_LIMIT))
        own = positions[:, start:stop] // stride
        yield Tile(start, stop, int(own.min()), int(own.max()))
        start = stop
