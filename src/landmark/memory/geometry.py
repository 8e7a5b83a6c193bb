"""Which blocks lie in memory and from where they are scored and read: whole numbers, the same in every layer."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

# Positions and masks of a chunk as tensors: functions of a few whole numbers, the same in every layer.
#
# All layers of a model read the same chunk, so what one of them has made the others find ready. The tensors are
# shared: nobody may write to them.


Counts = tuple[int, ...]  # one number for each row of the batch


@lru_cache(maxsize=16)
def positions_of(starts: Counts, valid: Counts, width: int, device: torch.device) -> Tensor:
    """Positions [B,width] of a chunk whose rows begin at `starts` and hold `valid` tokens.

    Padding stands where the row's last valid token does, so that no position lies beyond what there is.
    """
    steps = torch.minimum(torch.arange(width, device=device), column(valid, device) - 1)
    return (column(starts, device) + steps).clamp(min=0)


@lru_cache(maxsize=4)
def real_tokens(valid: Counts, width: int, device: torch.device) -> Tensor:
    """Which of the columns are tokens of a row, bool [B,width]."""
    return torch.arange(width, device=device) < column(valid, device)


@lru_cache(maxsize=64)
def column(values: Counts, device: torch.device) -> Tensor:
    """One number for each row, long [B,1]."""
    return torch.tensor(values, dtype=torch.long, device=device)[:, None]


@dataclass(frozen=True)
class Past:
    """What a chunk finds in memory (Mohtashami & Jaggi 2023, section 3.2).

    Per row of the batch, `counts` blocks have ever entered memory and `kept` are still there; a query opens at most
    `retrieve`. With `stingy` positions the k newest blocks of a row are scored from slots 1 to k and all older ones
    from slot 0, and the chosen ones move to slots to be read; otherwise every block stays where it stood. The chunk's
    rows begin at rotary positions `starts`, in the same sense, and hold `valid` of `width` columns.
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

    @cached_property
    def k(self) -> int:
        """Blocks that a query opens, in the row that has most of them."""
        return min(self.retrieve, max(self.kept))

    @cached_property
    def asking(self) -> int:
        """Queries of a head that find blocks to open."""
        return sum(valid for valid, kept in zip(self.valid, self.kept, strict=True) if kept)

    @cached_property
    def positions(self) -> Tensor:
        """Rotary positions of the queries, [B,T]."""
        return positions_of(self.starts, self.valid, self.width, self.device)

    @cached_property
    def upto(self) -> list[int]:
        """Where the search through the index ends in each row: with slots, the newest are scored apart."""
        opened = [min(self.retrieve, kept) * self.stingy for kept in self.kept]
        return [count - newest for count, newest in zip(self.counts, opened, strict=True)]

    @cached_property
    def bounds(self) -> Tensor:
        """`upto` and `counts` of each row, long [B,2]."""
        return torch.tensor([self.upto, self.counts], device=self.device).T.contiguous()

    @cached_property
    def recent(self) -> Tensor:
        """Numbers [B,k] of the newest blocks by age, those of slot 1, 2, ...; then -1."""
        numbers = column(tuple(self.upto), self.device) + torch.arange(self.k, device=self.device)
        return torch.where(numbers < column(self.counts, self.device), numbers, -1)

    @cached_property
    def from_slots(self) -> Tensor:
        """How far each query stands from slots 0 to k (from 0 alone without slots), [B,T,k + 1].

        Never negative, also where a row has fewer blocks than that.
        """
        slots = torch.arange(self.k + 1 if self.stingy else 1, device=self.device)
        return (self.positions[..., None] - slots * self.stride).clamp(min=0)

    def distance(self, blocks: Tensor) -> Tensor:
        """How far each query stands from where `blocks`, by age, are read; 0 where there is no block."""
        starts = blocks
        if self.stingy:
            upto = column(tuple(self.upto), self.device)[:, :, None, None]
            starts = torch.arange(self.k, device=self.device) + (blocks >= upto)
        return (self.positions[:, None, :, None] - starts * self.stride).masked_fill_(blocks < 0, 0)


# What one layer computes of it the next one finds.
past_of = lru_cache(maxsize=4)(Past)
