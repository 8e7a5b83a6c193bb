"""Joining what was read in retrieved blocks to the local attention: one softmax over both."""

from typing import Any

import torch
from torch import Tensor

from landmark.ops.compiled import add_weighted, compiled, in_parts, open_gates


def merge(out: Tensor, lse: Tensor, inside: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
    """Joins local attention and retrieved blocks under one softmax.

    `out [B,H,T,Dv]` is the local output and `lse [B,H,T]` the logarithm of its denominator; `inside [B,H,T,k,Dv]` and
    `gates [B,H,T,k]` are those of `retrieved_attention`. Returns the output in out's dtype and the weight of each gate
    [B,H,T,k]. Where gradients are wanted all four inputs get theirs.
    """
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in (out, lse, inside, gates))
    if out.device.type == "cpu" and out.dtype == gates.dtype and not wanted:
        return _in_one_pass(out, lse, inside, gates)
    total = torch.logaddexp(lse, gates.logsumexp(-1))
    total = total.masked_fill(total == -torch.inf, 0.0)[..., None]
    weights = torch.exp(gates - total)
    joined = (weights[..., None] * inside).sum(-2) + out * torch.exp(lse[..., None] - total)
    return joined.to(out.dtype), weights


def _in_one_pass(out: Tensor, lse: Tensor, inside: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
    # Contiguous, whatever the inputs are.
    joined, weights = out.new_empty(out.shape), gates.clone(memory_format=torch.contiguous_format)
    rows, (k, dim) = lse.numel(), inside.shape[-2:]
    arrays = [x.reshape(rows, -1).numpy() for x in (out, lse, joined, weights)]
    in_parts(lambda start, stop: _merge(*arrays, inside.reshape(rows, k, dim).numpy(), start, stop), rows)
    return joined, weights


@compiled
def _merge(out: Any, lse: Any, joined: Any, weights: Any, inside: Any, start: int, stop: int) -> None:
    """Fills rows start..stop of `joined [R,Dv]`, and turns those of `weights [R,k]` from logits into weights."""
    for row in range(start, stop):
        local = open_gates(lse[row, 0], weights[row])
        for i in range(out.shape[1]):
            joined[row, i] = out[row, i] * local
        add_weighted(weights[row], inside[row], joined[row])
