"""Whether freed memory stays with the process: what glibc does by itself suits neither training nor budgets."""

import ctypes
import sys

# Numbers of malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER = -1


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
