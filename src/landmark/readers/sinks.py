"""Sliding-window attention with attention sinks (StreamingLLM), for models trained with full attention."""

from typing import Any

import torch
from torch import Tensor

from landmark.hf.calls import Reader
from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring, working_dtype
from landmark.readers.recurrent import CarriedKeys


class Sinks(Reader):
    """Each query attends to the first `sinks` tokens of the text and the newest `window` tokens, itself included.

    StreamingLLM (Xiao et al. 2023, section 3.2): positions are those in the KV cache, where the window directly follows
    the sinks, so that no distance reaches `sinks + window`. The result does not depend on segment boundaries: segments
    of one token (decoding) give the same as long ones. With `sinks` 0 it is a plain sliding window.

    Raises ValueError for `window` < 1 or `sinks` < 0.
    """

    def __init__(self, segment: int, window: int, sinks: int = 4) -> None:
        super().__init__(segment)
        if window < 1:
            raise ValueError(f"window is {window}: give 1 (the token itself) or more")
        if sinks < 0:
            raise ValueError(f"sinks is {sinks}: give 0 (a plain sliding window) or more")
        self.window = window
        self.sinks = sinks
        self._newest = CarriedKeys(window - 1)
        self._first: dict[int, tuple[Tensor, Tensor]] = {}

    def reach(self, width: int) -> int:
        return self.window + max(width, self.sinks)

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, rotation: Rotation, s: Scoring) -> Tensor:
        first_key, first_value = self._first_tokens(module.layer_idx, key, value)
        key, value = self._newest.extend(module.layer_idx, key, value)
        positions = torch.arange(key.shape[2], device=key.device)
        own = positions[-query.shape[2] :]
        position = self.seen + torch.arange(query.shape[2], device=key.device)
        sinks = torch.arange(first_key.shape[2], device=key.device)
        # Once the window slides, its last token is at position sinks + window - 1; sinks keep their positions.
        in_cache = position.clamp(max=self.sinks + self.window - 1)
        of_sinks = _inner_products(rotation.apply(query, in_cache), rotation.apply(first_key, sinks))
        query, key = rotation.apply(query, own), rotation.apply(key, positions)
        behind = own[:, None] - positions
        # A sink inside the window is attended to there.
        visible = torch.cat((position[:, None] - sinks >= self.window, (behind >= 0) & (behind < self.window)), dim=1)
        value = torch.cat((first_value, value), dim=2)
        # Unscaled inner products leave the range of float16.
        if s.softcap is None and s.sinks is None and query.dtype != torch.float16:
            return _fused(of_sinks, query, key, value, visible, s)
        return _attention(torch.cat((of_sinks, _inner_products(query, key)), dim=-1), visible, value, s)

    def _first_tokens(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[B,Hkv,n,D]` of the first tokens of the text: at most `sinks`, fewer at its beginning."""
        missing = max(0, self.sinks - self.seen)
        first = key[:, :, :missing], value[:, :, :missing]
        if layer in self._first:
            first = tuple(torch.cat(pair, dim=2) for pair in zip(self._first[layer], first, strict=True))
        self._first[layer] = first[0].detach(), first[1].detach()
        return first[0], first[1]


def _inner_products(query: Tensor, key: Tensor) -> Tensor:
    """Inner products `[B,H,T,n]` of rotated queries and keys, before scaling, in the working dtype."""
    working = working_dtype(query)
    grouped = query.to(working).unflatten(1, (key.shape[1], -1))
    return (grouped @ key.to(working)[:, :, None].transpose(-1, -2)).flatten(1, 2)


def _fused(of_sinks: Tensor, query: Tensor, key: Tensor, value: Tensor, visible: Tensor, s: Scoring) -> Tensor:
    """Attention by torch's kernel, which keeps no scores: over `n` sinks, then over `key`.

    A query has another rotation for sinks than for the window. So the inner products with sinks `[B,H,T,n]` become
    dimensions of the query, which the key of a sink has 1 in and no other key; a second one holds what rounding to a
    16-bit dtype leaves. Values have zeros there, as the kernel wants all three equally wide.
    """
    rounded = of_sinks.to(query.dtype)
    query = torch.cat((query, rounded, (of_sinks - rounded).to(query.dtype)), dim=-1)
    count, width = of_sinks.shape[-1], value.shape[-1]
    ones = torch.eye(count, dtype=key.dtype, device=key.device).repeat(1, 2).expand(*key.shape[:2], -1, -1)
    pad = torch.nn.functional.pad
    out = torch.nn.functional.scaled_dot_product_attention(
        query,
        torch.cat((pad(ones, (width, 0)), pad(key, (0, 2 * count))), dim=2),
        pad(value, (0, 2 * count)),
        attn_mask=visible,
        dropout_p=s.dropout,
        scale=s.scale_of(value),
        enable_gqa=True,
    )
    return out[..., :width]


def _attention(scores: Tensor, visible: Tensor, value: Tensor, s: Scoring) -> Tensor:
    """Softmax over the `visible [T,n]` keys, and the average of `value [B,Hkv,n,D]` in its dtype."""
    scores = s.cap(scores * s.scale_of(value))
    scores = scores.masked_fill(~visible, -torch.inf)
    if s.sinks is not None:
        model_sink = s.sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat((scores, model_sink), dim=-1)
    weights = torch.nn.functional.dropout(scores.softmax(-1)[..., : visible.shape[1]], s.dropout)
    grouped = weights.to(value.dtype).unflatten(1, (value.shape[1], -1))
    return (grouped @ value[:, :, None]).flatten(1, 2)
