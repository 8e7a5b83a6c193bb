"""Prefill: the throughput of a chunk with a long text in memory."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks import full_attention
from benchmarks.compare import Method, Row, Task, compare
from benchmarks.filled_cache import blocks_in_memory, filled_cache, filled_cache_bytes, positions_in_sight
from benchmarks.machine import Machine, shortage
from benchmarks.models import ModelPair
from benchmarks.options import ReadOptions
from benchmarks.roofline import Sizes, Work, full_work, memory_work
from landmark.hf import LandmarkCache
from landmark.hf.compat import cache_kwargs
from landmark.stream import stream_length

BASELINE = "no memory"
LAYERS = 6


def check(pair: ModelPair, options: ReadOptions, contexts: list[int]) -> None:
    """Raises ValueError for a chunk that does not fit, or a context that the rounds would have to begin before."""
    cache = LandmarkCache(pair.model.config)
    fits = cache.chunk_tokens
    if options.chunk_size > fits:
        raise ValueError(f"chunk_size is {options.chunk_size}: at most {fits} ordinary tokens fit the trained range")
    ahead = _read_before(options)
    if min(contexts) < ahead:
        raise ValueError(
            f"context {min(contexts)} is shorter than the {ahead} tokens read before the median round: give a longer"
            " one, fewer rounds or a shorter chunk"
        )


def run(
    machine: Machine, pair: ModelPair, options: ReadOptions, context: int, progress: Callable[[int], object]
) -> Iterator[Row]:
    """The rows of one context; `progress` gets `rounds + 1` steps."""
    settings = pair.settings
    what = {
        "bench": "read",
        "model": str(options.model or "random"),
        "context": context,
        "blocks": blocks_in_memory(settings, context),
        "chunk": options.chunk_size,
        "block_size": settings.block_size,
        "retrieve": settings.reading.retrieve,
        "local_blocks": settings.reading.local_blocks,
        **pair.sizes._asdict(),
    }
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(settings.landmark_id, (1, options.chunk_size), generator=generator).to(machine.device)
    makers = (_memory, _no_memory, _plain, _full)
    methods = [make(machine, pair, options, context, ids) for make in makers]
    yield from compare(machine, Task(what, BASELINE, tokens=options.chunk_size), methods, options.rounds, progress)


def _read_before(options: ReadOptions) -> int:
    """Tokens that are read before the median round: memory grows with every round, and this centres it."""
    return (1 + (options.rounds - 1) // 2) * options.chunk_size


def _memory(machine: Machine, pair: ModelPair, options: ReadOptions, context: int, ids: Tensor) -> Method:
    start = context - _read_before(options)
    lack = shortage(filled_cache_bytes(pair, batch=1, tokens=context), machine.device)
    if lack is not None:
        return Method("memory", missing=lack)
    cache = filled_cache(pair, batch=1, tokens=start)

    def work() -> Work:
        blocks, retrieve = blocks_in_memory(pair.settings, context), pair.settings.reading.retrieve
        return chunk_work(pair, context, options.chunk_size, blocks, retrieve, opened_blocks(cache, pair.sizes))

    return Method("memory", lambda: _into(pair, ids, cache), work=work, kept_bytes=lambda: cache.nbytes)


def _no_memory(machine: Machine, pair: ModelPair, options: ReadOptions, context: int, ids: Tensor) -> Method:
    cache = LandmarkCache(pair.model.config, retrieve=0)
    return Method(
        BASELINE,
        lambda: _into(pair, ids, cache),
        work=lambda: chunk_work(pair, context, options.chunk_size, 0, 0, 0),
        kept_bytes=lambda: cache.nbytes,
    )


def _plain(machine: Machine, pair: ModelPair, options: ReadOptions, context: int, ids: Tensor) -> Method:
    work = full_work(pair.sizes, batch=1, tokens=options.chunk_size, past=0, logits=False)
    return Method("plain", lambda: _alone(pair, ids), work=lambda: work)


def _full(machine: Machine, pair: ModelPair, options: ReadOptions, context: int, ids: Tensor) -> Method:
    if context > options.full_limit:
        return Method("full", missing=f"the context is longer than full_limit {options.full_limit}")
    start, room = context - _read_before(options), (options.rounds + 2) * options.chunk_size
    lack = shortage(full_attention.fixed_cache_bytes(pair.sizes, batch=1, tokens=start + room), machine.device)
    if lack is not None:
        return Method("full", missing=lack)
    like = torch.empty(0, dtype=machine.dtype, device=machine.device)
    cache = full_attention.fixed_cache(pair.sizes, batch=1, past=start, room=room, like=like)
    work = full_work(pair.sizes, batch=1, tokens=options.chunk_size, past=context, logits=False)
    kept = full_attention.fixed_cache_bytes(pair.sizes, batch=1, tokens=context)
    return Method("full", lambda: _over(pair, ids, cache), work=lambda: work, kept_bytes=lambda: kept)


@torch.no_grad()
def _into(pair: ModelPair, ids: Tensor, cache: LandmarkCache) -> None:
    base: Any = pair.model.base_model
    base(input_ids=ids, **cache_kwargs(base, cache))


@torch.no_grad()
def _alone(pair: ModelPair, ids: Tensor) -> None:
    pair.plain.base_model(input_ids=ids, use_cache=False, bench_attend=full_attention.causal)


@torch.no_grad()
def _over(pair: ModelPair, ids: Tensor, cache: Any) -> None:
    attend = full_attention.chunk_over_past(cache.get_seq_length(), ids.shape[1], ids.device)
    base: Any = pair.plain.base_model
    base(input_ids=ids, **cache_kwargs(base, cache), bench_attend=attend)


def chunk_work(pair: ModelPair, context: int, tokens: int, blocks: int, retrieve: int, opened: int) -> Work:
    """Work of `tokens` ordinary tokens and their landmarks that begin `context` tokens into a text."""
    size = pair.settings.block_size
    return memory_work(
        pair.sizes,
        batch=1,
        positions=stream_length(tokens, size, context % size),
        window=positions_in_sight(pair.settings, context),
        block_size=size,
        blocks=blocks,
        retrieve=retrieve,
        opened=opened,
        logits=False,
    )


def opened_blocks(cache: LandmarkCache, model: Sizes) -> int:
    """Different blocks that the newest chunk opened, over layers, rows and key heads."""
    count = 0
    for blocks in cache.trace().blocks.values():  # [B,H,T,k], -1 for none
        by_key_head = blocks.unflatten(1, (model.kv_heads, -1)).flatten(2)
        for row in by_key_head.flatten(0, 1):
            chosen = row.unique()
            count += int((chosen >= 0).sum())
    return count
