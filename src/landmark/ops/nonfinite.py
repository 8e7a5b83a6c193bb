"""Products that read nothing where a weight is 0, whatever stands there: 0 times NaN or infinity is NaN."""

import torch
from torch import Tensor


def all_finite(*tensors: Tensor) -> bool:
    """Whether no number is NaN or infinite; now and then False of large finite ones. Waits for an accelerator."""
    return all(bool(x.detach().sum().isfinite()) for x in tensors)


def cleaned(x: Tensor) -> Tensor:
    """x with 0 for NaN and infinities, which have no gradient."""
    return torch.where(x.isfinite(), x, 0.0)


def products(query: Tensor, key: Tensor) -> Tensor:
    """`query [...,T,D] @ key [...,S,D]` transposed; a pair that is hidden afterwards gives no gradient to either.

    NaN for a pair of which a number is not finite.
    """
    if all_finite(query, key):
        return query @ key.transpose(-1, -2)
    tainted = ~(query.isfinite().all(-1)[..., :, None] & key.isfinite().all(-1)[..., None, :])
    scores = cleaned(query) @ cleaned(key).transpose(-1, -2)
    return scores + torch.zeros_like(scores).masked_fill(tainted, torch.nan)  # whose gradient passes, as it should


def averages(weights: Tensor, value: Tensor) -> Tensor:
    """`weights [...,T,S] @ value [...,S,D]`, NaN only where a weight other than 0 meets a number that is not finite."""
    if all_finite(value):
        return weights @ value
    bad = ~value.isfinite()
    poison = torch.zeros_like(weights).masked_fill((weights != 0) & bad.any(-1)[..., None, :], torch.nan)
    # So that gradients of weights are NaN, too, where outputs are.
    poison = (weights * poison).sum(-1, keepdim=True)
    return weights @ cleaned(value) + torch.where(reads_any(weights, bad), poison, 0.0)


def reads_any(weights: Tensor, bad: Tensor) -> Tensor:
    """Whether a weight other than 0 `[...,T,S]` meets something `bad [...,S,D]`: bool [...,T,D]."""
    return (weights != 0).float() @ bad.float() > 0
