"""Files of blocks: where the keys and values of a block's layers and heads lie, and how they are read and written."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class BlockShape(NamedTuple):
    """What one layer keeps of a block: `heads` pieces of keys `[stride,key_dim]` and values `[stride,value_dim]`."""

    heads: int
    stride: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype

    @classmethod
    def of(cls, keys: Tensor, values: Tensor) -> "BlockShape":
        """The shape of blocks `keys [Hkv,m,stride,D]` and `values [Hkv,m,stride,Dv]`."""
        return cls(keys.shape[0], keys.shape[2], keys.shape[3], values.shape[3], keys.dtype)

    @property
    def key_bytes(self) -> int:
        """Bytes of one head's keys."""
        return self.stride * self.key_dim * self.dtype.itemsize

    @property
    def piece_bytes(self) -> int:
        """Bytes of one head's keys and values."""
        return self.stride * (self.key_dim + self.value_dim) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the block in this layer."""
        return self.heads * self.piece_bytes


class BlockFile:
    """Records of equal length: one block each, layer after layer, head after head, keys before values.

    Every piece of a head is one run of bytes, so that a head fetches the blocks it chose with a read each. Writes and
    reads are positioned: threads may share the file, and so may processes, one of which writes.
    """

    def __init__(self, descriptor: int, shapes: Sequence[BlockShape], name: str) -> None:
        self.descriptor = descriptor
        self.shapes = tuple(shapes)
        self.name = name
        starts = [0]
        for shape in shapes:
            starts.append(starts[-1] + shape.nbytes)
        self.layer_starts = starts[:-1]
        self.record_bytes = starts[-1]

    def write(self, layer: int, record: int, keys: Tensor, values: Tensor) -> list[memoryview]:
        """Writes one layer of m blocks from `record` on: `keys [Hkv,m,stride,D]`, `values [Hkv,m,stride,Dv]`.

        Returns the bytes written for each block. Raises OSError if the system does not take them all.
        """
        pieces = torch.cat((keys.flatten(2), values.flatten(2)), dim=2).transpose(0, 1).contiguous()
        written = []
        for step, block in enumerate(pieces.cpu().view(torch.uint8).flatten(1).numpy()):
            data = memoryview(block)
            offset = (record + step) * self.record_bytes + self.layer_starts[layer]
            self._write_all(data, offset)
            written.append(data)
        return written

    def _write_all(self, data: memoryview, offset: int) -> None:
        while data:
            done = os.pwrite(self.descriptor, data, offset)
            data, offset = data[done:], offset + done

    def read(self, layer: int, head: int, record: int, keys: memoryview, values: memoryview) -> None:
        """Fills the bytes of one piece: `keys` of `key_bytes` and `values` of the rest.

        Raises OSError, with the file's name, if the system cannot read or the file ends before.
        """
        try:
            done = os.preadv(self.descriptor, [keys, values], self._start(layer, head, record))
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.name) from error
        if done != self.shapes[layer].piece_bytes:
            raise OSError(f"{self.name} ends inside block record {record}, layer {layer}: it was cut short")

    def announce(self, layer: int, head: int, record: int) -> None:
        """Asks the system to fetch a piece in the background, for a `read` that follows."""
        if hasattr(os, "posix_fadvise"):  # macOS has none
            start, length = self._start(layer, head, record), self.shapes[layer].piece_bytes
            os.posix_fadvise(self.descriptor, start, length, os.POSIX_FADV_WILLNEED)

    def _start(self, layer: int, head: int, record: int) -> int:
        return record * self.record_bytes + self.layer_starts[layer] + head * self.shapes[layer].piece_bytes
