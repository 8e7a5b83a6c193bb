"""Fused grouped softmax: Triton kernels for NVIDIA GPUs, forward and backward."""

import torch
from torch import Tensor

from landmark.ops import triton_support
from landmark.ops.scoring import Scoring

_NARROWEST_HEAD = 16


def unsupported_reason(query: Tensor) -> str | None:
    """Why the kernels cannot serve this query [B,H,T,D], None if they can."""
    if query.shape[-1] < _NARROWEST_HEAD:
        return f"serves head_dim from {_NARROWEST_HEAD} on, as matrix units take no less, not {query.shape[-1]}"
    return triton_support.unsupported_reason(query)


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    block_size: int,
    phase: int,
    scoring: Scoring,
    key_mask: Tensor | None = None,
    document_ids: Tensor | None = None,
) -> Tensor:
    """Grouped softmax attention (Mohtashami & Jaggi 2023, section 3.1) of the last queries of a stream.

    The arguments are those of `landmark_attention`, taken as checked there. Memory beyond the results: two float32
    per query and head. Backward needs two more for each block where a block's keys do not fit
    a tile: more than 128 of them, or more than 32 KB, either rounded up to powers of two.
    """
    from landmark.ops.fused.launch import dense_rows, forward_op
    from landmark.ops.fused.spans import label_tensors

    query, key, value = (dense_rows(x) for x in (query, key, value))
    labels, ranges = label_tensors(key_mask, document_ids, key, block_size, phase)
    seed = torch.randint(1 << 62, (), device=query.device) if scoring.dropout else None
    first = torch.full((query.shape[0],), key.shape[2] - query.shape[2], device=query.device)
    tensors = query, key, value, scoring.sinks, labels, ranges, seed, first
    numbers = scoring.scale_of(query), scoring.softcap, scoring.dropout
    out, _ = forward_op(*tensors, block_size, phase, *numbers)
    return out


def fused_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    block_size: int,
    first_query: Tensor,
    scoring: Scoring,
) -> tuple[Tensor, Tensor]:
    """The same over keys that start a block; the queries [B,H,Tq,D] of each row begin at an index of their own.

    Query i of row b has index first_query[b] + i among the keys; `first_query` is int [B], and is not read by
    the host. Queries beyond the last key are padding, and give something finite.

    Returns the output [B,H,Tq,D] and the logarithm of the joint softmax's denominator [B,H,Tq] in float32,
    -inf where a row sees nothing. The second has no gradient.
    """
    from landmark.ops.fused.launch import dense_rows, forward_op

    query, key, value = (dense_rows(x) for x in (query, key, value))
    tensors = query, key, value, scoring.sinks, None, None, None, first_query
    return forward_op(*tensors, block_size, 0, scoring.scale_of(query), scoring.softcap, 0.0)
