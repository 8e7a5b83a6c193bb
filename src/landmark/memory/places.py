"""Positions and masks of a chunk as tensors: functions of a few whole numbers, the same in every layer.

All layers of a model read the same chunk, so what one of them has made the others find ready. The tensors are
shared: nobody may write to them.
"""

from functools import lru_cache

import torch
from torch import Tensor

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
