"""The interfaces of block stores and of the tier below them, and what they share: block shapes, traffic, budgets."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from landmark.ops.retrieved import Pages


class ResidentBlocks(NamedTuple):
    """Blocks in place: number a of a row lies at slot `a % modulus` of `keys [B,Hkv,S,stride,D]` and `values`.

    With `behind`, blocks from number `modulus` on lie there, counted from 0.
    """

    keys: Tensor
    values: Tensor
    modulus: int
    behind: "ResidentBlocks | None" = None

    def pages(self, blocks: Tensor) -> Pages:
        """The pages of blocks with numbers `blocks`, -1 for none, as `BlockStore.pages` has them."""
        if self.behind is None:
            return Pages(self.keys, self.values, torch.where(blocks < 0, -1, blocks % self.modulus))
        here = blocks < self.modulus
        behind = self.behind.pages(torch.where(here, -1, blocks - self.modulus))
        return Pages(self.keys, self.values, torch.where(here, blocks, -1), behind)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors."""
        return [self.keys, self.values, *([] if self.behind is None else self.behind.tensors)]

    @property
    def nbytes(self) -> int:
        """Bytes of all slots."""
        return sum(tensor.nbytes for tensor in self.tensors)


class BlockStore(Protocol):
    """Keys and values of the blocks of one layer, for every row of the batch; blocks are numbered from 0 in each row.

    A store belongs to one layer. B rows, H query heads, Hkv key-value heads, blocks of `stride` positions.
    """

    def append(self, row: int, keys: Tensor, values: Tensor) -> object:
        """Adds `keys [Hkv,m,stride,D]` and `values [Hkv,m,stride,Dv]` as the next m blocks of one row."""
        ...

    def pages(self, blocks: Tensor) -> Iterator[tuple[slice, Pages]]:
        """The pages of blocks with numbers `blocks`, long [B,H,T,k], [B,Hkv,T,k], [B,1,T,k] or [B,H,1,k]; -1 is none.

        Some queries at a time: a slice of T, `slice(None)` where all come at once, as they do if queries share their
        blocks. Pages are valid until the next are taken. Page 0 is finite, whatever was stored. A store is either
        always read for heads together, [B,1,T,k], or never.
        """
        ...

    def resident_blocks(self) -> ResidentBlocks | None:
        """All blocks that are kept, for a caller that reads some of them itself; None if some may not be in memory."""
        ...

    def reorder(self, rows: list[int]) -> None:
        """Makes row i what row `rows[i]` was."""
        ...

    def fork(self) -> "BlockStore":
        """An independent store of the same blocks."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks kept, in whatever tier."""
        ...

    @property
    def traffic(self) -> "Traffic":
        """Cache hits, cache misses and bytes moved since the store was made."""
        ...


class BackingStore(Protocol):
    """Interface of the tier below a bounded cache: all blocks of a layer, in host memory or in files.

    Rows and block numbers as in `BlockStore`.
    """

    def append(self, row: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor] | None:
        """Adds `keys [Hkv,m,stride,D]` and `values [Hkv,m,stride,Dv]` on the CPU as the next m blocks of one row.

        Returns the blocks as `fetch` will give them where they are rounded, None where they are kept as they are.
        """
        ...

    def fetch(self, misses: "CacheMisses", keys: Tensor, values: Tensor) -> "Traffic":
        """Copies blocks into the slots `keys [B,Hkv,S,stride,D]` and `values [B,Hkv,S,stride,Dv]` of the cache.

        Returns what was moved. Raises OSError where a file cannot be read.
        """
        ...

    def reorder(self, rows: list[int]) -> None:
        """Makes row i what row `rows[i]` was."""
        ...

    def fork(self) -> "BackingStore":
        """An independent store of the same blocks."""
        ...

    @property
    def shape(self) -> "BlockShape | None":
        """Shape of a block, None before the first."""
        ...

    @property
    def counts(self) -> list[int]:
        """Number of blocks of each row."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks kept."""
        ...


class BlockShape(NamedTuple):
    """Shape of a block in one layer: `heads` pieces of keys `[stride,key_dim]` and values `[stride,value_dim]`."""

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

    def empty(self, rows: int, blocks: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Buffers `[rows,heads,blocks,stride,key_dim]` and `[..,value_dim]` for the keys and values of so many blocks.

        Uninitialised, so that unused ones take no memory on a CPU. Allocated outside inference mode, so that they stay
        writable.
        """
        with torch.inference_mode(False):
            keys, values = (
                torch.empty(rows, self.heads, blocks, self.stride, dim, dtype=self.dtype, device=device)
                for dim in (self.key_dim, self.value_dim)
            )
        return keys, values


class CacheMisses(NamedTuple):
    """Blocks to fetch from the lower tier, long arrays [n], those of a head side by side, and the slot of each."""

    rows: np.ndarray
    heads: np.ndarray
    blocks: np.ndarray
    slots: np.ndarray

    def ranks(self, heads: int) -> np.ndarray:
        """The place of each among those of its row and head, counted from 0; there are `heads` heads."""
        flat = self.rows * heads + self.heads
        counts = np.bincount(flat)
        return np.arange(len(flat)) - (np.cumsum(counts) - counts)[flat]


@dataclass(frozen=True)
class Traffic:
    """Cache hits, cache misses and bytes moved by one store; add those of several layers with `sum(..., Traffic())`.

    `calls`: chunks that were read, or parts of one that had to be split. `requested`: distinct blocks of a key-value
    head, summed over heads, rows and calls. `cache_misses`: those of them that were in no slot of the device.
    `file_bytes` went from files to memory, `device_bytes` from memory to the slots of the device.
    """

    calls: int = 0
    requested: int = 0
    cache_misses: int = 0
    file_bytes: int = 0
    device_bytes: int = 0

    @property
    def cache_hits(self) -> int:
        """Requested pieces that were in the upper tier."""
        return self.requested - self.cache_misses

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(
            self.calls + other.calls,
            self.requested + other.requested,
            self.cache_misses + other.cache_misses,
            self.file_bytes + other.file_bytes,
            self.device_bytes + other.device_bytes,
        )

    def __sub__(self, other: "Traffic") -> "Traffic":
        return self + Traffic(
            -other.calls, -other.requested, -other.cache_misses, -other.file_bytes, -other.device_bytes
        )


SlotIndex = tuple[np.ndarray, np.ndarray, np.ndarray]  # rows, heads and slots of n blocks
Decoder = Callable[[Tensor], Tensor]


def _as_it_is(blocks: Tensor) -> Tensor:
    return blocks


def copy_blocks(
    sources: tuple[Tensor, ...],
    taken: SlotIndex,
    targets: tuple[Tensor, Tensor],
    filled: SlotIndex,
    decoders: tuple[Decoder, Decoder] = (_as_it_is, _as_it_is),
) -> Traffic:
    """Copies keys and values of blocks from slots `taken` in host memory to the slots `filled` of a device.

    There `decoders` make blocks `[n,stride,D]` of the keys, and of the values, that were copied.
    """
    moved = 0
    source_index, target_index = (tuple(torch.from_numpy(x) for x in index) for index in (taken, filled))
    for source, target, decode in zip(sources, targets, decoders, strict=True):
        blocks = source[source_index]
        moved += blocks.nbytes
        if target.device.type == "cuda":
            blocks = blocks.pin_memory().to(target.device, non_blocking=True)
        target[tuple(x.to(target.device) for x in target_index)] = decode(blocks)
    return Traffic(device_bytes=moved)


# Budgets

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

    That is `retrieve` blocks for each query head of the group, or for all of them where heads share their blocks.
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
