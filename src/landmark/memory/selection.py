"""Which blocks each query of a chunk opens, and how far from their starts it stands when it reads them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from landmark.index import Index
from landmark.index.topk import top_newest
from landmark.ops.rotary import Rotation

Selection = Literal["per_token_and_head", "per_token", "per_head"]
SELECTIONS: tuple[str, ...] = get_args(Selection)

_TILE_BYTES = 4 << 20  # rotated queries, or scores where all of them are needed at once


@dataclass(frozen=True)
class Choice:
    """`blocks` long [B,H,T,k], [B,1,T,k] or [B,H,1,k]: absolute numbers by age, then -1 for none.

    `distance`, long and of the same shape except that it always has T queries: positions from the start of
    the block, where it is read, to the query.
    """

    blocks: Tensor
    distance: Tensor


@dataclass(frozen=True)
class Retrieval:
    """Chooses blocks for the queries of one chunk (Mohtashami & Jaggi 2023, section 3.2 and 3.4).

    Per row of the batch, `counts` blocks have ever entered memory and `kept` are still there; `k` is the
    largest number to open. With `stingy` positions the k newest blocks of a row are scored from slots 1 to k
    and all older ones from slot 0, and the chosen ones move to slots to be read; otherwise every block stays
    where it stood. `positions [B,T]` are the queries' rotary positions in the same sense.
    """

    index: Index
    rotation: Rotation
    stride: int
    scale: float
    softcap: float | None
    counts: list[int]
    kept: list[int]
    top_k: int
    stingy: bool
    positions: Tensor

    @cached_property
    def k(self) -> int:
        return min(self.top_k, max(self.kept))

    def choose(self, query: Tensor, selection: Selection, valid: Tensor | None) -> Choice:
        """Chooses for `query [B,H,T,D]`, unrotated, in float32 or wider; `valid [B,T]` marks real queries."""
        if selection == "per_token_and_head":
            found = [self._each_its_own(q, p) for q, p in self._tiles(query, query.shape[-1] * (self.k + 1))]
            blocks = torch.cat(found, dim=2)
        elif selection == "per_token":
            tiles = self._tiles(query, self._columns.shape[1])
            best = [self._best(self._log_weights(q, p).amax(1, keepdim=True)) for q, p in tiles]
            blocks = torch.cat(best, dim=2)
        else:
            blocks = self._best(self._highest_of_chunk(query, valid))
        blocks = _by_age(blocks)
        return Choice(blocks, self._distance(blocks))

    def _tiles(self, query: Tensor, floats_per_query: int) -> Iterator[tuple[Tensor, Tensor]]:
        per_query = query.shape[0] * query.shape[1] * floats_per_query * query.element_size()
        length = max(1, _TILE_BYTES // per_query)
        return zip(query.split(length, dim=2), self.positions.split(length, dim=1), strict=True)

    def _each_its_own(self, query: Tensor, positions: Tensor) -> Tensor:
        scores, numbers = self.index.search(self._rotated(query, positions), self.k, self._upto)
        if not self.stingy:
            return numbers
        recent = self._recent[:, None, None].expand(*scores.shape[:3], -1)
        scores = torch.cat((scores, self._recent_scores(query, positions)), dim=-1)
        return top_newest(scores, torch.cat((numbers, recent), dim=-1), self.k)[1]

    def _rotated(self, query: Tensor, positions: Tensor) -> Tensor:
        return self.rotation.apply(query, positions[:, None]) * self.scale

    def _recent_scores(self, query: Tensor, positions: Tensor) -> Tensor:
        """Scores [B,H,T,k] of the newest blocks, each from the slot of its own, -inf where there is none."""
        slots = torch.arange(1, self.k + 1, device=query.device)
        # Negative only where there is no block.
        distance = (positions[..., None] - slots * self.stride).clamp(min=0)
        turned = self.rotation.apply(query[..., None, :], distance[:, None])
        turned = turned.expand(*query.shape[:3], self.k, -1) * self.scale
        keys = self.index.keys(self._recent)
        grouped = turned.unflatten(1, (keys.shape[1], -1))
        scores = torch.einsum("bngtkd,bnkd->bngtk", grouped, keys).flatten(1, 2)
        return scores.masked_fill((self._recent < 0)[:, None, None], -torch.inf)

    @cached_property
    def _opened(self) -> list[int]:
        """Blocks that a query of each row opens."""
        return [min(self.top_k, kept) for kept in self.kept]

    @cached_property
    def _upto(self) -> list[int]:
        """Where the search through the index ends in each row: with slots, the newest are scored apart."""
        if not self.stingy:
            return self.counts
        return [count - k for count, k in zip(self.counts, self._opened, strict=True)]

    @cached_property
    def _recent(self) -> Tensor:
        """Numbers [B,k] of the newest blocks by age, those of slot 1, 2, ...; then -1."""
        counts, upto = torch.tensor([self.counts, self._upto], device=self.positions.device)[:, :, None]
        numbers = upto + torch.arange(self.k, device=counts.device)
        return torch.where(numbers < counts, numbers, -1)

    @cached_property
    def _columns(self) -> Tensor:
        """Numbers of the blocks that the columns of `_log_weights` stand for, [B,N]."""
        numbers = self.index.numbers(self.positions.device)
        return torch.cat((numbers, self._recent), dim=1) if self.stingy else numbers

    def _log_weights(self, query: Tensor, positions: Tensor) -> Tensor:
        """Log-softmax [B,H,T,N] over the landmarks in memory, -inf in columns that hold no block."""
        scores = self.index.scores(self._rotated(query, positions), self._upto)
        if self.stingy:
            scores = torch.cat((scores, self._recent_scores(query, positions)), dim=-1)
        if self.softcap is not None:
            capped = self.softcap * torch.tanh(scores / self.softcap)
            scores = capped.masked_fill_(scores == -torch.inf, -torch.inf)
        return scores.log_softmax(-1).nan_to_num_(nan=-torch.inf, neginf=-torch.inf)

    def _highest_of_chunk(self, query: Tensor, valid: Tensor | None) -> Tensor:
        """The highest log-softmax [B,H,1,N] that any valid query of the chunk gives."""
        highest = query.new_full((*query.shape[:2], 1, self._columns.shape[1]), -torch.inf)
        start = 0
        for q, p in self._tiles(query, self._columns.shape[1]):
            weights = self._log_weights(q, p)
            if valid is not None:
                weights.masked_fill_(~valid[:, None, start : start + q.shape[2], None], -torch.inf)
            highest = torch.maximum(highest, weights.amax(2, keepdim=True))
            start += q.shape[2]
        return highest

    def _best(self, weights: Tensor) -> Tensor:
        return top_newest(weights, self._columns[:, None, None], self.k)[1]

    def _distance(self, blocks: Tensor) -> Tensor:
        """How far each query stands from where its blocks are read; 0 where there is no block."""
        positions = self.positions[:, None, :, None]
        starts = blocks
        if self.stingy:
            upto = torch.tensor(self._upto, device=blocks.device)[:, None, None, None]
            starts = torch.arange(self.k, device=blocks.device) + (blocks >= upto)
        return torch.where(blocks < 0, 0, positions - starts * self.stride)


def _by_age(blocks: Tensor) -> Tensor:
    """Sorts block numbers, -1 last."""
    last = torch.iinfo(blocks.dtype).max
    ordered = torch.where(blocks < 0, last, blocks).sort(dim=-1).values
    return ordered.masked_fill_(ordered == last, -1)
