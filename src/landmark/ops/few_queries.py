"""The grouped softmax for a few queries over a short window: dense, in as few operations as it takes.

While decoding there is one query and a window of some hundred keys. What counts then is the number of operations,
not their size.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from landmark.ops.tiles import working_dtype


class Sight(NamedTuple):
    """What queries see: `hidden [B,1,T,L]`, 0 at keys of the joint softmax and -inf elsewhere; their last block."""

    hidden: Tensor
    last_block: int
    stride: int


def sight(positions: Tensor, keys: int, stride: int) -> Sight:
    """The sight of queries at `positions [B,T]` among `keys` keys that start a block."""
    position, place = positions[:, None, :, None], torch.arange(keys, device=positions.device)
    own, block = position // stride, place // stride
    is_landmark = place % stride == stride - 1
    outside = torch.where(is_landmark, block >= own, (block != own) | (place > position))
    hidden = torch.zeros(outside.shape, device=positions.device).masked_fill_(outside, -torch.inf)
    return Sight(hidden, int(own.max()), stride)


def few_queries_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sight: Sight,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Grouped softmax attention (Mohtashami & Jaggi 2023, section 3.1), as `blockwise_attention` and without gradient.

    Shapes: query [B,H,T,D], key, value [B,Hkv,L,D]. Returns the output [B,H,T,D] in query's dtype and the logarithm of
    the joint softmax's denominator [B,H,T] in float32 (float64 for float64 inputs), -inf where a query sees nothing.
    Builds [B,H,T,L] matrices.
    """
    dtype, kv_heads = working_dtype(query), key.shape[1]
    keys, values = key.to(dtype), value.to(dtype)
    scores = (query.to(dtype) * scale).unflatten(1, (kv_heads, -1)).flatten(2, 3) @ keys.transpose(2, 3)
    scores = scores.view(*query.shape[:3], -1)
    if softcap is not None:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    joint = scores + sight.hidden
    lse = joint.logsumexp(-1)
    if sinks is not None:
        lse = torch.logaddexp(lse, sinks[:, None].to(dtype))
    weights = joint.sub_(lse.masked_fill(lse == -torch.inf, 0.0)[..., None]).exp_()
    if sight.last_block:
        # Blocks before a query's own: its gate is shared out among the ordinary tokens. Later ones have gate 0.
        earlier = weights[..., : sight.last_block * sight.stride].unflatten(-1, (-1, sight.stride))
        inside = scores[..., : sight.last_block * sight.stride].unflatten(-1, (-1, sight.stride))[..., :-1].softmax(-1)
        earlier[..., :-1].add_(inside.mul_(earlier[..., -1:]))
        earlier[..., -1] = 0.0
    out = weights.view(*keys.shape[:2], -1, keys.shape[2]) @ values
    return out.view(query.shape).to(query.dtype), lse
