"""Block selection: the blocks that each query of a chunk opens, and the context miss that opens none."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, reduce

import torch
from torch import Tensor

from landmark.index.base import Index
from landmark.index.keys import paired_scores
from landmark.index.topk import top_newest
from landmark.memory.geometry import Past, column
from landmark.memory.selection_numba import choose_few, rotate_queries
from landmark.memory.selection_tiles import MOST_BLOCKS, choose_many
from landmark.ops.decode_cpu import FEW_QUERIES
from landmark.ops.retrieved.pytorch import of_heads
from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring
from landmark.ops.triton_support import unsupported_reason
from landmark.settings import Selection

_TILE_BYTES = 4 << 20  # rotated queries and the landmark keys they meet, or scores where all are needed at once


@dataclass(frozen=True)
class Choice:
    """The blocks chosen for the queries of a chunk.

    Attributes:
        blocks: long [B,H,T,k], [B,1,T,k] where heads share their blocks, [B,Hkv,T,k] where those of a key-value head
            do, or [B,H,1,k] where queries do: absolute numbers by age, then -1 for none.
        distance: long, of the same shape but always for T queries: positions from the start of the block, where it
            is read, to the query.
    """

    blocks: Tensor
    distance: Tensor


@dataclass(frozen=True)
class Retrieval:
    """Block selection for the queries of one chunk (Mohtashami & Jaggi 2023, sections 3.2 and 3.4)."""

    index: Index
    past: Past
    rotation: Rotation
    scoring: Scoring

    def choose(self, query: Tensor, selection: Selection, valid: Tensor | None) -> Choice:
        """Chooses for `query [B,H,T,D]`, before rotary, in float32 or wider; `valid [B,T]` is False at padding."""
        query = query * self.scoring.scale_of(query)
        if selection == "per_group":  # they share landmark keys: the sum of their queries has their summed score
            query, selection = summed(query, self._kv_heads), "per_token_and_head"
        few = query.shape[2] <= FEW_QUERIES
        if selection == "per_token_and_head" and _on_cpu(query) and (few or max(self.past.kept) <= MOST_BLOCKS):
            landmarks = self.index.resident_keys(self.past.k, self.past.upto)
            if landmarks is not None:
                choose = choose_few if few else choose_many
                return Choice(*choose(query, self.past, landmarks, self.rotation))
        if selection == "per_token_and_head" and not _on_cpu(query) and not few:
            chosen = self._in_one_kernel(query)
            if chosen is not None:
                return chosen
        if selection == "per_token_and_head":
            found = [self._each_its_own(*tile) for tile in self._tiles(query)]
            blocks = torch.cat(found, dim=2)
        elif selection == "per_token":
            tiles = self._tiles(query, scores=self._columns.shape[1])
            best = [self._best(self._log_weights(*tile).amax(1, keepdim=True)) for tile in tiles]
            blocks = torch.cat(best, dim=2)
        else:
            blocks = self._best(self._highest_of_chunk(query, valid))
        blocks = by_age(blocks)
        return Choice(blocks, self.past.distance(blocks))

    def _in_one_kernel(self, query: Tensor) -> Choice | None:
        """The choice by a Triton kernel with a running top k; None where it does not serve.

        It serves the landmark keys of exact search in float32, in one buffer, and up to MOST_CHOSEN blocks of a query.
        Else scores are computed tile by tile: for keys in fewer bits, codes or lists, for a fork that has blocks of its
        own, for float64, and for devices without Triton.
        """
        past, landmarks = self.past, self.index.resident_keys(self.past.k, self.past.upto)
        if landmarks is None or landmarks.behind is not None or unsupported_reason(query, landmarks.keys) is not None:
            return None
        from landmark.ops.choose_triton import MOST_CHOSEN, choose_blocks  # needs the package triton

        if past.k > MOST_CHOSEN:
            return None
        where = {"positions": past.positions, "bounds": past.bounds, "first": landmarks.first}
        how = {"modulus": landmarks.modulus, "stride": past.stride, "k": past.k, "stingy": past.stingy}
        return Choice(*choose_blocks(query, landmarks.keys, self.rotation, **where, **how))

    def _tiles(self, query: Tensor, scores: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Tiles of scaled queries, rotated to be scored from slot 0 [B,H,t,D] and from the later slots [B,H,t,k,D].

        A tile fits _TILE_BYTES, with so many `scores` per query.
        """
        floats = max(scores, query.shape[-1] * (self.past.k + 1))
        per_query = query.shape[0] * query.shape[1] * floats * query.element_size()
        length = max(1, _TILE_BYTES // per_query)
        for some, distance in zip(query.split(length, 2), self.past.from_slots.split(length, 1), strict=True):
            if _on_cpu(query):  # to the same bits as where a compiled pass chooses
                turned = rotate_queries(some, distance, self.rotation)
            else:
                turned = self.rotation.apply(some[..., None, :], distance[:, None])
            turned = turned.expand(*some.shape[:3], distance.shape[-1], -1)
            yield turned[..., 0, :], turned[..., 1:, :]

    def _each_its_own(self, old: Tensor, recent: Tensor) -> Tensor:
        scores, numbers = self.index.search(old, self.past.k, self.past.upto)
        if not self.past.stingy:
            return numbers
        newest = self.past.recent[:, None, None].expand(*scores.shape[:3], -1)
        scores = torch.cat((scores, self._recent_scores(recent)), dim=-1)
        return top_newest(scores, torch.cat((numbers, newest), dim=-1), self.past.k)[1]

    def _recent_scores(self, turned: Tensor) -> Tensor:
        """Scores [B,H,T,k] of the newest blocks, each from its own slot; undefined where there is no block."""
        keys = self.index.keys(self.past.recent)
        if turned.device.type == "cpu":
            return paired_scores(turned, keys)
        grouped = turned.unflatten(1, (keys.shape[1], -1))
        return (grouped * keys[:, :, None, None]).sum(-1).flatten(1, 2)

    @cached_property
    def _kv_heads(self) -> int:
        return self.index.keys(self.past.recent[:, :1]).shape[1]

    @cached_property
    def _columns(self) -> Tensor:
        """Block numbers of the columns of `_scores`, [B,N]."""
        numbers = self.index.numbers(self.past.device)
        return torch.cat((numbers, self.past.recent), dim=1) if self.past.stingy else numbers

    def scores(self, query: Tensor) -> Tensor:
        """Scores [B,H,T,N] of `query [B,H,T,D]` with blocks 0 to N - 1, which `choose` ranks; -inf for blocks not here.

        They are scaled and soft-capped. `query` is as for `choose`.
        """
        columns = self._columns.clamp(min=0)[:, None, None]
        found = []
        for tile in self._tiles(query * self.scoring.scale_of(query), scores=columns.shape[-1]):
            scores = self._scores(*tile)
            numbered = scores.new_full((*scores.shape[:3], max(self.past.counts)), -torch.inf)
            found.append(numbered.scatter_reduce_(-1, columns.expand_as(scores), scores, "amax"))
        return torch.cat(found, dim=2)

    def _scores(self, old: Tensor, recent: Tensor) -> Tensor:
        """Scores [B,H,T,N] with the landmarks in memory, -inf in columns that hold no block."""
        scores = self.index.scores(old, self.past.upto)
        if self.past.stingy:
            hidden = (self.past.recent < 0)[:, None, None]
            scores = torch.cat((scores, self._recent_scores(recent).masked_fill(hidden, -torch.inf)), dim=-1)
        if self.scoring.softcap is not None:
            scores = self.scoring.cap(scores).masked_fill_(scores == -torch.inf, -torch.inf)
        return scores

    def _log_weights(self, old: Tensor, recent: Tensor) -> Tensor:
        """Log-softmax [B,H,T,N] over the landmarks in memory, -inf in columns that hold no block."""
        return self._scores(old, recent).log_softmax(-1).nan_to_num_(nan=-torch.inf, neginf=-torch.inf)

    def _highest_of_chunk(self, query: Tensor, valid: Tensor | None) -> Tensor:
        """The highest log-softmax [B,H,1,N] over the valid queries of the chunk."""
        highest = query.new_full((*query.shape[:2], 1, self._columns.shape[1]), -torch.inf)
        start = 0
        for old, recent in self._tiles(query, scores=self._columns.shape[1]):
            weights = self._log_weights(old, recent)
            if valid is not None:
                weights.masked_fill_(~valid[:, None, start : start + old.shape[2], None], -torch.inf)
            highest = torch.maximum(highest, weights.amax(2, keepdim=True))
            start += old.shape[2]
        return highest

    def _best(self, weights: Tensor) -> Tensor:
        return top_newest(weights, self._columns[:, None, None], self.past.k)[1]


def summed(query: Tensor, groups: int) -> Tensor:
    """Sums [B,groups,T,D] over the heads of each group, added in their order, as the loops of decoding add them."""
    return reduce(torch.add, query.unflatten(1, (groups, -1)).unbind(2))


def _on_cpu(query: Tensor) -> bool:
    return query.device.type == "cpu"


def by_age(blocks: Tensor) -> Tensor:
    """Sorts block numbers, -1 last."""
    last = torch.iinfo(blocks.dtype).max
    ordered = blocks.masked_fill(blocks < 0, last).sort(dim=-1).values
    return ordered.masked_fill_(ordered == last, -1)


@dataclass(frozen=True)
class Retrievals:
    """Counts of queries and their context misses; `sum(..., Retrievals())` adds those of several layers.

    Attributes:
        queries: queries of every head for which blocks lay in memory, landmarks included, padding not.
        context_misses: those of them that opened no block.
    """

    queries: int = 0
    context_misses: int = 0

    @property
    def miss_rate(self) -> float:
        """Share of the queries that opened no block, 0 without queries."""
        return self.context_misses / self.queries if self.queries else 0.0

    def __add__(self, other: "Retrievals") -> "Retrievals":
        return Retrievals(self.queries + other.queries, self.context_misses + other.context_misses)


def context_miss(retrieval: Retrieval, query: Tensor, choice: Choice, lse: Tensor, threshold: float) -> Tensor:
    """Context miss (Mohtashami & Jaggi 2023, appendix D): skips blocks that would get little attention mass.

    Decided from landmark keys alone, before a block is read. `query [B,H,T,D]`, before rotary, is in float32 or
    wider; `lse [B,H,T]` is the logarithm of the denominator of its local attention, sinks included. Returns bool
    [B,H,T], True for queries that would give their chosen blocks together less than `threshold` of their attention,
    and for queries without blocks.
    """
    distance = choice.distance
    if not retrieval.past.stingy:  # index keys are rotated to their true positions
        distance = retrieval.past.positions[:, None, :, None].expand_as(distance)
    keys, which = _landmarks(retrieval, choice.blocks)
    blocks, which, distance = (of_heads(x, query.shape[1]) for x in (choice.blocks, which, distance))
    scale = retrieval.scoring.scale_of(query)
    first = torch.arange(len(query), device=query.device)[:, None, None, None]
    groups = torch.arange(query.shape[1], device=query.device)[:, None, None] // (query.shape[1] // keys.shape[1])
    per_query = 2 * query[:, :, 0].numel() * blocks.shape[-1] * query.element_size()
    length, found = max(1, _TILE_BYTES // per_query), []
    for start in range(0, query.shape[2], length):
        some = slice(start, start + length)
        own = slice(None) if blocks.shape[2] == 1 else some  # queries may share their blocks
        turned = retrieval.rotation.apply(query[:, :, some, None], distance[:, :, some]) * scale
        gates = retrieval.scoring.cap((turned * keys[first, groups, which[:, :, own]]).sum(-1))
        gates = gates.masked_fill(blocks[:, :, own] < 0, -torch.inf)
        found.append(torch.sigmoid(gates.logsumexp(-1) - lse[:, :, some]))
    # The mass is NaN for a query that sees nothing.
    return ~(torch.cat(found, dim=2) >= threshold)


def _landmarks(retrieval: Retrieval, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Landmark keys [B,Hkv,m,D] of the m distinct `blocks`, and for each of `blocks` the index of its key."""
    past = retrieval.past
    numbers, which = blocks.unique(return_inverse=True)
    counts, kept = column(past.counts, past.device), column(past.kept, past.device)
    # A number of one row may be missing in another.
    here = (numbers < counts) & (numbers >= counts - kept)
    return retrieval.index.keys(torch.where(here, numbers, -1)), which
