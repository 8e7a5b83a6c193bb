"""Blocks in int8 below the device: each is rounded once, when it is appended, and dequantized when it is fetched.

Keys have a scale for each channel of a block and head, values one for each token of it. Channels of keys differ in
their range and keep it over the text, values do not (KIVI, Liu et al. 2024, https://arxiv.org/abs/2402.02750). Scales
are symmetric, the largest magnitude over 127: with 8 bits there is no need of KIVI's zero points.
"""

from functools import partial

import torch
from torch import Tensor

from landmark.store.base import BackingStore, BlockShape, CacheMisses, Traffic, copy_blocks

_LARGEST = 127
_SCALE_BYTES = 4  # float32
_SMALLEST = torch.finfo(torch.float32).tiny  # of a scale: zeros stay zeros


def packed_shape(shape: BlockShape) -> BlockShape:
    """Shape of blocks as `Int8Store` keeps them: a row of bytes for the keys of a head, and one for its values."""
    keys = (shape.stride + _SCALE_BYTES) * shape.key_dim
    return BlockShape(shape.heads, 1, keys, shape.stride * (shape.value_dim + _SCALE_BYTES), torch.int8)


def quantized(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Codes of `x` in int8, and for each vector along `dim` its scale in float32; `dim` stays, with one entry."""
    scales = (x.abs().amax(dim, keepdim=True).float() / _LARGEST).clamp(min=_SMALLEST)
    return (x / scales).round().to(torch.int8), scales


def pack(x: Tensor, dim: int) -> Tensor:
    """`x [..,stride,D]` as int8 [..,1,n]: codes `[stride,D]`, then scales in float32, the largest of `dim` -2 or -1."""
    codes, scales = quantized(x.to(torch.promote_types(x.dtype, torch.float32)), dim)
    return torch.cat((codes.flatten(-2), scales.view(torch.int8).flatten(-2)), dim=-1).unsqueeze(-2)


def unpack(packed: Tensor, dim: int, *, stride: int, width: int, dtype: torch.dtype) -> Tensor:
    """What `pack` made of [..,stride,width] in `dtype`, rounded: each code times its scale, in float32 or wider."""
    codes, scales = packed.squeeze(-2).tensor_split([stride * width], dim=-1)
    scales = scales.clone(memory_format=torch.contiguous_format).view(torch.float32)  # bytes lie anywhere
    wide = codes.unflatten(-1, (stride, width)).to(torch.promote_types(dtype, torch.float32))
    return (wide * scales.unsqueeze(dim)).to(dtype)


class Int8Store:
    """Backing store that keeps blocks in int8 in `below`, about a quarter of the bytes of float32.

    Implements `landmark.store.base.BackingStore`. Numbers that are not finite make NaN of all that share their scale.
    `shape` is that of the blocks before they are packed, None before there are any.
    """

    def __init__(self, below: BackingStore, shape: BlockShape | None = None) -> None:
        self._below = below
        self._shape = shape

    def append(self, row: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See `BackingStore.append`. Raises ValueError for blocks of another shape than those before."""
        shape = BlockShape.of(keys, values)
        if self._shape not in (None, shape):
            raise ValueError(f"the store holds {self._shape}, not {shape}: read on with the same model and dtype")
        packed = pack(keys, -2), pack(values, -1)
        self._below.append(row, *packed)
        self._shape = shape
        unpack_keys, unpack_values = _decoders(shape)
        return unpack_keys(packed[0]), unpack_values(packed[1])

    def fetch(self, misses: CacheMisses, keys: Tensor, values: Tensor) -> Traffic:
        shape, ranks = self._shape, misses.ranks(keys.shape[1])
        assert shape is not None, "an empty store has no blocks to fetch"
        kept = packed_shape(shape)
        packed = tuple(
            torch.empty(*keys.shape[:2], ranks.max() + 1, 1, width, dtype=torch.int8)
            for width in (kept.key_dim, kept.value_dim)
        )
        moved = self._below.fetch(misses._replace(slots=ranks), *packed)
        taken, filled = (misses.rows, misses.heads, ranks), (misses.rows, misses.heads, misses.slots)
        return moved + copy_blocks(packed, taken, (keys, values), filled, _decoders(shape))

    def reorder(self, rows: list[int]) -> None:
        self._below.reorder(rows)

    def fork(self) -> "Int8Store":
        """A store over a fork of `below`."""
        return Int8Store(self._below.fork(), self._shape)

    @property
    def shape(self) -> BlockShape | None:
        return self._shape

    @property
    def counts(self) -> list[int]:
        return self._below.counts

    @property
    def nbytes(self) -> int:
        return self._below.nbytes


def _decoders(shape: BlockShape) -> tuple[partial[Tensor], partial[Tensor]]:
    """What makes keys and values of their packed form."""
    common = partial(unpack, stride=shape.stride, dtype=shape.dtype)
    return partial(common, dim=-2, width=shape.key_dim), partial(common, dim=-1, width=shape.value_dim)
