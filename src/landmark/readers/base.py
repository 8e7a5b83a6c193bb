"""Keys and values of earlier segments, layer by layer, and causal attention that begins with them."""

import torch
from torch import Tensor

from landmark.hf.rope import Scoring
from landmark.ops.attention import landmark_attention


class CarriedKeys:
    """The newest `keep` positions of each layer, keys before rotary; no gradient flows into them."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """`[B,Hkv,K + T,D]`: what was carried and the `T` new positions; carries the newest of them from now on."""
        if layer in self.layers:
            key, value = (torch.cat(pair, dim=2) for pair in zip(self.layers[layer], (key, value), strict=True))
        if self.keep:
            self.layers[layer] = key[:, :, -self.keep :].detach(), value[:, :, -self.keep :].detach()
        return key, value


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
    """Plain attention `[B,H,T,D]` of the last T of the keys' positions, all rotated; section 2 without landmarks."""
    queries, keys = query.shape[2], key.shape[2]
    scale, dropout, _, softcap, sinks = scoring
    if softcap is not None or sinks is not None:
        never = torch.zeros(keys, dtype=torch.bool, device=key.device)
        return landmark_attention(
            query, key, value, is_landmark=never, scale=scale, softcap=softcap, sinks=sinks, dropout=dropout
        )
    mask = None
    if 1 < queries < keys:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=key.device).tril(keys - queries)
    return torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=queries == keys and queries > 1,
        scale=scale,
        enable_gqa=True,
    )
