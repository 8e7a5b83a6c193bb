"""Block store in files: where the extents of a row lie, how records are read and written, and spill files."""

import os
import tempfile
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from landmark.store.base import BlockShape, CacheMisses, Traffic


class BlockFile:
    """A file of records of equal length: one block each, layer after layer, head after head, keys before values.

    The keys and values of one head (a piece) are contiguous, so that a head fetches a block with one read. Reads and
    writes are positioned: threads may share the file, and so may processes, one of which writes.
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

    def __reduce__(self) -> Any:
        raise ValueError(
            f"blocks of this cache lie in a file, {self.name}, and cannot be pickled or copied with it: copy a cache by"
            " its fork(), keep one as a landmark.Context, or leave out host_budget"
        )

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
        """Reads one piece into `keys`, of `key_bytes`, and `values`.

        Raises OSError, with the file's name, if the system cannot read or the file ends too early.
        """
        self._read_into([keys, values], layer, record, self._start(layer, head, record))

    def _read_into(self, parts: Sequence[memoryview | bytearray], layer: int, record: int, offset: int) -> None:
        """Fills `parts` from `offset` on, which lies in a layer of a record."""
        try:
            done = os.preadv(self.descriptor, parts, offset)
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.name) from error
        if done != sum(map(len, parts)):
            raise OSError(f"{self.name} ends inside block record {record}, layer {layer}: it was cut short")

    def prefetch(self, layer: int, head: int, record: int) -> None:
        """Asks the system to fetch a piece in the background, for a later `read`."""
        self._announce(self._start(layer, head, record), self.shapes[layer].piece_bytes)

    def _announce(self, start: int, length: int) -> None:
        if hasattr(os, "posix_fadvise"):  # macOS has none
            os.posix_fadvise(self.descriptor, start, length, os.POSIX_FADV_WILLNEED)

    def _start(self, layer: int, head: int, record: int) -> int:
        return record * self.record_bytes + self.layer_starts[layer] + head * self.shapes[layer].piece_bytes


class ExtentTarget(Protocol):
    """Where new blocks are written: one layer of the records of a file."""

    @property
    def file(self) -> BlockFile: ...

    @property
    def layer(self) -> int: ...

    def allocate(self, number: int, count: int) -> int:
        """Allocates records for the `count` blocks from `number` on; returns the first. They are never reused."""
        ...


class Extent(NamedTuple):
    """Blocks `first` to `first + blocks - 1` of one layer, in consecutive records of a file from `record` on."""

    file: BlockFile
    layer: int
    record: int
    first: int
    blocks: int


class ExtentMap:
    """Maps the blocks of one row and layer, numbered from 0, to extents of files.

    Forks share the records written so far: extents are values, and new blocks get records of their own. Without a
    `target` it can only be read; it may get one later.
    """

    def __init__(self, extents: Iterable[Extent] = (), target: ExtentTarget | None = None) -> None:
        self.target = target
        self._extents = list(extents)

    @property
    def count(self) -> int:
        """Number of blocks."""
        return self._extents[-1].first + self._extents[-1].blocks if self._extents else 0

    @property
    def shape(self) -> BlockShape | None:
        """Shape of a block, None while there are neither blocks nor a target."""
        known = self._extents[-1] if self._extents else self.target
        return None if known is None else known.file.shapes[known.layer]

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Writes `keys [Hkv,m,stride,D]` and `values [Hkv,m,stride,Dv]` as the next m blocks.

        Raises ValueError for blocks of another shape than the file's, and OSError if they cannot be written; the map
        is then unchanged.
        """
        target, count = self.target, keys.shape[1]
        assert target is not None, "an extent map without a target is read-only"
        shape = BlockShape.of(keys, values)
        expected = target.file.shapes[target.layer]
        if shape != expected:
            raise ValueError(f"{target.file.name} holds {expected}, not {shape}: read on with the same model and dtype")
        record = target.allocate(self.count, count)
        target.file.write(target.layer, record, keys, values)
        extent = Extent(target.file, target.layer, record, self.count, count)
        if self._extents and _follows(extent, self._extents[-1]):
            extent = self._extents[-1]._replace(blocks=self._extents[-1].blocks + count)
            self._extents.pop()
        self._extents.append(extent)

    def find(self, number: int) -> tuple[BlockFile, int, int]:
        """The file, layer and record of block `number`."""
        extent = self._extents[bisect_right(self._extents, number, key=attrgetter("first")) - 1]
        return extent.file, extent.layer, extent.record + number - extent.first

    def fork(self, target: ExtentTarget | None = None) -> "ExtentMap":
        """A map of the same blocks, whose new ones are written to `target`."""
        return ExtentMap(self._extents, target)


def _follows(extent: Extent, last: Extent) -> bool:
    """Whether an extent of the next blocks begins where the last one ends."""
    return extent[:3] == (last.file, last.layer, last.record + last.blocks)


class SpillFile(BlockFile):
    """Temporary file of one layer's blocks, from which any number of extent maps allocate records.

    Implements `ExtentTarget`. The file has no name, so that the system frees it when it is no longer referenced, also
    after a crash. Raises OSError if it cannot be created.
    """

    layer = 0

    def __init__(self, shape: BlockShape, directory: str | os.PathLike[str] | None = None) -> None:
        self._raw = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 - open as long as this is
        super().__init__(self._raw.fileno(), [shape], f"a spill file in {directory or tempfile.gettempdir()}")
        self._allocated = 0

    @property
    def file(self) -> BlockFile:
        return self

    def allocate(self, number: int, count: int) -> int:
        self._allocated += count
        return self._allocated - count


class FileStore:
    """Backing store in files: the blocks of one layer, those of each row in the extents of its map.

    Implements `landmark.store.base.BackingStore`. New blocks of a row without a target go to a spill file.
    """

    def __init__(self, maps: Iterable[ExtentMap]) -> None:
        self._maps = list(maps)
        self._spill: SpillFile | None = None

    def append(self, row: int, keys: Tensor, values: Tensor) -> None:
        extents = self._maps[row]
        if extents.target is None:
            if self._spill is None:
                self._spill = SpillFile(BlockShape.of(keys, values))
            extents.target = self._spill
        extents.append(keys, values)

    def fetch(self, misses: CacheMisses, keys: Tensor, values: Tensor) -> Traffic:
        slots = misses.slots + keys.shape[2] * (misses.heads + keys.shape[1] * misses.rows)
        buffers = [_bytes_of(x) for x in (keys, values)]
        sizes = [len(buffer) // keys.shape[:3].numel() for buffer in buffers]
        # In the order of the files, where the heads of a block lie side by side.
        order = np.lexsort((misses.heads, misses.blocks, misses.rows))
        rows, heads, blocks, at = (x[order].tolist() for x in (misses.rows, misses.heads, misses.blocks, slots))
        found = [self._maps[row].find(number) for row, number in zip(rows, blocks, strict=True)]
        # All reads are announced first, so that a disk serves them in parallel.
        for head, (file, layer, record) in zip(heads, found, strict=True):
            file.prefetch(layer, head, record)
        for head, slot, (file, layer, record) in zip(heads, at, found, strict=True):
            views = (buffer[slot * size : (slot + 1) * size] for buffer, size in zip(buffers, sizes, strict=True))
            file.read(layer, head, record, *views)
        return Traffic(file_bytes=len(slots) * sum(sizes))

    def reorder(self, rows: list[int]) -> None:
        # A row that is repeated continues in two files.
        taken, maps = set(), []
        for row in rows:
            maps.append(self._maps[row].fork() if row in taken else self._maps[row])
            taken.add(row)
        self._maps = maps

    def fork(self) -> "FileStore":
        """A store over the same files; new blocks go to a spill file of its own."""
        return FileStore(extents.fork() for extents in self._maps)

    @property
    def shape(self) -> BlockShape | None:
        return next((extents.shape for extents in self._maps if extents.shape is not None), None)

    @property
    def counts(self) -> list[int]:
        return [extents.count for extents in self._maps]

    @property
    def nbytes(self) -> int:
        return 0 if self.shape is None else sum(self.counts) * self.shape.nbytes


def _bytes_of(x: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return memoryview(x.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
