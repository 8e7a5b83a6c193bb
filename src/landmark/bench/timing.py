"""Times of contenders that take turns, and what is told of them.

Machines drift: another program starts, a core gets warm. So contenders run by turns in one process, round by round,
and a ratio is taken within each round, between neighbours in time, before the median over the rounds.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch


class Spread(NamedTuple):
    """Seconds over the rounds."""

    median: float
    lower_quartile: float
    upper_quartile: float
    minimum: float
    maximum: float


def spread(seconds: list[float]) -> Spread:
    """Median, quartiles (interpolated, the extremes counted in) and extremes of one or more times."""
    middle = statistics.median(seconds)
    if len(seconds) == 1:
        return Spread(middle, middle, middle, middle, middle)
    lower, _, upper = statistics.quantiles(seconds, n=4, method="inclusive")
    return Spread(middle, lower, upper, min(seconds), max(seconds))


def median_ratio(seconds: list[float], base: list[float]) -> float:
    """Median over the rounds of how many times as long as the base it took."""
    return statistics.median(own / other for own, other in zip(seconds, base, strict=True))


def by_turns(
    calls: Mapping[str, Callable[[], object]], rounds: int, device: torch.device, progress: Callable[[int], object]
) -> dict[str, list[float]]:
    """Seconds of each call in each round. Every round begins with another contender; `progress(1)` follows it."""
    names = list(calls)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names) if names else 0
        for name in names[first:] + names[:first]:
            taken[name].append(seconds_of(calls[name], device))
        progress(1)
    return taken


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call; on CUDA the time between two events around it on the device."""
    if device.type == "cuda":
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        call()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1000
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
