"""Reading: how fast a chunk goes in when a long text already lies in memory."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks import full_attention
from benchmarks.compare import Contender, Row, Task, compare
from benchmarks.machine import Machine, shortage
from benchmarks.models import Subject
from benchmarks.options import ReadOptions
from benchmarks.past import blocks_in_memory, filled_cache, filled_cache_bytes, positions_in_sight
from benchmarks.roofline import Sizes, Work, full_work, memory_work
from landmark.hf import LandmarkCache
from landmark.hf.compat import cache_kwargs
from landmark.stream import stream_length

BASE = "no memory"
LAYERS = 6


def check(subject: Subject, options: ReadOptions, contexts: list[int]) -> None:
    """Raises ValueError for a chunk that does not fit, or a context that the rounds would have to begin before."""
    cache = LandmarkCache(subject.model.config)
    fits = cache.chunk_tokens
    if options.chunk > fits:
        raise ValueError(f"chunk is {options.chunk}: at most {fits} ordinary tokens fit the trained range")
    ahead = _read_before(options)
    if min(contexts) < ahead:
        raise ValueError(
            f"context {min(contexts)} is shorter than the {ahead} tokens read before the median round: give a longer"
            " one, fewer rounds or a shorter chunk"
        )


def run(
    machine: Machine, subject: Subject, options: ReadOptions, context: int, progress: Callable[[int], object]
) -> Iterator[Row]:
    """The rows of one context; `progress` is told of `rounds + 1` steps."""
    settings = subject.settings
    what = {
        "bench": "read",
        "model": str(options.model or "random"),
        "context": context,
        "blocks": blocks_in_memory(settings, context),
        "chunk": options.chunk,
        "block_size": settings.block_size,
        "retrieve": settings.reading.retrieve,
        "local_blocks": settings.reading.local_blocks,
        **subject.sizes._asdict(),
    }
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(settings.landmark_id, (1, options.chunk), generator=generator).to(machine.device)
    makers = (_memory, _no_memory, _plain, _full)
    contenders = [make(machine, subject, options, context, ids) for make in makers]
    yield from compare(machine, Task(what, BASE, tokens=options.chunk), contenders, options.rounds, progress)


def _read_before(options: ReadOptions) -> int:
    """Tokens that are read before the median round: memory grows with every round, and this centres it."""
    return (1 + (options.rounds - 1) // 2) * options.chunk


def _memory(machine: Machine, subject: Subject, options: ReadOptions, context: int, ids: Tensor) -> Contender:
    start = context - _read_before(options)
    lack = shortage(filled_cache_bytes(subject, batch=1, tokens=context), machine.device)
    if lack is not None:
        return Contender("memory", missing=lack)
    cache = filled_cache(subject, batch=1, tokens=start)

    def work() -> Work:
        blocks, retrieve = blocks_in_memory(subject.settings, context), subject.settings.reading.retrieve
        return chunk_work(subject, context, options.chunk, blocks, retrieve, opened_blocks(cache, subject.sizes))

    return Contender("memory", lambda: _into(subject, ids, cache), work=work, kept_bytes=lambda: cache.nbytes)


def _no_memory(machine: Machine, subject: Subject, options: ReadOptions, context: int, ids: Tensor) -> Contender:
    cache = LandmarkCache(subject.model.config, retrieve=0)
    return Contender(
        BASE,
        lambda: _into(subject, ids, cache),
        work=lambda: chunk_work(subject, context, options.chunk, 0, 0, 0),
        kept_bytes=lambda: cache.nbytes,
    )


def _plain(machine: Machine, subject: Subject, options: ReadOptions, context: int, ids: Tensor) -> Contender:
    work = full_work(subject.sizes, batch=1, tokens=options.chunk, past=0, logits=False)
    return Contender("plain", lambda: _alone(subject, ids), work=lambda: work)


def _full(machine: Machine, subject: Subject, options: ReadOptions, context: int, ids: Tensor) -> Contender:
    if context > options.full_limit:
        return Contender("full", missing=f"the context is longer than full_limit {options.full_limit}")
    start, room = context - _read_before(options), (options.rounds + 2) * options.chunk
    lack = shortage(full_attention.fixed_cache_bytes(subject.sizes, batch=1, tokens=start + room), machine.device)
    if lack is not None:
        return Contender("full", missing=lack)
    like = torch.empty(0, dtype=machine.dtype, device=machine.device)
    cache = full_attention.fixed_cache(subject.sizes, batch=1, past=start, room=room, like=like)
    work = full_work(subject.sizes, batch=1, tokens=options.chunk, past=context, logits=False)
    kept = full_attention.fixed_cache_bytes(subject.sizes, batch=1, tokens=context)
    return Contender("full", lambda: _over(subject, ids, cache), work=lambda: work, kept_bytes=lambda: kept)


@torch.no_grad()
def _into(subject: Subject, ids: Tensor, cache: LandmarkCache) -> None:
    base: Any = subject.model.base_model
    base(input_ids=ids, **cache_kwargs(base, cache))


@torch.no_grad()
def _alone(subject: Subject, ids: Tensor) -> None:
    subject.plain.base_model(input_ids=ids, use_cache=False, bench_attend=full_attention.causal)


@torch.no_grad()
def _over(subject: Subject, ids: Tensor, cache: Any) -> None:
    attend = full_attention.chunk_over_past(cache.get_seq_length(), ids.shape[1], ids.device)
    base: Any = subject.plain.base_model
    base(input_ids=ids, **cache_kwargs(base, cache), bench_attend=attend)


def chunk_work(subject: Subject, context: int, tokens: int, blocks: int, retrieve: int, opened: int) -> Work:
    """Work of `tokens` ordinary tokens and their landmarks that begin `context` tokens into a text."""
    size = subject.settings.block_size
    return memory_work(
        subject.sizes,
        batch=1,
        positions=stream_length(tokens, size, context % size),
        window=positions_in_sight(subject.settings, context),
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
