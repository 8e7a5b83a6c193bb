"""Entries of blocks, per row of a batch: grows by doubling, or keeps the newest in a ring."""

import torch
from torch import Tensor


class BlockRing:
    """Per row and key-value head, one entry for each block: `data [B,Hkv,capacity,*entry]`.

    Blocks are numbered from 0 in the order they came, in each row. Block number a lies at slot a, or, with
    `max_blocks`, at slot a % max_blocks, where newer blocks overwrite the oldest.
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

    def _with_room(self, blocks: int, like: Tensor) -> Tensor:
        needed = blocks if self.max_blocks is None else min(blocks, self.max_blocks)
        capacity = 0 if self.data is None else self.data.shape[2]
        if self.data is None or needed > capacity:
            wanted = max(needed, 2 * capacity)
            wanted = wanted if self.max_blocks is None else min(wanted, self.max_blocks)
            # Left uninitialised, so that capacity nobody has used yet takes no memory on a CPU.
            grown = like.new_empty(len(self.counts), like.shape[0], wanted, *like.shape[2:])
            if self.data is None:
                # Rows without a block are read at slot 0, with weight 0: what stands there must be finite.
                grown[:, :, 0] = 0
            else:
                grown[:, :, :capacity] = self.data
            self.data = grown
        return self.data

    def slots(self, numbers: Tensor) -> Tensor:
        """Slots of block numbers; of -1, which stands for no block, slot 0."""
        numbers = numbers.clamp(min=0)
        return numbers if self.max_blocks is None else numbers % self.max_blocks

    def used(self) -> int:
        """Slots in use in the fullest row."""
        most = max(self.counts)
        return most if self.max_blocks is None else min(most, self.max_blocks)

    def numbers(self, device: torch.device) -> Tensor:
        """Block number at each slot in use, long [B, used]; -1 where a row has none."""
        counts = torch.tensor(self.counts, device=device)[:, None]
        slots = torch.arange(self.used(), device=device)
        if self.max_blocks is None:
            return torch.where(slots < counts, slots, -1)
        newest = counts - 1
        return (newest - (newest - slots) % self.max_blocks).clamp(min=-1)

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
        kept = sum(count if self.max_blocks is None else min(count, self.max_blocks) for count in self.counts)
        return kept * self.data[0, :, 0].numel() * self.data.element_size()
