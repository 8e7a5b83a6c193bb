"""Weighted cross entropy and distillation losses that write the gradient into the memory of the logits."""

from typing import Any

import torch
from torch import Tensor

from landmark.ops.autograd import first_derivatives_only

IGNORED = -100  # as a label: what is not predicted; that of transformers and torch
# Rows per pass: with a vocabulary of 4096, a float32 temporary of 16 MiB for any batch.
ROWS = 1024
# Numbers per pass with two sets of logits: 64 MiB in float32.
NUMBERS = 1 << 24


def weighted_cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor, own: range | None = None
) -> tuple[Tensor, Tensor]:
    """Weighted mean cross entropy of next tokens, and the cross entropy of each.

    `logits [B, T, V]` at position t predict the token at t + 1; `labels` and `weights [B, T]` belong to the token at
    their own position; a label of `IGNORED` or a weight of 0 is left out. Returns the loss (a float32 scalar, 0 if all
    are left out) and, without gradient, `[B, T]` losses by the position of the *label* (0 at position 0 and where one
    is left out).

    With `own`, `logits [B, len(own), V]` are those of these positions only, and the loss is their part of the mean.

    If a gradient is needed, it overwrites the logits, which must not be used afterwards.
    """
    targets, scale = _next_tokens(labels, weights)
    own = range(labels.shape[1]) if own is None else own
    part = slice(own.start, own.stop)
    nothing = logits[:0].sum()  # depends on the logits and can be saved; they themselves are overwritten
    loss, token_losses = _CrossEntropy.apply(logits, targets[:, part].flatten(), scale[:, part].flatten(), nothing)
    by_position = torch.zeros_like(scale)
    by_position[:, part] = token_losses.view(len(labels), -1)
    return loss, _by_label(by_position)


def distillation_loss(
    logits: Tensor, teacher_logits: Tensor, labels: Tensor, weights: Tensor, answers: Tensor
) -> tuple[Tensor, Tensor]:
    """Weighted mean over next tokens: cross entropy for `answers`, KL divergence from the teacher for all others.

    `logits [B, T, V']` at position t predict the token at t + 1, as do `teacher_logits [B, T, V]`; columns of the
    student beyond V belong to no token and are ignored. `labels`, `weights` and `answers [B, T]` (bool) belong to the
    token at their own position; a label of `IGNORED` or a weight of 0 is left out. The divergence is
    KL(teacher || student) over all V tokens, independent of the label.

    Returns the loss (a float32 scalar) and, without gradient, `[B, T]` losses by the position of the *label*. If a
    gradient is needed, it overwrites the logits, which must not be used afterwards. Raises ValueError for a teacher
    with more columns than the student.
    """
    if teacher_logits.shape[-1] > logits.shape[-1] or teacher_logits.shape[:-1] != logits.shape[:-1]:
        shapes = f"{tuple(teacher_logits.shape)} and {tuple(logits.shape)}"
        raise ValueError(f"logits of teacher and student are {shapes}: they must predict the same tokens")
    targets, scale = _next_tokens(labels, weights)
    hard = answers.roll(-1, dims=1)
    nothing = logits[:0].sum()
    loss, losses = _Divergence.apply(
        logits, teacher_logits, targets.flatten(), scale.flatten(), hard.flatten(), nothing
    )
    return loss, _by_label(losses.view_as(scale))


def _next_tokens(labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Next token and its share of the mean, by the position that predicts it."""
    targets = torch.full_like(labels, IGNORED)
    targets[:, :-1] = labels[:, 1:]
    scale = torch.zeros_like(weights)
    scale[:, :-1] = weights[:, 1:]
    scale = scale.masked_fill(targets == IGNORED, 0.0).float()
    return targets, scale / scale.sum().clamp(min=torch.finfo(torch.float32).tiny)


def _by_label(by_position: Tensor) -> Tensor:
    return torch.nn.functional.pad(by_position[:, :-1], (1, 0))


class _InPlace(torch.autograd.Function):
    """A loss whose gradient replaces the logits, its first argument, in memory."""

    @staticmethod
    @first_derivatives_only("use torch.nn.functional.cross_entropy for losses of gradients")
    def backward(ctx: Any, saved: Any, loss_grad: Tensor, _: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if ctx.gradient is None:
            raise RuntimeError(
                "the logits hold their gradient, which was used: compute the loss again before a second backward"
            )
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(loss_grad).view(ctx.shape), *ctx.others


class _CrossEntropy(_InPlace):
    """sum_n scale_n * CE_n over rows of logits."""

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
            work = part.float()  # no copy if the logits are float32
            losses = -work.log_softmax(dim=-1).gather(1, picked)[:, 0]
            token_losses[start : start + ROWS] = torch.where(counts, losses, 0.0)
            if wants_gradient:
                torch.softmax(work, dim=-1, out=work)
                work.scatter_add_(1, picked, torch.full_like(work[:, :1], -1.0)).mul_(part_scale[:, None])
                if work.data_ptr() != part.data_ptr():
                    part.copy_(work)
        if wants_gradient:
            # Autograd's version counter still guards: another operation that saved these logits gets an error.
            ctx.gradient, ctx.shape, ctx.others = rows, logits.shape, (None,) * 3
            ctx.save_for_backward(nothing)
        ctx.mark_non_differentiable(token_losses)
        return (token_losses * scale).sum(), token_losses


class _Divergence(_InPlace):
    """sum_n scale_n * (CE_n where hard, else KL_n) over rows of logits.

    The gradient of both is the student's distribution minus the target's or the teacher's.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, teacher: Tensor, targets: Tensor, scale: Tensor, hard: Tensor, nothing: Tensor
    ) -> tuple[Tensor, Tensor]:
        wants_gradient = ctx.needs_input_grad[0]
        rows, teacher_rows, columns = logits.flatten(0, -2), teacher.flatten(0, -2), teacher.shape[-1]
        token_losses = torch.zeros_like(scale)
        size = max(1, NUMBERS // columns)
        for start in range(0, len(rows), size):
            stop = start + size
            part, part_scale, is_hard = rows[start:stop, :columns], scale[start:stop], hard[start:stop]
            picked = targets[start:stop].clamp(min=0)[:, None]
            student = part.float().log_softmax(-1)
            wanted = teacher_rows[start:stop].float().log_softmax(-1)
            share = wanted.exp()
            # A token of zero probability under the teacher contributes nothing.
            divergence = torch.where(share > 0, wanted.sub_(student).mul_(share), 0.0).sum(-1)
            losses = torch.where(is_hard, -student.gather(1, picked)[:, 0], divergence)
            token_losses[start:stop] = torch.where(part_scale > 0, losses, 0.0)
            if wants_gradient:
                share.mul_(~is_hard[:, None])
                share.scatter_add_(1, picked, is_hard.to(share.dtype)[:, None])
                part.copy_(student.exp_().sub_(share).mul_(part_scale[:, None]))
        if wants_gradient:
            rows[:, columns:] = 0.0
            ctx.gradient, ctx.shape, ctx.others = rows, logits.shape, (None,) * 5
            ctx.save_for_backward(nothing)
        ctx.mark_non_differentiable(token_losses)
        return (token_losses * scale).sum(), token_losses
