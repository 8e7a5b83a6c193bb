"""Matrix products in which a weight of 0 hides NaN and infinities: 0 times either would be NaN."""

import torch
from torch import Tensor


def all_finite(*tensors: Tensor) -> bool:
    """Whether no number is NaN or infinite. May be False for large finite numbers. Synchronizes an accelerator."""
    return all(bool(x.detach().sum().isfinite()) for x in tensors)


def cleaned(x: Tensor) -> Tensor:
    """x with 0 in place of NaN and infinities, which get no gradient."""
    return torch.where(x.isfinite(), x, 0.0)


def products(query: Tensor, key: Tensor) -> Tensor:
    """`query [...,T,D] @ key [...,S,D].mT`; a pair that is masked afterwards gives no gradient to either.

    NaN for a pair in which a number is not finite.
    """
    if all_finite(query, key):
        return query @ key.transpose(-1, -2)
    tainted = ~(query.isfinite().all(-1)[..., :, None] & key.isfinite().all(-1)[..., None, :])
    scores = cleaned(query) @ cleaned(key).transpose(-1, -2)
    return scores + torch.zeros_like(scores).masked_fill(tainted, torch.nan)  # an addition, so that the gradient passes


def averages(weights: Tensor, value: Tensor) -> Tensor:
    """`weights [...,T,S] @ value [...,S,D]`, NaN only where a nonzero weight meets a number that is not finite."""
    if all_finite(value):
        return weights @ value
    bad = ~value.isfinite()
    poison = torch.zeros_like(weights).masked_fill((weights != 0) & bad.any(-1)[..., None, :], torch.nan)
    # Times the weights, so that their gradients are NaN where outputs are.
    poison = (weights * poison).sum(-1, keepdim=True)
    return weights @ cleaned(value) + torch.where(reads_any(weights, bad), poison, 0.0)


def reads_any(weights: Tensor, bad: Tensor) -> Tensor:
    """Whether a nonzero weight `[...,T,S]` meets a `bad [...,S,D]` value: bool [...,T,D]."""
    return (weights != 0).float() @ bad.float() > 0
