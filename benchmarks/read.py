"""Prefill: the throughput of a chunk with a long text in memory."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks import full_attention
from benchmarks.compare import Method, Row, Task, compare
from benchmarks.filled_cache import blocks_in_memory, filled_cache, filled_cache_bytes, positions_in_sight
from benchmarks.machine import Machine
from benchmarks.models import Case, ModelPair, random_ids
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
    case = Case(machine, pair, options, context, random_ids(pair, machine, 1, options.chunk_size))
    what = case.row("read", blocks=blocks_in_memory(pair.settings, context), chunk=options.chunk_size)
    methods = [make(case) for make in (_memory, _no_memory, _plain, _full)]
    yield from compare(machine, Task(what, BASELINE, tokens=options.chunk_size), methods, options.rounds, progress)


def _read_before(options: ReadOptions) -> int:
    """Tokens that are read before the median round: memory grows with every round, and this centres it."""
    return (1 + (options.rounds - 1) // 2) * options.chunk_size


def _memory(case: Case[ReadOptions]) -> Method:
    start = case.context - _read_before(case.options)
    lack = case.shortage(filled_cache_bytes(case.pair, batch=1, tokens=case.context))
    if lack is not None:
        return Method("memory", missing=lack)
    cache = filled_cache(case.pair, batch=1, tokens=start)

    def work() -> Work:
        blocks, retrieve = blocks_in_memory(case.pair.settings, case.context), case.pair.settings.reading.retrieve
        return _chunk_work(case, blocks, retrieve, opened_blocks(cache, case.pair.sizes))

    return Method("memory", lambda: _into(case.pair, case.ids, cache), work=work, kept_bytes=lambda: cache.nbytes)


def _no_memory(case: Case[ReadOptions]) -> Method:
    cache = LandmarkCache(case.pair.model.config, retrieve=0)
    return Method(
        BASELINE,
        lambda: _into(case.pair, case.ids, cache),
        work=lambda: _chunk_work(case, 0, 0, 0),
        kept_bytes=lambda: cache.nbytes,
    )


def _plain(case: Case[ReadOptions]) -> Method:
    work = full_work(case.pair.sizes, batch=1, tokens=case.options.chunk_size, past=0, logits=False)
    return Method("plain", lambda: _alone(case.pair, case.ids), work=lambda: work)


def _full(case: Case[ReadOptions]) -> Method:
    if case.context > case.options.full_limit:
        return Method("full", missing=f"the context is longer than full_limit {case.options.full_limit}")
    start, room = case.context - _read_before(case.options), (case.options.rounds + 2) * case.options.chunk_size
    lack = case.shortage(full_attention.fixed_cache_bytes(case.pair.sizes, batch=1, tokens=start + room))
    if lack is not None:
        return Method("full", missing=lack)
    like = torch.empty(0, dtype=case.machine.dtype, device=case.machine.device)
    cache = full_attention.fixed_cache(case.pair.sizes, batch=1, past=start, room=room, like=like)
    work = full_work(case.pair.sizes, batch=1, tokens=case.options.chunk_size, past=case.context, logits=False)
    kept = full_attention.fixed_cache_bytes(case.pair.sizes, batch=1, tokens=case.context)
    return Method("full", lambda: _over(case.pair, case.ids, cache), work=lambda: work, kept_bytes=lambda: kept)


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


def _chunk_work(case: Case[ReadOptions], blocks: int, retrieve: int, opened: int) -> Work:
    """Work of a chunk and its landmarks behind the context."""
    pair, size = case.pair, case.pair.settings.block_size
    return memory_work(
        pair.sizes,
        batch=1,
        positions=stream_length(case.options.chunk_size, size, case.context % size),
        window=positions_in_sight(pair.settings, case.context),
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
