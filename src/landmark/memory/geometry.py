"""Positions and masks of a chunk, and which blocks in memory are newest: the same in every layer.

They are functions of a few whole numbers. The first layer of a model that needs one makes it, and the others find it
in a cache, so the tensors are shared: they must not be written to.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

Counts = tuple[int, ...]  # one number for each row of the batch


@lru_cache(maxsize=16)
def positions_of(starts: Counts, valid: Counts, width: int, device: torch.device) -> Tensor:
    """Positions [B,width] of a chunk whose rows begin at `starts` and hold `valid` tokens.

    Padding has the position of the row's last valid token, so that no position lies beyond the valid ones.
    """
    steps = torch.minimum(torch.arange(width, device=device), column(valid, device) - 1)
    return (column(starts, device) + steps).clamp(min=0)


@lru_cache(maxsize=4)
def real_tokens(valid: Counts, width: int, device: torch.device) -> Tensor:
    """Mask of the tokens of each row, False at padding: bool [B,width]."""
    return torch.arange(width, device=device) < column(valid, device)


@lru_cache(maxsize=64)
def column(values: Counts, device: torch.device) -> Tensor:
    """One number per row as a column, long [B,1]."""
    return torch.tensor(values, dtype=torch.long, device=device)[:, None]


def slot_begins(slots: Tensor, newest: Tensor, stride: int, gap: int) -> Tensor:
    """Positions at which `slots` begin; those of the `newest` blocks lie `gap` positions behind those of older ones."""
    return slots * stride + gap * newest


def first_with_slot(count: int, kept: int, retrieve: int, stingy: bool) -> int:
    """Number of the first block of a row that has a slot of its own, of the newest; `count` where there is none."""
    return count - min(retrieve, kept) if stingy else count


@dataclass(frozen=True)
class Past:
    """Blocks in memory and rotary positions of one chunk (Mohtashami & Jaggi 2023, section 3.2).

    With stingy positions the k newest blocks of a row are scored from slots 1 to k and all older ones from slot 0;
    blocks are read in slots, too. Those of the newest lie `gap` positions behind those of older blocks. Otherwise every
    block keeps the position that it had in the text.

    Attributes:
        counts: blocks of each row that ever entered memory.
        kept: those of them that are still there.
        retrieve: blocks that a query opens at most.
        stingy: whether positions are stingy.
        stride: positions of a block.
        starts: rotary position of the first query of each row.
        valid: tokens of each row; the other columns are padding.
        width: columns.
        device: of the tensors.
        gap: positions left free between old blocks and the newest.
    """

    counts: Counts
    kept: Counts
    retrieve: int
    stingy: bool
    stride: int
    starts: Counts
    valid: Counts
    width: int
    device: torch.device
    gap: int = 0

    @cached_property
    def k(self) -> int:
        """Blocks that a query opens, in the row that has the most in memory."""
        return min(self.retrieve, max(self.kept))

    @cached_property
    def asking_rows(self) -> Tensor:
        """Queries of a head for which blocks lie in memory in each row, long [B] on the CPU."""
        return torch.tensor([valid if kept else 0 for valid, kept in zip(self.valid, self.kept, strict=True)])

    @cached_property
    def asking(self) -> int:
        """The same, in all rows together."""
        return sum(valid for valid, kept in zip(self.valid, self.kept, strict=True) if kept)

    @cached_property
    def positions(self) -> Tensor:
        """Rotary positions of the queries, [B,T]."""
        return positions_of(self.starts, self.valid, self.width, self.device)

    @cached_property
    def upto(self) -> list[int]:
        """Block number at which the search through the index ends in each row; with slots, before the newest."""
        return [
            first_with_slot(count, kept, self.retrieve, self.stingy)
            for count, kept in zip(self.counts, self.kept, strict=True)
        ]

    @cached_property
    def bounds(self) -> Tensor:
        """`upto` and `counts` of each row, and the gap between the blocks before and behind `upto`, long [B,3]."""
        gaps = [self.gap] * len(self.counts)
        return torch.tensor([self.upto, self.counts, gaps], device=self.device).T.contiguous()

    @cached_property
    def arrays(self) -> tuple[Any, Any]:
        """`positions` and `bounds` on a CPU, for compiled loops."""
        return self.positions.numpy(), self.bounds.numpy()

    @cached_property
    def recent(self) -> Tensor:
        """Numbers [B,k] of the newest blocks by age, those of slots 1, 2, ...; then -1."""
        numbers = column(tuple(self.upto), self.device) + torch.arange(self.k, device=self.device)
        return torch.where(numbers < column(self.counts, self.device), numbers, -1)

    @cached_property
    def from_slots(self) -> Tensor:
        """Distance of each query from slots 0 to k (from 0 alone without slots), [B,T,k + 1].

        Clamped at 0, for a row may have fewer blocks than that.
        """
        slots = torch.arange(self.k + 1 if self.stingy else 1, device=self.device)
        return (self.positions[..., None] - slot_begins(slots, slots > 0, self.stride, self.gap)).clamp(min=0)

    def distance(self, blocks: Tensor) -> Tensor:
        """Distance of each query from the start of `blocks`, by age, where they are read; 0 where there is no block."""
        starts = blocks * self.stride
        if self.stingy:
            newest = blocks >= column(tuple(self.upto), self.device)[:, :, None, None]
            slots = torch.arange(self.k, device=self.device) + newest
            starts = slot_begins(slots, newest, self.stride, self.gap)
        return (self.positions[:, None, :, None] - starts).masked_fill_(blocks < 0, 0)


# Equal arguments give the same object, and so the tensors that another layer has computed.
past_of = lru_cache(maxsize=4)(Past)
