"""Launches: what one prefill chunk and one decode step start on the device, and wait for, by PyTorch's profiler."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.compare import Row
from benchmarks.filled_cache import filled_cache, filled_cache_bytes
from benchmarks.machine import Machine, seconds_of, without_stderr
from benchmarks.models import Case, ModelPair, random_ids
from benchmarks.options import LaunchesOptions
from landmark.hf import LandmarkCache
from landmark.hf.compat import cache_kwargs

LAYERS = 4
_WARM_UPS = 3  # kernels are compiled and tuned, buffers grow


def run(
    machine: Machine, pair: ModelPair, options: LaunchesOptions, context: int, progress: Callable[[int], object]
) -> Iterator[Row]:
    """Rows of a chunk and a step, with memory and without; `progress` gets 4 steps."""
    lack = Case(machine, pair, options, context, random_ids(pair, machine, 1, 1)).shortage(
        filled_cache_bytes(pair, batch=1, tokens=context)
    )
    for method in ("memory", "no memory"):
        cache = None
        if method == "no memory":
            cache = LandmarkCache(pair.model.config, retrieve=0)
        elif lack is None:
            cache = filled_cache(pair, batch=1, tokens=context)
        for what, tokens in (("chunk", options.chunk_size), ("step", 1)):
            case = Case(machine, pair, options, context, random_ids(pair, machine, 1, tokens))
            row = case.row("launches", what=what, tokens=tokens, method=method)
            row |= {"device": machine.device.type, "machine": machine.name, "skipped": lack if cache is None else None}
            yield row | ({} if cache is None else _counted(_forward(case, cache), machine.device))
            progress(1)


def _forward(case: Case[LaunchesOptions], cache: LandmarkCache) -> Callable[[], object]:
    base: Any = case.pair.model.base_model
    cached = cache_kwargs(base, cache)

    @torch.no_grad()
    def forward() -> None:
        base(input_ids=case.ids, **cached)

    return forward


def _counted(call: Callable[[], object], device: torch.device) -> Row:
    """Counts of one call. `launches` and `synchronisations` are of the CUDA runtime, and 0 on a CPU."""
    for _ in range(_WARM_UPS):
        call()
    seconds = seconds_of(call, device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with without_stderr(), profile(activities=activities) as seen:
        call()
    events = seen.key_averages()

    def count(*parts: str) -> int:
        return sum(event.count for event in events if any(part in event.key for part in parts))

    return {
        "launches": count("LaunchKernel", "GraphLaunch"),
        "synchronisations": count("StreamSynchronize", "DeviceSynchronize", "EventSynchronize"),
        "host_reads": count("aten::_local_scalar_dense"),
        "operations": count("aten::"),
        "device_s": sum(event.self_device_time_total for event in events) / 1e6,
        "seconds": seconds,
    }
