"""Autograd Functions with first derivatives only, which raise an error for second ones."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_Gradients = tuple[Tensor | None, ...]


def first_derivatives_only(remedy: str) -> Callable[[Callable[..., _Gradients]], Callable[..., _Gradients]]:
    """Decorator: makes `gradients(ctx, saved, *upstream)` the backward of a Function with first derivatives only.

    Differentiating a gradient again raises an error with the `remedy`. torch's own `once_differentiable` silently cuts
    the graph where no upstream gradient requires a gradient, as for `out.sum()`, so that a gradient penalty, for one,
    would be differentiated wrongly. `saved` are the tensors that the Function saved. Its inputs must be among them, for
    a gradient is a function of those.
    """

    def decorate(gradients: Callable[..., _Gradients]) -> Callable[..., _Gradients]:
        def backward(ctx: Any, *upstream: Tensor) -> _Gradients:
            saved = ctx.saved_tensors
            with torch.no_grad():
                found = gradients(ctx, saved, *upstream)
            if not torch.is_grad_enabled():  # without create_graph they cannot be differentiated
                return found
            sources = [x for x in (*saved, *upstream) if x is not None and x.requires_grad]
            return tuple(x if x is None else _Refused.apply(remedy, x, *sources) for x in found)

        return backward

    return decorate


def second_derivatives_refused(remedy: str) -> RuntimeError:
    """The error of differentiating a gradient again."""
    return RuntimeError(f"only first derivatives are implemented here: {remedy}")


class _Refused(torch.autograd.Function):
    """Identity of a gradient that depends on `sources`; its backward raises an error."""

    @staticmethod
    def forward(ctx: Any, remedy: str, gradient: Tensor, *sources: Tensor) -> Tensor:
        ctx.remedy = remedy
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise second_derivatives_refused(ctx.remedy)
