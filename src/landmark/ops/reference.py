"""Reference: the grouped softmax written densely, rule by rule. The other backends are tested against it."""

import torch
from torch import Tensor

from landmark.ops.nonfinite import averages, products
from landmark.ops.scoring import Scoring, working_dtype


def reference_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    is_landmark: Tensor,
    scoring: Scoring,
    key_mask: Tensor | None = None,
    document_ids: Tensor | None = None,
) -> Tensor:
    """Grouped softmax attention (Mohtashami & Jaggi 2023, section 3.1) with landmarks at any positions.

    Shapes: query [B,H,Tq,D], key and value [B,Hkv,Tk,D], is_landmark bool [B or 1,Tk], key_mask bool [B,Tk],
    document_ids int [B,Tk]; returns [B,H,Tq,D] in query's dtype. Builds several [B,H,Tq,Tk] matrices. The
    arguments are taken as checked by `landmark_attention`.
    """
    groups = query.shape[1] // key.shape[1]
    queries, keys = query.shape[2], key.shape[2]
    q, k, v = (x.to(working_dtype(query)) for x in (query, key, value))
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))

    is_landmark = is_landmark[:, None, None, :]
    block = is_landmark.long().cumsum(-1) - is_landmark.long()  # landmarks strictly before each position
    own = block[..., keys - queries :].transpose(-1, -2) == block
    visible = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)[None, None]
    if key_mask is not None:
        visible = visible & key_mask[:, None, None, :]
    if document_ids is not None:
        visible = visible & (document_ids[:, None, keys - queries :, None] == document_ids[:, None, None, :])
    local = visible & own & ~is_landmark
    gate = visible & ~own & is_landmark
    inside = visible & ~own & ~is_landmark

    # Masked pairs are 0 from here on, even if they are NaN or infinite.
    scores = products(q, k).masked_fill(~(local | gate | inside), 0.0) * scoring.scale_of(query)
    scores = scoring.cap(scores)

    joint = _joint_softmax(scores, local | gate, scoring.sinks)
    by_block = block.expand_as(scores)
    per_block = scores.new_zeros(*scores.shape[:-1], int(block.max()) + 1)
    opened = per_block.scatter_add(-1, by_block, joint.masked_fill(~gate, 0.0)).gather(-1, by_block)
    inside = inside & (opened.detach() != 0)

    shift = per_block - torch.inf
    shift = shift.scatter_reduce(-1, by_block, _hide(scores, inside).detach(), "amax").gather(-1, by_block)
    exponentials = torch.exp(_hide(scores, inside) - _finite(shift))
    totals = per_block.scatter_add(-1, by_block, exponentials).gather(-1, by_block)
    weights = joint.masked_fill(~local, 0.0) + opened * exponentials / totals.masked_fill(totals == 0, 1.0)
    weights = weights.masked_fill(~(local | inside), 0.0)
    return averages(torch.nn.functional.dropout(weights, scoring.dropout), v).to(query.dtype)


def _joint_softmax(scores: Tensor, chosen: Tensor, sinks: Tensor | None) -> Tensor:
    """Softmax over the chosen keys and the sink, without the sink's column; 0 where nothing is chosen."""
    hidden = _hide(scores, chosen)
    sink = hidden.new_full((), -torch.inf) if sinks is None else sinks.to(scores.dtype)[:, None, None]
    shift = _finite(torch.maximum(hidden.amax(-1, keepdim=True), sink).detach())
    exponentials = torch.exp(hidden - shift)
    total = exponentials.sum(-1, keepdim=True) + torch.exp(sink - shift)
    return exponentials / total.masked_fill(total == 0, 1.0)


def _hide(scores: Tensor, visible: Tensor) -> Tensor:
    return scores.masked_fill(~visible, -torch.inf)


def _finite(shift: Tensor) -> Tensor:
    return shift.masked_fill(shift == -torch.inf, 0.0)
