"""Landmark keys in clusters, indexes of them, and the recall of a search."""

from typing import TypeVar

import torch

from landmark.index.exact import ExactIndex
from landmark.index.hierarchical import HierarchicalIndex

HEADS, DIM = 2, 32

_Index = TypeVar("_Index", ExactIndex, HierarchicalIndex)


def clustered(count: int) -> torch.Tensor:
    """Keys `[HEADS,n,DIM]` around a few dozen points, as texts come back to what they are about."""
    points = torch.randn(HEADS, 40, DIM)[:, torch.randint(40, (count,))]
    return (points + 0.7 * torch.randn(HEADS, count, DIM)) * torch.logspace(0, -1, DIM)


def queries(count: int) -> torch.Tensor:
    return torch.randn(1, 2 * HEADS, count, DIM)


def filled(index: _Index, keys: torch.Tensor) -> _Index:
    index.append(0, keys)
    return index


def recall_of(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The share of the blocks `wanted [...,k]` that was found."""
    return (wanted[..., None] == found[..., None, :]).any(-1).double().mean().item()
