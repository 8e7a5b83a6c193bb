"""Measuring: wall time by turns, peak memory, and the speeds of the machine that rooflines are computed from."""

import json
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.options import ComparisonOptions

T = TypeVar("T")

# Time. Machines drift, so methods run by turns in one process, round by round, and a ratio is taken within each round,
# between neighbours in time, before the median over the rounds.


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


def median_ratio(seconds: list[float], baseline: list[float]) -> float:
    """Median over the rounds of how many times as long as the baseline it took."""
    return statistics.median(own / other for own, other in zip(seconds, baseline, strict=True))


def by_turns(
    calls: Mapping[str, Callable[[], object]], rounds: int, device: torch.device, progress: Callable[[int], object]
) -> dict[str, list[float]]:
    """Seconds of each call in each round. Every round begins with another method; `progress(1)` follows it."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        for name in by_turn(list(calls), turn):
            taken[name].append(seconds_of(calls[name], device))
        progress(1)
    return taken


def by_turn(items: Sequence[T], turn: int) -> list[T]:
    """All items, each turn begun by the next one."""
    first = turn % len(items) if items else 0
    return [*items[first:], *items[:first]]


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


# Speed of the machine. Matrices are big enough for full speed, copies big enough to leave the caches.

MATMUL_WIDTH = {"cpu": 2048, "cuda": 8192}
COPIED_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}
CPUINFO = Path("/proc/cpuinfo")
_TRIES = 10


@dataclass(frozen=True)
class Machine:
    """Where a benchmark runs. Speeds are the best of a few tries, with the same device, dtype and threads."""

    device: torch.device
    dtype: torch.dtype
    threads: int
    name: str
    flops_per_s: float
    bytes_per_s: float

    @property
    def size(self) -> int:
        """Bytes of a number."""
        return self.dtype.itemsize


def prepare(options: ComparisonOptions) -> Machine:
    """Sets torch's threads for the whole process and measures the machine.

    Raises ValueError for a device that is not there.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device is 'cuda' and torch sees no CUDA device: use --device cpu, or a build of torch for this GPU"
        )
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    dtype = getattr(torch, options.dtype or ("bfloat16" if options.device == "cuda" else "float32"))
    name = torch.cuda.get_device_name(device) if options.device == "cuda" else processor()
    return Machine(
        device,
        dtype,
        torch.get_num_threads(),
        name,
        flops_per_s(device, dtype),
        bytes_per_s(device),
    )


def processor() -> str:
    """The name of the processor."""
    match = re.search(r"model name\s*: (.*)", CPUINFO.read_text()) if CPUINFO.exists() else None
    return match[1] if match else platform.processor() or platform.machine()


def flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of one large matrix product."""
    width = MATMUL_WIDTH[device.type]
    a, b = (torch.randn(width, width, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * width**3 / _best(lambda: torch.mm(a, b, out=out), device)


def bytes_per_s(device: torch.device) -> float:
    """Bytes a second between processor and main memory: of a copy (read and written) or a sum (read), the faster."""
    source = torch.ones(COPIED_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source).zero_()
    copying = 2 * source.nbytes / _best(lambda: target.copy_(source), device)
    return max(copying, source.nbytes / _best(source.sum, device))


def _best(call: Callable[[], Tensor], device: torch.device) -> float:
    call()
    return min(seconds_of(call, device) for _ in range(_TRIES))


# Memory.

MEMINFO = Path("/proc/meminfo")
RESERVE = 10**9  # left for all the rest: activations, buffers that grow, other programs


def peak_extra_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Most bytes allocated at once during `call`, its result included, beyond those allocated before it.

    CUDA: torch's count of allocated memory. CPU: every allocation and release of torch's allocator, those inside
    operations included; what a library such as MKL takes from the system by itself is not seen.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with without_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        result = call()
    del result  # outlived the profile, so that its release is not counted
    held = most = 0
    for change in _changes(seen):
        held += change
        most = max(most, held)
    return most


def _changes(seen: profile) -> list[int]:
    """Bytes taken (above 0) and released (below 0) in the order in which it happened."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        seen.export_chrome_trace(str(path))
        trace = json.loads(path.read_text(encoding="utf-8"))
    events = [event for event in trace["traceEvents"] if event.get("name") == "[memory]"]
    return [event["args"]["Bytes"] for event in sorted(events, key=lambda event: event["ts"])]


@contextmanager
def without_stderr() -> Iterator[None]:
    """The profiler's library writes a line to file descriptor 2 whenever it starts or stops."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated: on the device, or what the system calls available."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    if MEMINFO.exists():
        kilobytes = {line.split()[0]: line.split()[1] for line in MEMINFO.read_text().splitlines() if line.strip()}
        return int(kilobytes["MemAvailable:"]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def shortage(needed: int, device: torch.device) -> str | None:
    """Why `needed` bytes cannot be had, with the figures; None if they can."""
    free = free_bytes(device)
    if needed + RESERVE <= free:
        return None
    return f"needs {needed / 1e9:.1f} GB and {RESERVE / 1e9:.0f} GB to spare, {free / 1e9:.1f} GB are free"
