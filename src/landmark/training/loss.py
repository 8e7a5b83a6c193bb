"""Weighted next-token cross entropy that needs no second tensor of the logits' size."""

from typing import Any

import torch
from torch import Tensor

from landmark.ops.derivatives import first_derivatives_only

# Rows worked on at once: with a vocabulary of 4096 a float32 temporary of 16 MiB, whatever the batch.
ROWS = 1024


def weighted_cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor, own: range | None = None
) -> tuple[Tensor, Tensor]:
    """Mean of the next tokens' cross entropy, weighted, and the cross entropy of each.

    `logits [B, T, V]` at position t is for the token at t + 1; `labels` and `weights [B, T]` belong to the
    token at their own position, -100 or weight 0 where the loss looks away. Returns the loss (a float32
    scalar, 0 where nothing counts) and, without gradient, `[B, T]` losses by the position of the *label*
    (position 0 and positions that do not count are 0).

    With `own`, `logits [B, len(own), V]` are those of these positions only, and the loss is their part of the mean.

    Where a gradient is wanted, the logits are overwritten with it and must not be used afterwards.
    """
    targets = torch.full_like(labels, -100)
    targets[:, :-1] = labels[:, 1:]
    scale = torch.zeros_like(weights)
    scale[:, :-1] = weights[:, 1:]
    scale = scale.masked_fill(targets == -100, 0.0).float()
    scale = scale / scale.sum().clamp(min=torch.finfo(torch.float32).tiny)
    own = range(labels.shape[1]) if own is None else own
    part = slice(own.start, own.stop)
    nothing = logits[:0].sum()  # a function of the logits that can be saved: they themselves are overwritten
    loss, token_losses = _CrossEntropy.apply(logits, targets[:, part].flatten(), scale[:, part].flatten(), nothing)
    by_position = torch.zeros_like(scale)
    by_position[:, part] = token_losses.view(len(labels), -1)
    by_label = torch.zeros_like(scale)
    by_label[:, 1:] = by_position[:, :-1]
    return loss, by_label


class _CrossEntropy(torch.autograd.Function):
    """sum_n scale_n * CE_n over rows of logits; the gradient is built in the logits' own memory."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, scale: Tensor, nothing: Tensor) -> tuple[Tensor, Tensor]:
        wants_gradient = ctx.needs_input_grad[0]
        rows = logits.flatten(0, -2)
        token_losses = torch.zeros_like(scale)
        for start in range(0, len(rows), ROWS):
            part = rows[start : start + ROWS]
            target, part_scale = targets[start : start + ROWS], scale[start : start + ROWS]
            counts = part_scale > 0
            picked = target.clamp(min=0)[:, None]
            work = part.float()  # the logits themselves where they are float32
            losses = -work.log_softmax(dim=-1).gather(1, picked)[:, 0]
            token_losses[start : start + ROWS] = torch.where(counts, losses, 0.0)
            if wants_gradient:
                torch.softmax(work, dim=-1, out=work)
                work.scatter_add_(1, picked, torch.full_like(work[:, :1], -1.0)).mul_(part_scale[:, None])
                if work.data_ptr() != part.data_ptr():
                    part.copy_(work)
        if wants_gradient:
            # Autograd's version counter still guards: whoever saved these logits for backward gets an error.
            ctx.gradient, ctx.shape = rows, logits.shape
            ctx.save_for_backward(nothing)
        ctx.mark_non_differentiable(token_losses)
        return (token_losses * scale).sum(), token_losses

    @staticmethod
    @first_derivatives_only("use torch.nn.functional.cross_entropy for losses of gradients")
    def backward(ctx: Any, saved: Any, loss_grad: Tensor, _: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if ctx.gradient is None:
            raise RuntimeError("the logits hold their gradient, which was used: compute the loss anew to go back again")
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(loss_grad).view(ctx.shape), None, None, None
