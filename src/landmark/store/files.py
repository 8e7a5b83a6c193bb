"""Blocks in files, a chain for each row."""

import os
import tempfile
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from landmark.store.base import BlockShape, Misses, Traffic

# Files of blocks: where the keys and values of a block's layers and heads lie, and how they are read and written.


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


# Where the blocks of one row and layer lie in files.


class Target(Protocol):
    """Where new blocks go: a layer of a file's records."""

    @property
    def file(self) -> BlockFile: ...

    @property
    def layer(self) -> int: ...

    def place(self, number: int, count: int) -> int:
        """The record for block `number`; the next `count - 1` blocks follow. No other block ever gets them."""
        ...


class Run(NamedTuple):
    """Blocks that follow each other in a file: number `first` lies at `record`, in all `blocks` of them."""

    file: BlockFile
    layer: int
    record: int
    first: int
    blocks: int


class Chain:
    """The blocks of one row and layer, numbered from 0, in runs of records.

    Forks share the records written so far: runs are values, and new blocks get records that nobody else has. Without
    a `target` a chain can only be read; it may get one later.
    """

    def __init__(self, runs: Iterable[Run] = (), target: Target | None = None) -> None:
        self.target = target
        self._runs = list(runs)

    @property
    def count(self) -> int:
        """Blocks that came."""
        return self._runs[-1].first + self._runs[-1].blocks if self._runs else 0

    @property
    def shape(self) -> BlockShape | None:
        """Shape of a block, None while neither blocks nor a target tell it."""
        known = self._runs[-1] if self._runs else self.target
        return None if known is None else known.file.shapes[known.layer]

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Writes `keys [Hkv,m,stride,D]` and `values [Hkv,m,stride,Dv]` as the next m blocks.

        Raises ValueError for blocks of another shape than the file's, and OSError if they cannot be written; the
        chain is then what it was before.
        """
        target, count = self.target, keys.shape[1]
        assert target is not None, "a chain without a target can only be read"
        shape = BlockShape.of(keys, values)
        expected = target.file.shapes[target.layer]
        if shape != expected:
            raise ValueError(f"{target.file.name} holds {expected}, not {shape}: read on with the same model and dtype")
        record = target.place(self.count, count)
        target.file.write(target.layer, record, keys, values)
        run = Run(target.file, target.layer, record, self.count, count)
        if self._runs and _follows(run, self._runs[-1]):
            run = self._runs[-1]._replace(blocks=self._runs[-1].blocks + count)
            self._runs.pop()
        self._runs.append(run)

    def find(self, number: int) -> tuple[BlockFile, int, int]:
        """The file, layer and record of block `number`."""
        run = self._runs[bisect_right(self._runs, number, key=attrgetter("first")) - 1]
        return run.file, run.layer, run.record + number - run.first

    def fork(self, target: Target | None = None) -> "Chain":
        """A chain of the same blocks, whose new ones go to `target`."""
        return Chain(self._runs, target)


def _follows(run: Run, last: Run) -> bool:
    """Whether a run of the next blocks goes on where the last one ends."""
    return run[:3] == (last.file, last.layer, last.record + last.blocks)


class SpillFile(BlockFile):
    """A file of one layer's blocks, whose records are given out one after another to any number of chains.

    Implements `Target`. It has no name from the start, so that the system takes it back when
    nobody refers to it, also after a crash. Raises OSError if it cannot be made.
    """

    layer = 0

    def __init__(self, shape: BlockShape, directory: str | os.PathLike[str] | None = None) -> None:
        self._raw = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 - open as long as this is
        super().__init__(self._raw.fileno(), [shape], f"a spill file in {directory or tempfile.gettempdir()}")
        self._given = 0

    @property
    def file(self) -> BlockFile:
        return self

    def place(self, number: int, count: int) -> int:
        self._given += count
        return self._given - count


class ColdStore:
    """Implements `landmark.store.base.Backing`: the blocks of one layer, each in the file of its chain.

    New blocks of chains without a target go to a spill file in `directory`, by default the system's for temporary
    files. Raises ValueError if that is no directory.
    """

    def __init__(self, chains: Iterable[Chain], directory: str | os.PathLike[str] | None = None) -> None:
        if directory is not None and not Path(directory).is_dir():
            raise ValueError(f"{str(directory)!r} is no directory for spilled blocks: make it, or name another")
        self._chains = list(chains)
        self._directory = directory
        self._spill: SpillFile | None = None

    def append(self, row: int, keys: Tensor, values: Tensor) -> None:
        chain = self._chains[row]
        if chain.target is None:
            if self._spill is None:
                self._spill = SpillFile(BlockShape.of(keys, values), self._directory)
            chain.target = self._spill
        chain.append(keys, values)

    def fetch(self, misses: Misses, keys: Tensor, values: Tensor) -> Traffic:
        slots = misses.places + keys.shape[2] * (misses.heads + keys.shape[1] * misses.rows)
        rooms = [_bytes_of(x) for x in (keys, values)]
        sizes = [len(room) // keys.shape[:3].numel() for room in rooms]
        # In the order of the files, where the heads of a block lie together.
        order = np.lexsort((misses.heads, misses.numbers, misses.rows))
        rows, heads, numbers, at = (x[order].tolist() for x in (misses.rows, misses.heads, misses.numbers, slots))
        found = [self._chains[row].find(number) for row, number in zip(rows, numbers, strict=True)]
        # A disk works on all of them at once, instead of on one after another.
        for head, (file, layer, record) in zip(heads, found, strict=True):
            file.announce(layer, head, record)
        for head, slot, (file, layer, record) in zip(heads, at, found, strict=True):
            views = (room[slot * size : (slot + 1) * size] for room, size in zip(rooms, sizes, strict=True))
            file.read(layer, head, record, *views)
        return Traffic(file_bytes=len(slots) * sum(sizes))

    def reorder(self, rows: list[int]) -> None:
        # A row that goes on twice goes on in two files.
        taken, chains = set(), []
        for row in rows:
            chains.append(self._chains[row].fork() if row in taken else self._chains[row])
            taken.add(row)
        self._chains = chains

    def fork(self) -> "ColdStore":
        """The same files; new blocks go to a spill file of its own."""
        return ColdStore([chain.fork() for chain in self._chains], self._directory)

    @property
    def shape(self) -> BlockShape | None:
        return next((chain.shape for chain in self._chains if chain.shape is not None), None)

    @property
    def counts(self) -> list[int]:
        return [chain.count for chain in self._chains]

    @property
    def nbytes(self) -> int:
        return 0 if self.shape is None else sum(self.counts) * self.shape.nbytes

    @property
    def resident(self) -> int:
        return 0


def _bytes_of(x: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return memoryview(x.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
