"""Decoding: the time of one more token, whatever lies before it."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from landmark.bench import full
from landmark.bench.compare import Contender, Row, Task, compare
from landmark.bench.contexts import blocks_in_memory, filled_cache, filled_cache_bytes, positions_in_sight
from landmark.bench.floors import full_work, memory_work
from landmark.bench.machine import Machine
from landmark.bench.memory import shortage
from landmark.bench.models import Attend, Subject
from landmark.bench.options import DecodeOptions
from landmark.bench.read import opened_blocks
from landmark.blocks import stream_length

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
        "top_k": settings.top_k,
        "local_blocks": settings.local_blocks,
        **subject.sizes._asdict(),
    }
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(settings.landmark_id, (batch, 1), generator=generator).to(machine.device)
    makers = (_memory, _full, *([_dense] if options.dense else []))
    contenders = [make(machine, subject, options, context, ids) for make in makers]
    task = Task(what, BASE, units=options.steps, tokens=batch)
    yield from compare(machine, task, contenders, options.rounds, progress)


def _memory(machine: Machine, subject: Subject, options: DecodeOptions, context: int, ids: Tensor) -> Contender:
    batch, settings = len(ids), subject.settings
    lack = shortage(filled_cache_bytes(subject, batch=batch, tokens=context), machine.device)
    if lack is not None:
        return Contender("memory", missing=lack)
    cache = filled_cache(subject, batch=batch, tokens=context)

    @torch.no_grad()
    def steps() -> None:
        for _ in range(options.steps):
            subject.model(input_ids=ids, past_key_values=cache, use_cache=True)

    return Contender(
        "memory",
        steps,
        work=lambda: memory_work(
            subject.sizes,
            batch=batch,
            positions=1,
            window=positions_in_sight(settings, context),
            block_size=settings.block_size,
            blocks=blocks_in_memory(settings, context),
            top_k=settings.top_k,
            opened=opened_blocks(cache, subject.sizes),
            logits=True,
        ),
        kept_bytes=lambda: cache.nbytes,
    )


def _full(machine: Machine, subject: Subject, options: DecodeOptions, context: int, ids: Tensor) -> Contender:
    return _over_everything("full", full.last_token, machine, subject, options, context, ids)


def _dense(machine: Machine, subject: Subject, options: DecodeOptions, context: int, ids: Tensor) -> Contender:
    size = subject.settings.block_size
    attend = full.dense_landmarks(size)
    return _over_everything("dense", attend, machine, subject, options, stream_length(context, size), ids)


def _over_everything(
    name: str, attend: Attend, machine: Machine, subject: Subject, options: DecodeOptions, past: int, ids: Tensor
) -> Contender:
    batch, room = len(ids), (options.rounds + 2) * options.steps
    lack = shortage(full.fixed_cache_bytes(subject.sizes, batch=batch, tokens=past + room), machine.device)
    if lack is not None:
        return Contender(name, missing=lack)
    like = torch.empty(0, dtype=machine.dtype, device=machine.device)
    cache: Any = full.fixed_cache(subject.sizes, batch=batch, past=past, room=room, like=like)

    @torch.no_grad()
    def steps() -> None:
        for _ in range(options.steps):
            subject.plain(input_ids=ids, past_key_values=cache, use_cache=True, bench_attend=attend)

    kept = full.fixed_cache_bytes(subject.sizes, batch=batch, tokens=past)
    work = full_work(subject.sizes, batch=batch, tokens=1, past=past, logits=True)
    return Contender(name, steps, work=lambda: work, kept_bytes=lambda: kept)
