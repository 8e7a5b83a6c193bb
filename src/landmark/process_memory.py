"""Memory of this process: resident size and peak, and whether freed pages are kept or returned to the kernel.

The defaults of glibc suit neither training nor memory budgets.
"""

import ctypes
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

STATM = Path("/proc/self/statm")
STATUS = Path("/proc/self/status")
MEMINFO = Path("/proc/meminfo")
# The limit of a container's memory, and what it uses: of control groups version 2, and of version 1.
_GROUP = Path("/sys/fs/cgroup")
CONTAINER = (
    (_GROUP / "memory.max", _GROUP / "memory.current"),
    (_GROUP / "memory/memory.limit_in_bytes", _GROUP / "memory/memory.usage_in_bytes"),
)
MEGABYTE = 10**6
# Numbers of malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER = -1


def resident_bytes() -> int:
    """Resident set size in bytes; without Linux's /proc, its peak."""
    if STATM.exists():
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return _highest_ever()


def peak_bytes() -> int:
    """Peak resident set size of this program in bytes."""
    if STATUS.exists():
        (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return _highest_ever()


def available_bytes() -> int:
    """Bytes that programs can still take without swapping, within a container's limit; all, without Linux's /proc."""
    if not MEMINFO.exists():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    (line,) = (line for line in MEMINFO.read_text().splitlines() if line.startswith("MemAvailable:"))
    free = [int(line.split()[1]) * 1024]
    for limit, used in CONTAINER:
        with suppress(OSError, ValueError):  # no such limit, or "max"
            free.append(int(limit.read_text()) - int(used.read_text()))
    return max(0, min(free))


def _highest_ever() -> int:
    # On Linux this counts what the process held before it became this program, its parent's memory for one.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class PeakMemory:
    """Peak resident set size over the calls of `sample`; each object starts its own."""

    def __init__(self) -> None:
        self.bytes = resident_bytes()

    def sample(self) -> None:
        self.bytes = max(self.bytes, resident_bytes())

    @property
    def megabytes(self) -> float:
        return self.bytes / MEGABYTE


def keep_freed_pages() -> bool:
    """Make this process reuse freed memory instead of returning it; true where that is supported (glibc).

    By default every tensor of more than 32 MiB comes from fresh pages and goes straight back, so each
    training step faults its large temporaries in again, page by page. The price is that memory, once used,
    stays with the process until it ends.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # M_MMAP_THRESHOLD cannot be used for this: glibc refuses values over 32 MiB.
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, NEVER))


def return_freed_pages() -> bool:
    """Hand freed memory back to the kernel now; true where that is supported (glibc).

    What passes through many small objects, such as tokenizing, leaves pages behind that are not needed again.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    return trim is not None and bool(trim(0))
