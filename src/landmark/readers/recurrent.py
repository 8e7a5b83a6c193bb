"""Segment-level recurrence (Transformer-XL), with or without landmarks."""

from typing import Any

import torch
from torch import Tensor

from landmark.hf.calls import Reader
from landmark.ops.attention import grouped_attention
from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring
from landmark.settings import check_block_size


class CarriedKeys:
    """KV cache of the newest `keep` positions of each layer: detached, keys before rotary."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Cached and new keys and values, `[B,Hkv,K + T,D]`; the newest `keep` positions stay in the cache."""
        if layer in self.layers:
            key, value = (torch.cat(pair, dim=2) for pair in zip(self.layers[layer], (key, value), strict=True))
        if self.keep:
            self.layers[layer] = key[:, :, -self.keep :].detach(), value[:, :, -self.keep :].detach()
        return key, value


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
    """Causal attention `[B,H,T,D]` of queries at the last T positions of the keys, all after rotary."""
    queries, keys = query.shape[2], key.shape[2]
    if scoring.softcap is not None or scoring.sinks is not None:
        never = torch.zeros(keys, dtype=torch.bool, device=key.device)
        return grouped_attention(query, key, value, scoring, is_landmark=never)
    mask = None
    if 1 < queries < keys:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=key.device).tril(keys - queries)
    return torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=scoring.dropout,
        is_causal=queries == keys and queries > 1,
        scale=scoring.scale,
        enable_gqa=True,
    )


class Recurrent(Reader):
    """Causal attention over the segment and the newest `keep` positions before it.

    The segment-level recurrence of Transformer-XL (Dai et al. 2019, section 3.2): cached states get no gradient, and
    positions are relative, here by rotary. With `keep` 0 it is full attention within windows of `segment` tokens.
    """

    def __init__(self, segment: int, keep: int) -> None:
        super().__init__(segment)
        if keep < 0:
            raise ValueError(f"keep is {keep}: give 0 (no recurrence) or more positions")
        self._carried = CarriedKeys(keep)

    def reach(self, width: int) -> int:
        return self._carried.keep + width

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, rotation: Rotation, s: Scoring) -> Tensor:
        key, value = self._carried.extend(module.layer_idx, key, value)
        positions = torch.arange(key.shape[2], device=key.device)
        query = rotation.apply(query, positions[-query.shape[2] :])
        return causal_attention(query, rotation.apply(key, positions), value, s)


class RecurrentLandmarks(Reader):
    """Landmark attention over the segment and the newest `keep` stream positions before it.

    Trains the reading of a cache with `local_blocks`: the previous window is recurrent, and the grouped softmax
    (Mohtashami & Jaggi 2023, section 3.1) covers its blocks, without gradient, and those of the segment.
    """

    def __init__(self, segment: int, keep: int, block_size: int, *, phase: int = 0) -> None:
        super().__init__(segment, phase=phase)
        check_block_size(block_size)
        if keep < 1:
            raise ValueError(f"keep is {keep}: give 1 position or more")
        self.block_size = block_size
        self._carried = CarriedKeys(keep)

    def reach(self, width: int) -> int:
        return self._carried.keep + width

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, rotation: Rotation, s: Scoring) -> Tensor:
        stride = self.block_size + 1
        start = self.seen + self.seen // self.block_size  # stream position of the segment
        key, value = self._carried.extend(module.layer_idx, key, value)
        positions = torch.arange(key.shape[2], device=key.device)
        return grouped_attention(
            rotation.apply(query, positions[-query.shape[2] :]),
            rotation.apply(key, positions),
            value,
            s,
            block_size=self.block_size,
            phase=(start - (key.shape[2] - query.shape[2])) % stride,
        )
