"""Decoding: the time of one more token over contexts of any length."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import full_attention
from benchmarks.compare import Method, Row, Task, compare
from benchmarks.filled_cache import blocks_in_memory, filled_cache, filled_cache_bytes, positions_in_sight
from benchmarks.machine import Machine, shortage
from benchmarks.models import Attend, ModelPair
from benchmarks.options import DecodeOptions
from benchmarks.read import opened_blocks
from benchmarks.roofline import Work, full_work, memory_work
from landmark.hf import LandmarkCache
from landmark.hf.compat import cache_kwargs
from landmark.stream import stream_length

BASELINE = "full"
LAYERS = 4


def run(
    machine: Machine,
    pair: ModelPair,
    options: DecodeOptions,
    context: int,
    batch: int,
    progress: Callable[[int], object],
) -> Iterator[Row]:
    """The rows of one context and batch size; `progress` gets `rounds + 1` steps."""
    settings = pair.settings
    what = {
        "bench": "decode",
        "model": str(options.model or "random"),
        "context": context,
        "batch": batch,
        "steps": options.steps,
        "block_size": settings.block_size,
        "retrieve": settings.reading.retrieve,
        "local_blocks": settings.reading.local_blocks,
        **pair.sizes._asdict(),
    }
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(settings.landmark_id, (batch, 1), generator=generator).to(machine.device)
    makers = (_memory, _no_memory, _full, _growing, *([_dense] if options.dense else []))
    methods = [make(machine, pair, options, context, ids) for make in makers]
    task = Task(what, BASELINE, units=options.steps, tokens=batch)
    yield from compare(machine, task, methods, options.rounds, progress)


def _memory(machine: Machine, pair: ModelPair, options: DecodeOptions, context: int, ids: Tensor) -> Method:
    lack = shortage(filled_cache_bytes(pair, batch=len(ids), tokens=context), machine.device)
    if lack is not None:
        return Method("memory", missing=lack)
    cache = filled_cache(pair, batch=len(ids), tokens=context)
    blocks, retrieve = blocks_in_memory(pair.settings, context), pair.settings.reading.retrieve
    return _through(cache, "memory", pair, options, context, ids, blocks=blocks, retrieve=retrieve)


def _no_memory(machine: Machine, pair: ModelPair, options: DecodeOptions, context: int, ids: Tensor) -> Method:
    cache = LandmarkCache(pair.model.config, retrieve=0)
    return _through(cache, "no memory", pair, options, context, ids, blocks=0, retrieve=0)


def _through(
    cache: LandmarkCache,
    name: str,
    pair: ModelPair,
    options: DecodeOptions,
    context: int,
    ids: Tensor,
    *,
    blocks: int,
    retrieve: int,
) -> Method:
    """Steps of the converted model through a cache with so many blocks, of which a query opens `retrieve`."""

    cached = cache_kwargs(pair.model, cache)

    @torch.no_grad()
    def steps() -> None:
        for _ in range(options.steps):
            pair.model(input_ids=ids, **cached)

    def work() -> Work:
        return memory_work(
            pair.sizes,
            batch=len(ids),
            positions=1,
            window=positions_in_sight(pair.settings, context),
            block_size=pair.settings.block_size,
            blocks=blocks,
            retrieve=retrieve,
            opened=opened_blocks(cache, pair.sizes),
            logits=True,
        )

    return Method(name, steps, work=work, kept_bytes=lambda: cache.nbytes)


def _full(machine: Machine, pair: ModelPair, options: DecodeOptions, context: int, ids: Tensor) -> Method:
    return _over_everything("full", full_attention.last_token, machine, pair, options, context, ids)


def _growing(machine: Machine, pair: ModelPair, options: DecodeOptions, context: int, ids: Tensor) -> Method:
    return _over_everything("growing", full_attention.last_token, machine, pair, options, context, ids, growing=True)


def _dense(machine: Machine, pair: ModelPair, options: DecodeOptions, context: int, ids: Tensor) -> Method:
    size = pair.settings.block_size
    attend = full_attention.dense_landmarks(size)
    return _over_everything("dense", attend, machine, pair, options, stream_length(context, size), ids)


def _over_everything(
    name: str,
    attend: Attend,
    machine: Machine,
    pair: ModelPair,
    options: DecodeOptions,
    past: int,
    ids: Tensor,
    growing: bool = False,
) -> Method:
    batch, room = len(ids), (options.rounds + 2) * options.steps
    lack = shortage(full_attention.fixed_cache_bytes(pair.sizes, batch=batch, tokens=past + room), machine.device)
    if lack is not None:
        return Method(name, missing=lack)
    like = torch.empty(0, dtype=machine.dtype, device=machine.device)
    make = full_attention.growing_cache if growing else partial(full_attention.fixed_cache, room=room)
    cache: Any = make(pair.sizes, batch=batch, past=past, like=like)

    cached = cache_kwargs(pair.plain, cache)

    @torch.no_grad()
    def steps() -> None:
        for _ in range(options.steps):
            pair.plain(input_ids=ids, **cached, bench_attend=attend)

    kept = full_attention.fixed_cache_bytes(pair.sizes, batch=batch, tokens=past)
    work = full_work(pair.sizes, batch=batch, tokens=1, past=past, logits=True)
    return Method(name, steps, work=lambda: work, kept_bytes=lambda: kept)
