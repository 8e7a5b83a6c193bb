"""How much memory this process holds, looked at again and again while it works."""

import os
import resource
import sys
from pathlib import Path

STATM = Path("/proc/self/statm")
STATUS = Path("/proc/self/status")
MEGABYTE = 10**6


def resident_bytes() -> int:
    """Bytes of this process in main memory now; where Linux's /proc is missing, the most there ever were."""
    if STATM.exists():
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return _highest_ever()


def peak_bytes() -> int:
    """The most bytes of main memory that this program ever held."""
    if STATUS.exists():
        (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return _highest_ever()


def _highest_ever() -> int:
    # On Linux this counts what the process held before it became this program, its parent's memory for one.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class PeakMemory:
    """The largest value seen by `look`; unlike the system's own peak it starts anew with each object."""

    def __init__(self) -> None:
        self.bytes = resident_bytes()

    def look(self) -> None:
        self.bytes = max(self.bytes, resident_bytes())

    @property
    def megabytes(self) -> float:
        return self.bytes / MEGABYTE
