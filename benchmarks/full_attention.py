"""Full attention with a preallocated KV cache: the baseline, as fast as PyTorch's own operations allow.

Keys and values lie in buffers made once and are written in place; attention sees the part in use as a view. A single
query reads each key head once for all query heads of its group. A chunk is masked to its lower right corner, on CUDA by
FlashAttention itself and elsewhere by a mask that all layers share.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin

from benchmarks.models import Attend
from benchmarks.roofline import Sizes
from landmark.ops.reference import reference_attention
from landmark.ops.scoring import Scoring


class FixedLayer(CacheLayerMixin):
    """Keys and values [B,Hkv,capacity,D], of which the first `length` are in use."""

    is_sliding = False
    supports_early_init = False

    def __init__(self, data: Tensor, length: int) -> None:
        super().__init__()
        self.data, self.length = data, length  # data [2,B,Hkv,capacity,D]
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the buffers are there."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        stop = self.length + key_states.shape[2]
        assert stop <= self.data.shape[3], "a fixed cache is made with room for all that comes"
        self.data[0, :, :, self.length : stop] = key_states
        self.data[1, :, :, self.length : stop] = value_states
        self.length = stop
        return self.data[0, :, :, :stop], self.data[1, :, :, :stop]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.data.shape[3]


def fixed_cache(model: Sizes, *, batch: int, past: int, room: int, like: Tensor) -> Cache:
    """A cache with `past` random keys and values and room for `room` more; dtype and device are those of `like`."""
    layers = []
    for _ in range(model.layers):
        data = like.new_empty(2, batch, model.kv_heads, past + room, model.head_dim).normal_()
        layers.append(FixedLayer(data, past))
    return Cache(layers=layers)


def growing_cache(model: Sizes, *, batch: int, past: int, like: Tensor) -> Cache:
    """What transformers' models make by themselves: every new token copies all keys and values of a layer."""
    cache = DynamicCache()
    for layer in range(model.layers):
        keys, values = like.new_empty(2, batch, model.kv_heads, past, model.head_dim).normal_()
        cache.update(keys, values, layer)
    return cache


def fixed_cache_bytes(model: Sizes, *, batch: int, tokens: int) -> int:
    """Bytes of keys and values of `tokens` tokens."""
    return 2 * batch * model.layers * model.kv_heads * model.head_dim * tokens * model.number_bytes


def causal(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """A chunk that sees only itself."""
    return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)


def chunk_over_past(past: int, tokens: int, device: torch.device) -> Attend:
    """A chunk of `tokens` queries, the last of `past + tokens` keys."""
    mask: Any = causal_lower_right(tokens, past + tokens)
    if device.type != "cuda":
        mask = torch.ones(tokens, past + tokens, dtype=torch.bool, device=device).tril(past)

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=True)

    return attend


def last_token(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """One query [B,H,1,D] over all keys: the heads of a group go as queries of their one key head."""
    grouped = query.reshape(query.shape[0], key.shape[1], -1, query.shape[-1])
    return scaled_dot_product_attention(grouped, key, value, scale=scale).reshape(query.shape)


def dense_landmarks(block_size: int) -> Callable[[Tensor, Tensor, Tensor, float | None], Tensor]:
    """The grouped softmax over everything, written densely: what decoding without an index comes to."""

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        positions = torch.arange(key.shape[2], device=key.device)
        is_landmark = (positions % (block_size + 1) == block_size)[None]
        return reference_attention(query, key, value, is_landmark=is_landmark, scoring=Scoring(scale))

    return attend
