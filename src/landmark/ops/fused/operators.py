"""The kernels as operators of PyTorch: with shapes for tracing, and a gradient."""

from typing import Any

import torch
from torch import Tensor

from landmark.ops.autograd import second_derivatives_refused
from landmark.ops.fused import launch
from landmark.ops.fused.launch import Inputs, Rules

# The operators take tensors and numbers one by one, as PyTorch's schemas know no records.


@torch.library.custom_op("landmark::fused_forward", mutates_args=())
def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor | None,
    labels: Tensor | None,
    ranges: Tensor | None,
    seed: Tensor | None,
    first_query: Tensor,
    block_size: int,
    phase: int,
    scale: float,
    softcap: float | None,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    """Output and lse; the arguments are `Inputs` and `Rules`."""
    inputs = Inputs(query, key, value, sinks, labels, ranges, seed, first_query)
    return launch.forward(inputs, Rules(block_size, phase, scale, softcap, dropout))


@forward.register_fake
def _(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return launch.like(query), launch.rows_like(query)


@torch.library.custom_op("landmark::fused_backward", mutates_args=())
def backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor | None,
    labels: Tensor | None,
    ranges: Tensor | None,
    seed: Tensor | None,
    first_query: Tensor,
    block_size: int,
    phase: int,
    scale: float,
    softcap: float | None,
    dropout: float,
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, and delta; the arguments are `Inputs`, `Rules` and the forward's results."""
    inputs = Inputs(query, key, value, sinks, labels, ranges, seed, first_query)
    return launch.backward(inputs, Rules(block_size, phase, scale, softcap, dropout), grad, out, lse)


@backward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return launch.like(query), launch.like(key), launch.like(value), launch.rows_like(query)


def _refuse(*_: Any) -> Any:
    raise second_derivatives_refused("backend='reference' can be differentiated again, in memory of queries by keys")


backward.register_autograd(_refuse)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    tensors = len(Inputs._fields)
    ctx.save_for_backward(*inputs[:tensors], *output)
    ctx.rules = inputs[tensors:]
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, out, lse = ctx.saved_tensors
    inputs = Inputs(*tensors)
    grad = dense_rows(grad)
    query_grad, key_grad, value_grad, delta = backward(*inputs, *ctx.rules, grad, out, lse)
    sinks_grad = None
    if inputs.sinks is not None:
        weights = torch.exp(inputs.sinks[:, None].float() - lse)
        sinks_grad = -(weights * delta).sum((0, 2)).to(inputs.sinks.dtype)
    without = [None] * (len(Inputs._fields) - 4 + len(Rules._fields))
    return query_grad, key_grad, value_grad, sinks_grad, *without


def dense_rows(x: Tensor) -> Tensor:
    """x with a dense last dimension, which is what the kernels read."""
    return x if x.stride(-1) == 1 else x.contiguous()


forward.register_autograd(_differentiate, setup_context=_save)
