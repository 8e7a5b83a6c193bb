import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from landmark.training.allocator import keep_freed_pages

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
