"""Joining what was read in retrieved blocks to the local attention: one softmax over both."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from landmark.ops.compiled import compiled, in_parts


def merge(out: Tensor, lse: Tensor, inside: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
    """Joins local attention and retrieved blocks under one softmax.

    `out [B,H,T,Dv]` is the local output and `lse [B,H,T]` the logarithm of its denominator; `inside [B,H,T,k,Dv]` and
    `gates [B,H,T,k]` are those of `retrieved_attention`. Returns the output in out's dtype and the weight of each gate
    [B,H,T,k].
    """
    if out.device.type == "cpu" and out.dtype == gates.dtype:
        return _in_one_pass(out, lse, inside, gates)
    total = torch.logaddexp(lse, gates.logsumexp(-1))
    total = total.masked_fill(total == -torch.inf, 0.0)[..., None]
    weights = torch.exp(gates - total)
    joined = (weights[..., None] * inside).sum(-2) + out * torch.exp(lse[..., None] - total)
    return joined.to(out.dtype), weights


def _in_one_pass(out: Tensor, lse: Tensor, inside: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
    joined, weights = out.new_zeros(out.shape), gates.new_zeros(gates.shape)  # contiguous, whatever the inputs are
    rows, (k, dim) = lse.numel(), inside.shape[-2:]
    arrays = [x.reshape(rows, -1).numpy() for x in (out, lse, gates, joined, weights)]
    in_parts(lambda start, stop: _merge(*arrays, inside.reshape(rows, k, dim).numpy(), start, stop), rows)
    return joined, weights


@compiled
def _merge(out: Any, lse: Any, gates: Any, joined: Any, weights: Any, inside: Any, start: int, stop: int) -> None:
    """Fills rows start..stop of `joined [R,Dv]` and `weights [R,k]`, zeros where a query sees nothing at all."""
    for row in range(start, stop):
        highest = max(lse[row, 0], gates[row].max())
        if highest == -np.inf:
            continue
        local = np.exp(lse[row, 0] - highest)
        total = local
        for j in range(gates.shape[1]):
            weights[row, j] = np.exp(gates[row, j] - highest)
            total += weights[row, j]
        for i in range(out.shape[1]):
            joined[row, i] = out[row, i] * (local / total)
        for j in range(gates.shape[1]):
            weights[row, j] /= total
            for i in range(out.shape[1]):
                joined[row, i] += weights[row, j] * inside[row, j, i]
