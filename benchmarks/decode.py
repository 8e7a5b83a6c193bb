"""Decoding: the time of one more token over contexts of any length."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from benchmarks import full_attention
from benchmarks.compare import Method, Row, Task, compare
from benchmarks.filled_cache import blocks_in_memory, filled_cache, filled_cache_bytes, positions_in_sight
from benchmarks.machine import Machine
from benchmarks.models import Attend, Case, ModelPair, random_ids
from benchmarks.options import DecodeOptions
from benchmarks.read import opened_blocks
from benchmarks.roofline import Work, full_work, memory_work
from landmark.hf import LandmarkCache
from landmark.hf.compat import cache_kwargs
from landmark.stream import stream_length

BASELINE = "full"
LAYERS = 4
METHODS = ("memory", "no memory", "full", "growing", "dense")


def run(
    machine: Machine,
    pair: ModelPair,
    options: DecodeOptions,
    context: int,
    batch: int,
    progress: Callable[[int], object],
) -> Iterator[Row]:
    """The rows of one context and batch size; `progress` gets `rounds + 1` steps."""
    case = Case(machine, pair, options, context, random_ids(pair, machine, batch, 1))
    what = case.row("decode", batch=batch, steps=options.steps)
    makers = {"memory": _memory, "no memory": _no_memory, "full": _full, "growing": _growing, "dense": _dense}
    methods = [makers[name](case) for name in chosen(options)]
    task = Task(what, BASELINE, units=options.steps, tokens=batch)
    yield from compare(machine, task, methods, options.rounds, progress)


def chosen(options: DecodeOptions) -> list[str]:
    """The methods that the options name; raises ValueError for one that there is not."""
    names = [name.strip() for name in options.methods.split(",")] + ["dense"] * options.dense
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise ValueError(f"methods are {options.methods!r}: {unknown[0]!r} is none, choose from {', '.join(METHODS)}")
    return [name for name in METHODS if name in names]


def _memory(case: Case[DecodeOptions]) -> Method:
    lack = case.shortage(filled_cache_bytes(case.pair, batch=len(case.ids), tokens=case.context))
    if lack is not None:
        return Method("memory", missing=lack)
    cache = filled_cache(case.pair, batch=len(case.ids), tokens=case.context)
    blocks, retrieve = blocks_in_memory(case.pair.settings, case.context), case.pair.settings.reading.retrieve
    return _through(cache, "memory", case, blocks=blocks, retrieve=retrieve)


def _no_memory(case: Case[DecodeOptions]) -> Method:
    cache = LandmarkCache(case.pair.model.config, retrieve=0)
    return _through(cache, "no memory", case, blocks=0, retrieve=0)


def _through(
    cache: LandmarkCache,
    name: str,
    case: Case[DecodeOptions],
    *,
    blocks: int,
    retrieve: int,
) -> Method:
    """Steps of the converted model through a cache with so many blocks, of which a query opens `retrieve`."""

    cached = cache_kwargs(case.pair.model, cache)

    @torch.no_grad()
    def steps() -> None:
        for _ in range(case.options.steps):
            case.pair.model(input_ids=case.ids, **cached)

    def work() -> Work:
        return memory_work(
            case.pair.sizes,
            batch=len(case.ids),
            positions=1,
            window=positions_in_sight(case.pair.settings, case.context),
            block_size=case.pair.settings.block_size,
            blocks=blocks,
            retrieve=retrieve,
            opened=opened_blocks(cache, case.pair.sizes),
            logits=True,
        )

    return Method(name, steps, work=work, kept_bytes=lambda: cache.nbytes)


def _full(case: Case[DecodeOptions]) -> Method:
    return _over_everything("full", full_attention.last_token, case, case.context)


def _growing(case: Case[DecodeOptions]) -> Method:
    return _over_everything("growing", full_attention.last_token, case, case.context, growing=True)


def _dense(case: Case[DecodeOptions]) -> Method:
    size = case.pair.settings.block_size
    attend = full_attention.dense_landmarks(size)
    return _over_everything("dense", attend, case, stream_length(case.context, size))


def _over_everything(
    name: str,
    attend: Attend,
    case: Case[DecodeOptions],
    past: int,
    growing: bool = False,
) -> Method:
    batch, room = len(case.ids), (case.options.rounds + 2) * case.options.steps
    lack = case.shortage(full_attention.fixed_cache_bytes(case.pair.sizes, batch=batch, tokens=past + room))
    if lack is not None:
        return Method(name, missing=lack)
    like = torch.empty(0, dtype=case.machine.dtype, device=case.machine.device)
    make = full_attention.growing_cache if growing else partial(full_attention.fixed_cache, room=room)
    cache: Any = make(case.pair.sizes, batch=batch, past=past, like=like)

    cached = cache_kwargs(case.pair.plain, cache)

    @torch.no_grad()
    def steps() -> None:
        for _ in range(case.options.steps):
            case.pair.plain(input_ids=case.ids, **cached, bench_attend=attend)

    kept = full_attention.fixed_cache_bytes(case.pair.sizes, batch=batch, tokens=past)
    work = full_work(case.pair.sizes, batch=batch, tokens=1, past=past, logits=True)
    return Method(name, steps, work=lambda: work, kept_bytes=lambda: kept)
