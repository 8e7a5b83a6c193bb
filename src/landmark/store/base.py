"""Keys and values of the blocks in memory."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from landmark.ops.retrieved import Pages


@dataclass(frozen=True)
class Traffic:
    """Counts of one store; add those of several layers with `sum(..., Traffic())`.

    `calls`: chunks that asked, or parts of one that had to be cut. `wanted`: distinct blocks of a key-value head,
    summed over heads, rows and calls. `misses`: those of them that were in no slot of the device. `file_bytes` went
    from files to memory, `device_bytes` from memory to the device's slots.
    """

    calls: int = 0
    wanted: int = 0
    misses: int = 0
    file_bytes: int = 0
    device_bytes: int = 0

    @property
    def hits(self) -> int:
        return self.wanted - self.misses

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(
            self.calls + other.calls,
            self.wanted + other.wanted,
            self.misses + other.misses,
            self.file_bytes + other.file_bytes,
            self.device_bytes + other.device_bytes,
        )


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


class BlockStore(Protocol):
    """Block keys and values, for every row of the batch; blocks are numbered from 0 in each row."""

    def append(self, row: int, keys: Tensor, values: Tensor) -> None:
        """Adds `keys [Hkv,m,stride,D]` and `values [Hkv,m,stride,Dv]` as the next m blocks of one row."""
        ...

    def pages(self, blocks: Tensor) -> Iterator[tuple[slice, Pages]]:
        """Where the blocks with numbers `blocks` lie, long [B,H,T,k], [B,1,T,k] or [B,H,1,k]; -1 is no block.

        Some queries at a time: a slice of T, `slice(None)` where all come at once, as they do if queries share their
        blocks. Pages hold until the next are asked for. Page 0 is finite, whatever was stored. A store
        is either always asked for heads together, [B,1,T,k], or never.
        """
        ...

    def reorder(self, rows: list[int]) -> None:
        """Makes row i what row `rows[i]` was."""
        ...

    def fork(self) -> "BlockStore":
        """A store of the same blocks that goes on by itself."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks kept, wherever they lie."""
        ...

    @property
    def traffic(self) -> Traffic:
        """What was moved to serve reads so far."""
        ...

    @property
    def resident(self) -> int:
        """Bytes of blocks in memory."""
        ...


# What slots are filled from: a lower tier.


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


# Bytes of memory, as people write them and as blocks fill them.


_UNITS = {"": 1, **{f"{p}b": 1000**i for i, p in enumerate(("", "k", "m", "g", "t"))}}
_UNITS |= {f"{p}ib": 1024**i for i, p in enumerate(("k", "m", "g", "t"), start=1)}

_NO_MEMORY = 2**63  # bytes that no machine has


def parse_bytes(name: str, value: int | str) -> int:
    """Bytes from a number or from text such as "256MB" or "1.5GiB"; `name` is the setting they are for.

    Raises ValueError for what is neither, or less than one byte.
    """
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text, re.IGNORECASE)
    size = 0.0 if found is None else float(found[1]) * _UNITS.get(found[2].lower(), 0)
    if not 1 <= size < _NO_MEMORY:
        raise ValueError(f"{name} is {value!r}: give bytes, as a whole number or as text like '256MB' or '1.5GiB'")
    return int(size)


def step_bytes(shape: BlockShape, rows: int, blocks: int) -> int:
    """The least budget of a layer whose queries may need `blocks` blocks of each key-value head at once.

    That is retrieve for each query head of the group, and retrieve alone where heads share their choice.
    """
    return rows * shape.nbytes * blocks


def check_budget(budget: int, shape: BlockShape, rows: int, step_blocks: int) -> None:
    """Raises ValueError for a layer's budget that holds less than the `step_blocks` blocks that a query may need."""
    needed = step_bytes(shape, rows, step_blocks)
    if budget < needed:
        raise ValueError(
            f"a layer's budget of {budget} bytes is too small for a single query, whose blocks take {needed} "
            "with all rows: raise the budget, or lower retrieve, block_size or the number of rows"
        )
