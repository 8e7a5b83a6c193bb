"""Decoding: the time of one more token, whatever lies before it."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import full_attention
from benchmarks.compare import Contender, Row, Task, compare
from benchmarks.machine import Machine, shortage
from benchmarks.models import Attend, Subject
from benchmarks.options import DecodeOptions
from benchmarks.past import blocks_in_memory, filled_cache, filled_cache_bytes, positions_in_sight
from benchmarks.read import opened_blocks
from benchmarks.roofline import Work, full_work, memory_work
from landmark.hf import LandmarkCache
from landmark.hf.compat import cache_kwargs
from landmark.stream import stream_length

BASE = "full"
LAYERS = 4


def run(
    machine: Machine,
    subject: Subject,
    options: DecodeOptions,
    context: int,
    batch: int,
    progress: Callable[[int], object],
) -> Iterator[Row]:
    """The rows of one context and batch size; `progress` is told of `rounds + 1` steps."""
    settings = subject.settings
    what = {
        "bench": "decode",
        "model": str(options.model or "random"),
        "context": context,
        "batch": batch,
        "steps": options.steps,
        "block_size": settings.block_size,
        "retrieve": settings.reading.retrieve,
        "local_blocks": settings.reading.local_blocks,
        **subject.sizes._asdict(),
    }
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(settings.landmark_id, (batch, 1), generator=generator).to(machine.device)
    makers = (_memory, _no_memory, _full, _growing, *([_dense] if options.dense else []))
    contenders = [make(machine, subject, options, context, ids) for make in makers]
    task = Task(what, BASE, units=options.steps, tokens=batch)
    yield from compare(machine, task, contenders, options.rounds, progress)


def _memory(machine: Machine, subject: Subject, options: DecodeOptions, context: int, ids: Tensor) -> Contender:
    lack = shortage(filled_cache_bytes(subject, batch=len(ids), tokens=context), machine.device)
    if lack is not None:
        return Contender("memory", missing=lack)
    cache = filled_cache(subject, batch=len(ids), tokens=context)
    blocks, retrieve = blocks_in_memory(subject.settings, context), subject.settings.reading.retrieve
    return _through(cache, "memory", subject, options, context, ids, blocks=blocks, retrieve=retrieve)


def _no_memory(machine: Machine, subject: Subject, options: DecodeOptions, context: int, ids: Tensor) -> Contender:
    cache = LandmarkCache(subject.model.config, retrieve=0)
    return _through(cache, "no memory", subject, options, context, ids, blocks=0, retrieve=0)


def _through(
    cache: LandmarkCache,
    name: str,
    subject: Subject,
    options: DecodeOptions,
    context: int,
    ids: Tensor,
    *,
    blocks: int,
    retrieve: int,
) -> Contender:
    """Steps of the converted model through a cache with so many blocks, of which a query opens `retrieve`."""

    cached = cache_kwargs(subject.model, cache)

    @torch.no_grad()
    def steps() -> None:
        for _ in range(options.steps):
            subject.model(input_ids=ids, **cached)

    def work() -> Work:
        return memory_work(
            subject.sizes,
            batch=len(ids),
            positions=1,
            window=positions_in_sight(subject.settings, context),
            block_size=subject.settings.block_size,
            blocks=blocks,
            retrieve=retrieve,
            opened=opened_blocks(cache, subject.sizes),
            logits=True,
        )

    return Contender(name, steps, work=work, kept_bytes=lambda: cache.nbytes)


def _full(machine: Machine, subject: Subject, options: DecodeOptions, context: int, ids: Tensor) -> Contender:
    return _over_everything("full", full_attention.last_token, machine, subject, options, context, ids)


def _growing(machine: Machine, subject: Subject, options: DecodeOptions, context: int, ids: Tensor) -> Contender:
    return _over_everything("growing", full_attention.last_token, machine, subject, options, context, ids, growing=True)


def _dense(machine: Machine, subject: Subject, options: DecodeOptions, context: int, ids: Tensor) -> Contender:
    size = subject.settings.block_size
    attend = full_attention.dense_landmarks(size)
    return _over_everything("dense", attend, machine, subject, options, stream_length(context, size), ids)


def _over_everything(
    name: str,
    attend: Attend,
    machine: Machine,
    subject: Subject,
    options: DecodeOptions,
    past: int,
    ids: Tensor,
    growing: bool = False,
) -> Contender:
    batch, room = len(ids), (options.rounds + 2) * options.steps
    lack = shortage(full_attention.fixed_cache_bytes(subject.sizes, batch=batch, tokens=past + room), machine.device)
    if lack is not None:
        return Contender(name, missing=lack)
    like = torch.empty(0, dtype=machine.dtype, device=machine.device)
    make = full_attention.growing_cache if growing else partial(full_attention.fixed_cache, room=room)
    cache: Any = make(subject.sizes, batch=batch, past=past, like=like)

    cached = cache_kwargs(subject.plain, cache)

    @torch.no_grad()
    def steps() -> None:
        for _ in range(options.steps):
            subject.plain(input_ids=ids, **cached, bench_attend=attend)

    kept = full_attention.fixed_cache_bytes(subject.sizes, batch=batch, tokens=past)
    work = full_work(subject.sizes, batch=batch, tokens=1, past=past, logits=True)
    return Contender(name, steps, work=lambda: work, kept_bytes=lambda: kept)
