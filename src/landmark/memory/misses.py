"""The context miss (Mohtashami & Jaggi 2023, appendix D): queries that look nothing up, told before a block is read."""

from dataclasses import dataclass

import torch
from torch import Tensor

from landmark.memory.places import column
from landmark.memory.selection import Choice, Retrieval

_TILE_BYTES = 4 << 20  # rotated queries, and the landmark keys that they meet


@dataclass(frozen=True)
class Retrievals:
    """Counts of retrievals; add those of several layers with `sum(..., Retrievals())`.

    Every query of every head for which blocks lay in memory `asked` once, those of landmarks too, padding never.
    `skipped`: those of them that fetched nothing.
    """

    asked: int = 0
    skipped: int = 0

    @property
    def share_skipped(self) -> float:
        """From 0 to 1; 0 where nothing was asked."""
        return self.skipped / self.asked if self.asked else 0.0

    def __add__(self, other: "Retrievals") -> "Retrievals":
        return Retrievals(self.asked + other.asked, self.skipped + other.skipped)


def missed(retrieval: Retrieval, query: Tensor, choice: Choice, lse: Tensor, threshold: float) -> Tensor:
    """Which queries, bool [B,H,T], would give their chosen blocks less than `threshold` of their attention together.

    `query [B,H,T,D]`, before rotary, is in float32 or wider; `lse [B,H,T]` is the logarithm of the denominator of its
    local attention, sinks included. A query without blocks is among them.
    """
    blocks, distance = choice.blocks, choice.distance
    if not retrieval.past.stingy:  # index keys are rotated by their true place
        distance = retrieval.past.positions[:, None, :, None].expand_as(distance)
    keys, which = _landmarks(retrieval, blocks)
    first = torch.arange(len(query), device=query.device)[:, None, None, None]
    groups = torch.arange(query.shape[1], device=query.device)[:, None, None] // (query.shape[1] // keys.shape[1])
    per_query = 2 * query[:, :, 0].numel() * blocks.shape[-1] * query.element_size()
    length, found = max(1, _TILE_BYTES // per_query), []
    for start in range(0, query.shape[2], length):
        some = slice(start, start + length)
        own = slice(None) if blocks.shape[2] == 1 else some  # or those that all queries share
        turned = retrieval.rotation.apply(query[:, :, some, None], distance[:, :, some]) * retrieval.scale
        gates = (turned * keys[first, groups, which[:, :, own]]).sum(-1)
        if retrieval.softcap is not None:
            gates = retrieval.softcap * torch.tanh(gates / retrieval.softcap)
        gates = gates.masked_fill(blocks[:, :, own] < 0, -torch.inf)
        found.append(torch.sigmoid(gates.logsumexp(-1) - lse[:, :, some]))
    # Where nothing at all is in sight the mass is NaN.
    return ~(torch.cat(found, dim=2) >= threshold)


def _landmarks(retrieval: Retrieval, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Landmark keys [B,Hkv,m,D] of the m different `blocks`, and for each of these which one is its own."""
    past = retrieval.past
    numbers, which = blocks.unique(return_inverse=True)
    counts, kept = column(past.counts, past.device), column(past.kept, past.device)
    # Not every row holds every number.
    here = (numbers < counts) & (numbers >= counts - kept)
    return retrieval.index.keys(torch.where(here, numbers, -1)), which
