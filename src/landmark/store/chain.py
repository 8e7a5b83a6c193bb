"""Where the blocks of one row and layer lie in files."""

import os
import tempfile
from bisect import bisect_right
from collections.abc import Iterable
from operator import attrgetter
from typing import NamedTuple, Protocol

from torch import Tensor

from landmark.store.records import BlockFile, BlockShape


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
