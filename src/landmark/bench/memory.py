"""Bytes: the most that a call holds beyond what was there before it, and how much is free."""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

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
    with _without_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
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
def _without_stderr() -> Iterator[None]:
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
