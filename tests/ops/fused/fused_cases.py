"""Random inputs, and what fused attention is measured against."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from landmark.ops.attention import landmark_attention
from landmark.ops.reference import reference_attention
from landmark.ops.scoring import Scoring

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Case:
    """Shapes and options; `extras` name what is drawn at random: sinks, key_mask, document_ids."""

    block_size: int
    keys: int
    queries: int | None = None
    batch: int = 1
    kv_heads: int = 1
    groups: int = 1
    dim: int = 16
    extras: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    def draw(self, dtype: torch.dtype) -> tuple[list[Tensor], dict[str, Any], Tensor]:
        """Query, key, value and sinks if there are any; the other arguments; an upstream gradient."""
        generator = torch.Generator().manual_seed(self.keys + 1000 * self.block_size)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(DEVICE, dtype).requires_grad_()

        heads, tokens = self.kv_heads * self.groups, (self.batch, self.keys)
        query = normal(self.batch, heads, self.queries or self.keys, self.dim)
        inputs = [query, *(normal(self.batch, self.kv_heads, self.keys, self.dim) for _ in range(2))]
        options = {"block_size": self.block_size, **self.options}
        if "sinks" in self.extras:
            inputs.append(normal(heads))
        if "key_mask" in self.extras:
            options["key_mask"] = (torch.rand(tokens, generator=generator) < 0.7).to(DEVICE)
        if "document_ids" in self.extras:
            options["document_ids"] = (torch.rand(tokens, generator=generator) < 0.07).cumsum(-1).to(DEVICE)
        return inputs, options, normal(*query.shape).detach()


def results(attention: Any, inputs: list[Tensor], options: dict[str, Any], upstream: Tensor) -> list[Tensor]:
    """The output and the gradient of every input."""
    sinks = {"sinks": inputs[3]} if len(inputs) > 3 else {}
    out = attention(*inputs[:3], **sinks, **options)
    return [out.detach(), *torch.autograd.grad(out, inputs, upstream.to(out.dtype))]


def fused(*inputs: Tensor, **options: Any) -> Tensor:
    return landmark_attention(*inputs, **options, backend="fused")


def dense(*inputs: Tensor, **options: Any) -> Tensor:
    return landmark_attention(*inputs, **options, backend="reference")


def dense_weights(query: Tensor, key: Tensor, *, block_size: int, phase: int = 0, **options: Any) -> Tensor:
    """The final weights [B,H,Tq,Tk], which are the output where values are unit vectors."""
    places = torch.arange(key.shape[2], device=key.device) + phase
    units = torch.eye(key.shape[2], dtype=key.dtype, device=key.device).expand(*key.shape[:3], -1)
    scoring = {name: options.pop(name) for name in Scoring._fields if name in options}
    is_landmark = (places % (block_size + 1) == block_size)[None]
    return reference_attention(query, key, units, is_landmark=is_landmark, scoring=Scoring(**scoring), **options)


def plain_half(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """As PyTorch would do it in half precision: operands of products are rounded, scores and softmax are not."""
    weights = dense_weights(query.float(), key.float(), **options).to(query.dtype).float()
    value = value.float().repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    return (weights @ value).to(query.dtype)


def rounding(inputs: list[Tensor], options: dict[str, Any], upstream: Tensor) -> list[float]:
    """How far results move, in float64, where every number of the inputs moves by up to its rounding in float32.

    That is what arithmetic in float32 may do to them, whatever the order of its sums, up to a small factor: a sum of n
    terms that are each off by a random share of eps is off by about as much as one that was rounded n times, and
    intermediate results are off by about as much as what they are made of.
    """
    generator = torch.Generator().manual_seed(0)
    eps = torch.finfo(torch.float32).eps

    def moved(x: Tensor, by: float) -> Tensor:
        noise = torch.rand(x.shape, generator=generator, dtype=torch.float64).to(x.device)
        return (x.detach().double() * (1 + by * (2 * noise - 1))).requires_grad_()

    exact, *others = (
        results(dense, [moved(x, by) for x in inputs], options, moved(upstream, by).detach())
        for by in (0.0, eps, eps, eps)
    )
    return [max((x[i] - truth).abs().max().item() for x in others) for i, truth in enumerate(exact)]


def assert_errs_at_most_twice(
    found: list[Tensor], plain: list[Tensor], exact: list[Tensor], allowed: list[float]
) -> None:
    """At most twice the error of `plain`, or what rounding is `allowed`, for that may have luck on one processor.

    Operands and sums are rounded, in two products one after the other: four times what rounding the inputs does.
    """
    for x, comparison, truth, by_rounding in zip(found, plain, exact, allowed, strict=True):
        assert x.dtype == comparison.dtype
        # A GPU's exponential alone errs by two, and scores go through it twice.
        few_ulp = (8 if DEVICE == "cuda" else 4) * torch.finfo(x.dtype).eps * truth.abs().max().clamp(min=1.0)
        error, plain_error = ((y - truth).abs().max().item() for y in (x, comparison))
        assert error <= max(2 * plain_error, 4 * by_rounding) + few_ulp
