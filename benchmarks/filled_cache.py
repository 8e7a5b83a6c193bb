"""KV caches of long texts without reading them: random keys and values put into memory."""

from typing import Any

import torch
from torch import Tensor

from benchmarks.models import ModelPair
from landmark.hf import LandmarkCache
from landmark.hf.rope import rotation
from landmark.memory import LayerMemory
from landmark.ops.rotary import Rotation
from landmark.settings import LandmarkSettings
from landmark.stream import stream_length

_SPARE = 64  # blocks of room beyond the context, so that buffers do not grow while they are timed


def filled_cache(pair: ModelPair, *, batch: int, tokens: int) -> LandmarkCache:
    """A cache that has read `tokens` random tokens in each of `batch` rows.

    Keys are normal, so that choices spread over all blocks: the most different blocks that queries can open.
    """
    cache = LandmarkCache(pair.model.config)
    like = torch.empty(0, dtype=pair.model.dtype, device=pair.model.device)
    base: Any = pair.model.base_model
    settings, reach = cache.settings, _reach(cache)
    length = stream_length(tokens, settings.block_size)
    piece = _piece_blocks(settings, reach, tokens // settings.block_size) * settings.stride
    generator = torch.Generator(like.device).manual_seed(0)
    for rope, memory in zip(base.landmark_ropes, cache.memories, strict=True):
        assert isinstance(memory, LayerMemory)
        turned = rotation(base.rotary_emb, rope, reach, cache.trained_positions, like)
        for start in range(0, length, piece):
            shape = (2, batch, pair.sizes.kv_heads, min(piece, length - start), pair.sizes.head_dim)
            key, value = torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
            _extend(memory, key, value, turned)
    _count(cache, batch, tokens, like.device)
    return cache


def _extend(memory: LayerMemory, key: Tensor, value: Tensor, turned: Rotation) -> None:
    """Appends key, value [B,Hkv,T,D], before rotary, as `LayerMemory.attend` does but without queries."""
    while key.shape[2]:
        window = memory._settled(key.shape[0], turned)
        most = key.shape[2] if turned.reach is None else turned.reach - max(window.lengths)
        valid = [min(key.shape[2], most)] * key.shape[0]
        window.write(key[:, :, : valid[0]], value[:, :, : valid[0]], valid, turned)
        memory._keep(valid)
        key, value = key[:, :, valid[0] :], value[:, :, valid[0] :]


def filled_cache_bytes(pair: ModelPair, *, batch: int, tokens: int) -> int:
    """Bytes that `filled_cache` takes at its peak: blocks, landmark keys, and a few copies of a chunk in each layer."""
    sizes, settings = pair.sizes, pair.settings
    blocks = tokens // settings.block_size + _SPARE
    position = sizes.kv_heads * sizes.head_dim
    block = 2 * settings.stride * position * sizes.number_bytes
    chunks = (3 * sizes.layers + 10) * _reach(LandmarkCache(pair.model.config)) * position * sizes.number_bytes
    return batch * (blocks * (sizes.layers * block + (sizes.layers - 1) * 4 * position) + chunks)


def _reach(cache: LandmarkCache) -> int:
    """Rotary positions in use when the longest chunk is read."""
    settings = cache.settings
    return settings.position_budget(tail=True) + cache.chunk_positions


def _piece_blocks(settings: LandmarkSettings, reach: int, blocks: int) -> int:
    """Blocks to put in at once, such that buffers which double from there on end just beyond `blocks`."""
    piece, most = blocks + _SPARE, max(1, reach // settings.stride - settings.reading.local_blocks - 1)
    while piece > most:
        piece = -(-piece // 2)
    return piece + settings.reading.local_blocks  # so many stay in the window


def _count(cache: LandmarkCache, batch: int, tokens: int, device: torch.device) -> None:
    """Sets the length of the cache to what its layers hold."""
    cache.resume(cache.tokens(batch, device) + tokens)
    cache.count_columns(None, torch.ones(batch, tokens, dtype=torch.bool, device=device))


def blocks_in_memory(settings: LandmarkSettings, tokens: int) -> int:
    """Blocks in memory of each layer when a chunk comes after `tokens` tokens."""
    return max(0, tokens // settings.block_size - settings.reading.local_blocks)


def positions_in_sight(settings: LandmarkSettings, tokens: int) -> int:
    """Stream positions of the local window then: its complete blocks and the tail."""
    blocks, tail = divmod(tokens, settings.block_size)
    return min(blocks, settings.reading.local_blocks) * settings.stride + tail
