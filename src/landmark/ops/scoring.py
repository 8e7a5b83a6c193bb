"""From inner products of queries and keys to attention scores: precision, scale, soft-capping, sinks."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Scoring(NamedTuple):
    """What a layer asks of its attention.

    Attributes:
        scale: factor of the inner products; None is 1 / sqrt(head_dim).
        softcap: scores become softcap * tanh(scores / softcap) before any softmax; None leaves them as they are.
        sinks: [H], per head one more logit without a value.
        dropout: probability of dropping a final weight; the others are scaled up by 1 / (1 - dropout).
        window: positions that a query of a sliding-window layer sees, its own included; None for all other layers.
    """

    scale: float | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    dropout: float = 0.0
    window: int | None = None

    def scale_of(self, query: Tensor) -> float:
        """The scale of the scores of `query [..., D]`."""
        return 1.0 / math.sqrt(query.shape[-1]) if self.scale is None else self.scale

    def cap(self, scores: Tensor) -> Tensor:
        """Soft-capped `scores`, differentiable."""
        return scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)

    def cap_(self, scores: Tensor) -> Tensor:
        """Soft-caps `scores` in place."""
        return scores if self.softcap is None else scores.div_(self.softcap).tanh_().mul_(self.softcap)

    def cap_with_slope_(self, scores: Tensor) -> Tensor | None:
        """Soft-caps `scores` in place and returns the derivative, None without a cap."""
        if self.softcap is None:
            return None
        tanh = scores.div_(self.softcap).tanh_()
        slope = 1.0 - tanh.square()
        scores.mul_(self.softcap)
        return slope


def working_dtype(x: Tensor) -> torch.dtype:
    """The dtype of scores and softmax: float64 for float64 inputs, float32 for all others."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
