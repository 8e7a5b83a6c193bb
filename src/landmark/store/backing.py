"""What slots are filled from: a lower tier."""

from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from landmark.store.records import BlockShape
from landmark.store.traffic import Traffic


class Misses(NamedTuple):
    """Blocks to bring, long arrays [n]: those of a head one after another, each to a place among its slots."""

    rows: np.ndarray
    heads: np.ndarray
    numbers: np.ndarray
    places: np.ndarray


class Backing(Protocol):
    """All blocks of a layer, kept on or below the host; rows and numbers as in `landmark.store.BlockStore`."""

    def append(self, row: int, keys: Tensor, values: Tensor) -> None:
        """Adds `keys [Hkv,m,stride,D]` and `values [Hkv,m,stride,Dv]` on the CPU as the next m blocks of one row."""
        ...

    def fetch(self, misses: Misses, keys: Tensor, values: Tensor) -> Traffic:
        """Copies blocks to their places in the slots `keys [B,Hkv,S,stride,D]` and `values [B,Hkv,S,stride,Dv]`.

        Returns what was moved. Raises OSError where a file cannot be read.
        """
        ...

    def reorder(self, rows: list[int]) -> None:
        """Makes row i what row `rows[i]` was."""
        ...

    def fork(self) -> "Backing":
        """The same blocks, which go on by themselves."""
        ...

    @property
    def shape(self) -> BlockShape | None:
        """Shape of a block, None before the first."""
        ...

    @property
    def counts(self) -> list[int]:
        """Blocks of each row."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks kept."""
        ...

    @property
    def resident(self) -> int:
        """Bytes of blocks in memory."""
        ...


Places = tuple[np.ndarray, np.ndarray, np.ndarray]  # rows, heads and places of n blocks


def move(sources: tuple[Tensor, Tensor], there: Places, targets: tuple[Tensor, Tensor], here: Places) -> Traffic:
    """Copies keys and values of blocks from slots in memory to slots of a device."""
    moved = 0
    taken, put = (tuple(torch.from_numpy(x) for x in places) for places in (there, here))
    for source, target in zip(sources, targets, strict=True):
        picked = source[taken]
        moved += picked.nbytes
        if target.device.type == "cuda":
            picked = picked.pin_memory().to(target.device, non_blocking=True)
        target[tuple(x.to(target.device) for x in put)] = picked
    return Traffic(device_bytes=moved)
