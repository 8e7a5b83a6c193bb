"""Blocks in files, a chain for each row."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from landmark.store.backing import Misses
from landmark.store.chain import Chain, SpillFile
from landmark.store.records import BlockShape
from landmark.store.traffic import Traffic


class ColdStore:
    """Implements `landmark.store.backing.Backing`: the blocks of one layer, each in the file of its chain.

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
