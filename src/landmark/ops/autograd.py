"""Gradients that cannot be differentiated again, and say so."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_Gradients = tuple[Tensor | None, ...]


def first_derivatives_only(remedy: str) -> Callable[[Callable[..., _Gradients]], Callable[..., _Gradients]]:
    """Makes `gradients(ctx, saved, *upstream)` the backward of an autograd Function that serves first derivatives only.

    Whoever differentiates a gradient again gets an error with the `remedy`. torch's own `once_differentiable` cuts the
    graph without a word where no upstream gradient needs a gradient, as of `out.sum()`: what is made of such gradients,
    a penalty on their norm for one, would be differentiated wrongly. `saved` are the tensors that the Function saved.
    Its inputs must be among them, for a gradient is a function of those.
    """

    def decorate(gradients: Callable[..., _Gradients]) -> Callable[..., _Gradients]:
        def backward(ctx: Any, *upstream: Tensor) -> _Gradients:
            saved = ctx.saved_tensors
            with torch.no_grad():
                found = gradients(ctx, saved, *upstream)
            if not torch.is_grad_enabled():  # without create_graph nobody can differentiate them
                return found
            sources = [x for x in (*saved, *upstream) if x is not None and x.requires_grad]
            return tuple(x if x is None else _Refused.apply(remedy, x, *sources) for x in found)

        return backward

    return decorate


def second_derivatives_refused(remedy: str) -> RuntimeError:
    """The error for whoever differentiates a gradient again."""
    return RuntimeError(f"there are first derivatives only here: {remedy}")


class _Refused(torch.autograd.Function):
    """A gradient as it is, a function of `sources` that is not to be differentiated."""

    @staticmethod
    def forward(ctx: Any, remedy: str, gradient: Tensor, *sources: Tensor) -> Tensor:
        ctx.remedy = remedy
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise second_derivatives_refused(ctx.remedy)
