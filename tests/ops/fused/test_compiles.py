"""Every kernel compiles for a GPU, none of which need be there, and finds room on it.

`python tests/ops/fused/compile_kernels.py` prints the same for every configuration that may be tuned over on a device.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Bytes of shared memory that a program may have.
_SHARED = {80: 163 << 10, 90: 227 << 10}


@pytest.mark.parametrize(
    ("target", "cases"),
    [
        (90, ["bfloat16,128,63", "float16,64,50,masked", "bfloat16,80,200"]),
        (80, ["bfloat16,256,7,masked", "float32,64,63", "float16,128,130,masked"]),
    ],
)
def test_kernels_compile_and_find_room(target, cases):
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, Path(__file__).with_name("compile_kernels.py"), f"--target={target}", "--first", *cases]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    found = [json.loads(line) for line in run.stdout.splitlines()]
    assert len({kernel["kernel"] for kernel in found}) == 6
    assert len(found) == 3 * len(cases)
    for kernel in found:
        assert kernel["shared"] <= _SHARED[target], kernel
    default = [kernel["spilled_in_loops"] for kernel in found if kernel["case"] == "bfloat16,128,63"]
    assert all(spilled < 50 for spilled in default)
