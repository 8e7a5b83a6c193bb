"""Growing buffer or ring buffer of one entry per block, behind the indexes of landmark keys and the device store."""

from functools import lru_cache

import torch
from torch import Tensor


class BlockBuffer:
    """One entry for each block of every row and key-value head: `data [B,Hkv,capacity,*entry]`.

    Blocks are numbered from 0 in each row, in the order in which they were appended. The buffer grows by doubling, and
    block number a lies at slot a. With `max_blocks` it is a ring buffer: block number a lies at slot a % max_blocks,
    where newer blocks overwrite the oldest.
    """

    def __init__(self, rows: int, max_blocks: int | None = None) -> None:
        self.counts = [0] * rows  # blocks ever appended to each row
        self.max_blocks = max_blocks
        self.data: Tensor | None = None

    def append(self, row: int, entries: Tensor) -> None:
        """Adds `entries [Hkv,m,*entry]` as the newest blocks of one row."""
        end = self.counts[row] + entries.shape[1]
        if self.max_blocks is not None:
            entries = entries[:, -self.max_blocks :]
        data = self._with_room(end, entries)
        numbers = torch.arange(end - entries.shape[1], end, device=entries.device)
        data[row].index_copy_(1, self.slots(numbers), entries)
        self.counts[row] = end

    def adopt(self, entries: Tensor, count: int) -> None:
        """Makes `entries [Hkv,capacity,*entry]` the buffer itself, without a copy, with `count` blocks of the one row.

        For an empty buffer that is no ring. What is appended is written to them.
        """
        assert self.counts == [0], "only an empty buffer of one row adopts"
        assert self.max_blocks is None, "a ring does not adopt"
        self.data, self.counts = entries[None], [count]

    def _with_room(self, blocks: int, like: Tensor) -> Tensor:
        needed = kept_of(blocks, self.max_blocks)
        capacity = 0 if self.data is None else self.data.shape[2]
        if self.data is None or needed > capacity:
            wanted = kept_of(max(needed, 2 * capacity), self.max_blocks)
            # Uninitialised, so that unused capacity takes no memory on a CPU. Allocated outside inference mode, so that
            # the buffer stays writable.
            with torch.inference_mode(False):
                grown = like.new_empty(len(self.counts), like.shape[0], wanted, *like.shape[2:])
            if self.data is None:
                # Rows without a block read slot 0 with weight 0: it must be finite.
                grown[:, :, 0] = 0
            else:
                grown[:, :, :capacity] = self.data
            self.data = grown
        return self.data

    @property
    def modulus(self) -> int:
        """Block number a lies at slot `a % modulus`."""
        assert self.data is not None, "an empty buffer has no slots"
        return self.data.shape[2] if self.max_blocks is None else self.max_blocks

    def oldest(self, row: int) -> int:
        """Number of the oldest block that a row keeps."""
        return self.counts[row] - kept_of(self.counts[row], self.max_blocks)

    def slots(self, numbers: Tensor) -> Tensor:
        """Slots of block numbers; of -1, which stands for no block, slot 0."""
        numbers = numbers.clamp(min=0)
        return numbers if self.max_blocks is None else numbers % self.max_blocks

    def used(self) -> int:
        """Slots in use in the fullest row."""
        return kept_of(max(self.counts), self.max_blocks)

    def numbers(self, device: torch.device) -> Tensor:
        """Block number at each slot in use, long [B, used]; -1 where a row has none."""
        return slot_numbers(tuple(self.counts), self.max_blocks, device)

    def reorder(self, rows: list[int]) -> None:
        """Makes row i what row `rows[i]` was; the number of rows may change."""
        self.counts = [self.counts[row] for row in rows]
        if self.data is not None:
            used = self.data[:, :, : max(1, self.used())]
            self.data = used.index_select(0, torch.tensor(rows, device=self.data.device))

    @property
    def nbytes(self) -> int:
        """Bytes of the entries kept, unused capacity left out."""
        if self.data is None:
            return 0
        kept = sum(kept_of(count, self.max_blocks) for count in self.counts)
        return kept * self.data[0, :, 0].numel() * self.data.element_size()


def kept_of(count: int, max_blocks: int | None) -> int:
    """How many of `count` blocks are kept, where only the newest `max_blocks` are; all if None."""
    return count if max_blocks is None else min(count, max_blocks)


# The buffers of all layers hold the same block numbers: one layer computes them, the others find them in the cache.
# The cached tensors must not be written to.


@lru_cache(maxsize=4)
def slot_numbers(counts: tuple[int, ...], max_blocks: int | None, device: torch.device) -> Tensor:
    """Block number at each slot in use of a buffer with `counts` blocks appended to each row, long [B, used]."""
    ends = torch.tensor(counts, device=device)[:, None]
    slots = torch.arange(kept_of(max(counts), max_blocks), device=device)
    if max_blocks is None:
        return torch.where(slots < ends, slots, -1)
    newest = ends - 1
    return (newest - (newest - slots) % max_blocks).clamp(min=-1)


@lru_cache(maxsize=4)
def oldest_numbers(counts: tuple[int, ...], max_blocks: int | None, device: torch.device) -> Tensor:
    """Number of the oldest block that each row keeps of its `counts` blocks, long [B]."""
    return torch.tensor([count - kept_of(count, max_blocks) for count in counts], device=device)


@lru_cache(maxsize=4)
def numbers_below(
    counts: tuple[int, ...], max_blocks: int | None, upto: tuple[int, ...], device: torch.device
) -> Tensor:
    """`slot_numbers` of the slots, from the first, that hold all blocks below `upto` [B]; -1 for others."""
    # Only a full ring has low numbers at high slots.
    numbers = slot_numbers(counts, max_blocks, device)[:, : max(upto)]
    return torch.where(numbers < torch.tensor(upto, device=device)[:, None], numbers, -1)
