import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from landmark.allocator import keep_freed_pages

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
from landmark.allocator import return_freed_pages
from landmark.evaluation.process import resident_bytes

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
