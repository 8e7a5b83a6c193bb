import mmap
import subprocess
import sys

import pytest

from landmark.process_memory import PeakMemory

PROGRAM = """
import resource
import torch
from landmark.process_memory import keep_freed_pages

def faults(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        torch.zeros(16 << 20).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(2)
usual = faults(8)
assert keep_freed_pages()
faults(8)  # the heap grows to its size
print(usual, faults(8))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt belongs to glibc")
def test_large_temporaries_stop_faulting():
    # In a process of its own: the setting cannot be taken back.
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    usual, kept = map(int, done.stdout.split())
    assert kept < usual / 2


RETURN = """
from landmark.process_memory import resident_bytes, return_freed_pages

small = [bytes(1000) for _ in range(200_000)]
last = bytes(1000)  # keeps the heap from shrinking by itself
small = None
before = resident_bytes()
assert return_freed_pages()
print(before - resident_bytes())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="malloc_trim belongs to glibc")
def test_freed_pages_are_returned():
    done = subprocess.run([sys.executable, "-c", RETURN], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 100_000_000


def test_peak_memory_notices_what_was_there_for_a_while():
    peak = PeakMemory()
    before = peak.bytes
    # From the system, and not from memory that earlier tests freed and this process kept.
    with mmap.mmap(-1, 64 * 2**20) as held:
        held[::4096] = b"x" * len(held[::4096])
        peak.sample()
    peak.sample()
    assert 60e6 < peak.bytes - before < 200e6
    assert peak.megabytes == peak.bytes / 1e6
