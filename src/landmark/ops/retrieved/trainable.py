"""Retrieved blocks in plain PyTorch with gradients: the queries that chose a block read it together."""

import torch
from torch import Tensor

from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring, working_dtype


def trainable_blocks(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    blocks: Tensor,
    distance: Tensor,
    *,
    rotation: Rotation,
    scoring: Scoring,
    hidden: int = 0,
) -> tuple[Tensor, Tensor]:
    """Attention of each query inside each of the blocks chosen for it (Mohtashami & Jaggi 2023, section 3.2).

    Args:
        query: [B,H,T,D] before rotary.
        keys, values: [B,Hkv,n,stride,D], keys rotated by their offset in the block.
        blocks: long [B,H,T,k] in 0..n-1, those that each query reads.
        distance: long [B,H,T,k]: positions from the start of the block to the query.
        hidden: positions at the beginning of block 0 that nobody sees.

    Returns what `retrieved_attention` does: per chosen block the average [B,H,T,k,D] of its ordinary tokens' values and
    the logit of its gate [B,H,T,k], in float32 or float64. Nothing of the size of queries times keys is built, nor are
    keys copied for each query.
    """
    working, (kv_heads, count) = working_dtype(query), keys.shape[1:3]
    with torch.autocast(query.device.type, enabled=False):
        turned = rotation.apply(query[..., None, :].to(working), distance).expand(*blocks.shape, -1)
        turned = turned * scoring.scale_of(query)
        heads = torch.arange(len(keys) * kv_heads, device=keys.device).view(-1, kv_heads, 1, 1, 1)
        pages = (heads * count + blocks.unflatten(1, (kv_heads, -1))).flatten()
        order = pages.argsort(stable=True)
        groups = turned.flatten(0, -2)[order].split(pages.bincount(minlength=heads.numel() * count).tolist())
        inside, gates = [], []
        for page, some in enumerate(groups):
            if not len(some):
                continue
            first = hidden if page % count == 0 else 0
            key, value = (x.flatten(0, 2)[page, first:].to(working) for x in (keys, values))
            scores = scoring.cap(some @ key.T)
            weights = torch.nn.functional.dropout(scores[:, :-1].softmax(-1), scoring.dropout)
            inside.append(weights @ value[:-1])
            gates.append(scores[:, -1])
        back = order.argsort()
        return torch.cat(inside)[back].view(*blocks.shape, -1), torch.cat(gates)[back].view(blocks.shape)
